"""Writes docs/architectures.md's table: published architectures through every stage."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from search import batch_norm
from search.engine.store import Store
from tests.architectures import RATIOS, Walk, walk
from tests.families import FAMILIES

PAGE = Path(__file__).parents[2] / "docs" / "architectures.md"
BEGIN, END = "<!-- table -->\n", "<!-- end of table -->\n"
HEAD = (
    "| architecture | parameters | prunable channels | "
    + " | ".join(f"left at {ratio:g}" for ratio in RATIOS)
    + " | graphs | not done |\n|---|---|---|---|---|---|---|---|\n"
)


@pytest.mark.bench
@pytest.mark.timeout(7200)
def test_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_norm, "SMALLEST", 0)
    logging.getLogger("torch").setLevel(logging.WARNING)
    rows = []
    for family in FAMILIES:
        found = walk(family, Store(tmp_path / family))
        rows.append(row(found))
        print(rows[-1], end="", flush=True)
        write(rows)  # what is known so far, should the rest be cut off


def row(found: Walk) -> str:
    """Returns an architecture's line of the table."""
    left = [f"{share:.0%}" for share in found.left]
    left += ["-"] * (len(RATIOS) - len(left))
    reasons = "; ".join(f"{stage}: {reason}" for stage, reason in found.reasons.items())
    cells = [
        FAMILIES[found.family].title + (", narrow" if FAMILIES[found.family].is_small else ""),
        f"{found.parameters / 1e6:.2f} M",
        f"{found.prunable:.0%}",
        *left,
        str(found.traces),
        reasons.replace("|", "/"),
    ]
    return "| " + " | ".join(cells) + " |\n"


def write(rows: list[str]) -> None:
    """Puts rows into the page."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(before + BEGIN + HEAD + "".join(rows) + END + after)
