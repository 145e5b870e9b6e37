"""Writes docs/architectures.md's table: published architectures through every stage.

Each architecture writes its own row and leaves the others: ``-k`` makes a part of the table anew.
"""

from __future__ import annotations

import logging
from pathlib import Path
from textwrap import shorten

import pytest

from search.engine.store import Store
from search.networks import batch_norm
from tests.architectures import PAGE, RATIOS, figures, title, walk
from tests.families import FAMILIES

BEGIN, END = "<!-- table -->\n", "<!-- end of table -->\n"
HEAD = (
    "| architecture | parameters | prunable channels | "
    + " | ".join(f"left at {ratio:g}" for ratio in RATIOS)
    + " | graphs | works |\n|---|---|---|---|---|---|---|---|\n"
)


@pytest.mark.bench
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("family", FAMILIES)
def test_table(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_norm, "SMALLEST", 0)
    logging.getLogger("torch").setLevel(logging.WARNING)
    found = walk(family, Store(tmp_path))
    reasons = "; ".join(
        f"{stage}: {shorten(reason, 150)}" for stage, reason in found.reasons.items()
    )
    works = reasons.replace("|", "/") or "yes"
    line = f"{figures(found)} {found.traces} | {works} |\n"
    print(line, end="", flush=True)
    write(title(family), line)


def write(name: str, line: str) -> None:
    """Puts an architecture's row into the page, in the order of ``FAMILIES``."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    table, _, after = rest.partition(END)
    rows = {known.split(" | ")[0].removeprefix("| "): known for known in table.splitlines(True)}
    rows[name] = line
    ordered = [rows[title(family)] for family in FAMILIES if title(family) in rows]
    PAGE.write_text(before + BEGIN + HEAD + "".join(ordered) + END + after)
