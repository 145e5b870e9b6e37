"""The front as rows, as Markdown and on the terminal."""

from __future__ import annotations

import io
from collections import Counter
from itertools import chain
from typing import Any

import pytest
from rich.console import Console

from search.records.closing import Finalist
from search.records.formats import ARROW, DASH, TIMES
from search.records.trial import ScoredTrial
from search.report.table import (
    NO_FRONT,
    FrontRow,
    escape_markdown,
    finalist_caption,
    finalist_markdown,
    finalist_rows,
    finalist_table,
    front_rows,
    front_table,
    markdown_table,
)
from tests.plants import plant, plant_finalist

SPEEDUP = f"2.31{TIMES} [2.25{DASH}2.38]"


def test_row_of_known_figures() -> None:
    row = FrontRow("7", "91.42 %", "0.500 ms", SPEEDUP, "431 KiB", "8", "2", "38 %")
    assert front_rows([plant(7)]) == [row]


def test_rows_come_by_latency() -> None:
    front = [plant(1, latency_ms=3.0), plant(2, latency_ms=2.0), plant(0, latency_ms=1.0)]
    assert [row.trial for row in front_rows(front)] == ["original", "2", "1"]


def test_dominated_original_comes_last_for_comparison() -> None:
    original, faster = plant(0, latency_ms=1.0), plant(1, latency_ms=0.5)
    assert [row.trial for row in front_rows([faster], original)] == ["1", "(original)"]
    assert [row.trial for row in front_rows([faster, original], original)] == ["1", "original"]
    assert front_rows([], original) == []
    assert "trial 0, not on the front" in markdown_table([faster], original)


def test_markdown_of_a_planted_front() -> None:
    front = [plant(7), plant(3, latency_ms=0.25, bits=4, effective_bits=32.0)]
    interval = f"2.31{TIMES} \\[2.25{DASH}2.38\\]"
    assert markdown_table(front).splitlines() == [
        "| Trial | Accuracy | Latency | Speed-up | Size | Bits | Threads | Pruned |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        f"| 3 | 91.42 % | 0.250 ms | {interval} | 431 KiB | 4 {ARROW} 32 | 2 | 38 % |",
        f"| 7 | 91.42 % | 0.500 ms | {interval} | 431 KiB | 8 | 2 | 38 % |",
        "",
        "Speed-up: against the original at its own best thread count, with its 95 % interval."
        f" Bits 4 {ARROW} 32: weights stored in 4 bits, computed in 32 (the mean over convolutions"
        " and matrix products).",
    ]


def test_arrow_is_explained_only_where_it_occurs() -> None:
    assert "stored in" not in markdown_table([plant(7)])


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("a|b", "a\\|b"),
        ("*bold* _it_", "\\*bold\\* \\_it\\_"),
        ("[x](y)", "\\[x\\](y)"),
        ("<b>&", "&lt;b&gt;&amp;"),
        ("two\nlines", "two lines"),
        ("back\\slash `code`", "back\\\\slash \\`code\\`"),
    ],
)
def test_markdown_shows_text_as_it_is(text: str, escaped: str) -> None:
    assert escape_markdown(text) == escaped


def test_terminal_shows_the_same_cells() -> None:
    console = Console(file=io.StringIO(), width=120)
    with console.capture() as shown:
        console.print(front_table([plant(7)]))
    for cell in front_rows([plant(7)])[0]:
        assert cell in shown.get()


def test_original_is_explained_only_where_it_occurs() -> None:
    assert "uncompressed network, trial 0" in markdown_table([plant(0)])
    assert "uncompressed" not in markdown_table([plant(7)])


def test_80_columns_cut_nothing() -> None:
    rows = [plant(0, latency_ms=0.0361), plant(31, bits=16, effective_bits=32.0, size_bytes=50_000)]
    console = Console(file=io.StringIO(), width=80)
    with console.capture() as shown:
        console.print(front_table(rows))
    assert "\N{HORIZONTAL ELLIPSIS}" not in shown.get()
    for text in ("original", "0.0361 ms", f"[2.25{DASH}2.38]", f"16 {ARROW} 32", "Pruned", "38 %"):
        assert text in shown.get()


@pytest.mark.parametrize("width", range(76, 130))
def test_a_narrow_terminal_takes_two_lines_and_cuts_nothing(width: int) -> None:
    figures: dict[str, Any] = {"speedup": 12.34, "speedup_low": 11.98, "speedup_high": 12.77}
    small = plant(5, bits=4, effective_bits=26.8, latency_ms=0.0125, size_bytes=15_053, **figures)
    finalists = [
        confirmed(small, test_accuracy=0.9987, test_low=0.9951, test_high=1.0, tie=1),
        confirmed(plant(118), tie=1),
        confirmed(plant(0, latency_ms=0.0392), stands=False, reason="18 is faster"),
    ]
    for table in (finalist_table(finalists), front_table([small, plant(118)], plant(0))):
        stream = io.StringIO()
        Console(file=stream, width=width).print(table)
        lines = stream.getvalue().splitlines()
        assert max(map(len, lines)) <= width
        shown = Counter(" ".join(lines).split())
        wanted = " ".join([*table.headings, *chain(*table.rows), table.note])
        assert Counter(wanted.split()) <= shown
        body = lines[lines.index(next(line for line in lines if "─" in line)) + 1 :]
        note = next(i for i, line in enumerate(body) if line.startswith(table.note.split()[0]))
        assert note <= 2 * len(table.rows)


def test_empty_front_says_so() -> None:
    console = Console(file=io.StringIO(), width=120)
    with console.capture() as shown:
        console.print(front_table([]))
    assert NO_FRONT in shown.get()
    assert markdown_table([]) == NO_FRONT


# ---- finalists


def confirmed(record: ScoredTrial, **changes: Any) -> Finalist:
    """A finalist that stands."""
    return plant_finalist(record, **({"test_low": 0.894, "test_high": 0.906} | changes))


def test_finalists_in_their_order_with_ties_and_who_left() -> None:
    finalists = [
        confirmed(plant(12), tie=1),
        confirmed(plant(3), tie=1, test_accuracy=0.88),
        confirmed(plant(0), stands=False, reason="12 is faster and not measurably less accurate"),
        confirmed(plant(7), stands=False, reason="3 is faster and not measurably less accurate"),
    ]
    rows = finalist_rows(finalists)
    assert [row.trial for row in rows] == ["12 a", "3 a", "(original)"]
    assert rows[0].test == f"90.00 % [89.4{DASH}90.6]"
    assert rows[0].validation == "91.42 %"
    note = finalist_caption(finalists)
    assert "Left the front: trial 7 (3 is faster and not measurably less accurate)." in note
    assert "same letter tie" in note
    assert "(original): the uncompressed network, not on the front" in note


def test_without_ties_nothing_is_said_of_them() -> None:
    finalists = [confirmed(plant(1)), confirmed(plant(0))]
    assert [row.trial for row in finalist_rows(finalists)] == ["1", "original"]
    assert "tie" not in finalist_caption(finalists)
    assert "Left" not in finalist_caption(finalists)


@pytest.mark.parametrize("width", [80, 120])
def test_finalists_fit_a_terminal(width: int) -> None:
    stream = io.StringIO()
    finalists = [confirmed(plant(118), tie=1), confirmed(plant(0), tie=1)]
    Console(file=stream, width=width).print(finalist_table(finalists))
    lines = stream.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    for cell in ("118 a", "orig. a", "91.42 %", "0.500 ms", "431 KiB", "38 %", "Threads", "Pruned"):
        assert any(cell in line for line in lines)
    assert finalist_markdown(finalists).splitlines()[0].startswith("| Trial | Test accuracy |")
