"""The front as a table, for Markdown and the terminal."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_lowercase
from typing import NamedTuple

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from search.front.front import by_latency
from search.records.closing import Finalist
from search.records.formats import (
    ARROW,
    DASH,
    format_bits,
    format_bytes,
    format_ms,
    format_share,
    format_speedup,
)
from search.records.trial import ScoredTrial, TrialRecord
from search.report.points import ORIGINAL, Numbered, label

NO_FRONT = "No trial is on the front yet."
BESIDE = f"({ORIGINAL})"


class FrontRow(NamedTuple):
    """One trial of the front in display strings."""

    trial: str
    accuracy: str
    latency: str
    speedup: str
    size: str
    bits: str
    threads: str
    channels_removed: str


HEADINGS = FrontRow("Trial", "Accuracy", "Latency", "Speed-up", "Size", "Bits", "Threads", "Pruned")


def front_rows(front: Sequence[ScoredTrial], original: TrialRecord | None = None) -> list[FrontRow]:
    """Returns a row for every trial, the fastest first.

    Args:
        front: The trials on the front.
        original: The uncompressed network's; where the front lacks it, it comes last.
    """
    rows = [_row(record) for record in sorted(front, key=by_latency)]
    if rows and isinstance(original, ScoredTrial) and original not in front:
        rows.append(_row(original)._replace(trial=BESIDE))
    return rows


def caption(
    rows: Sequence[FrontRow], front: Sequence[ScoredTrial], original: TrialRecord | None
) -> str:
    """Explains what the columns of ``front_rows`` cannot say themselves."""
    first = next((record for record in front if record.is_original), original)
    lines = ["Speed-up: against the original at its own best thread count, with its 95 % interval."]
    arrow = next((row.bits for row in rows if ARROW in row.bits), None)
    if arrow is not None:
        stored, _, computed = arrow.split()
        lines.append(
            f"Bits {arrow}: weights stored in {stored} bits, computed in {computed} (the mean over"
            " convolutions and matrix products)."
        )
    if first is not None and any(row.trial == ORIGINAL for row in rows):
        lines.append(f"{ORIGINAL.capitalize()}: the uncompressed network, trial {first.number}.")
    if first is not None and any(row.trial == BESIDE for row in rows):
        lines.append(f"{BESIDE}: the uncompressed network, trial {first.number}, not on the front.")
    return " ".join(lines)


class FinalistRow(NamedTuple):
    """One finalist in display strings."""

    trial: str
    test: str
    validation: str
    latency: str
    speedup: str
    size: str
    bits: str
    threads: str
    channels_removed: str


FINALIST_HEADINGS = FinalistRow(
    "Trial", "Test accuracy", "On val.", "Latency", "Speed-up", "Size", "Bits", "Threads", "Pruned"
)
# Their columns are the first to go into two lines, the interval below its value.
INTERVALS = (HEADINGS.speedup, FINALIST_HEADINGS.test)


def finalist_rows(finalists: Sequence[Finalist]) -> list[FinalistRow]:
    """Returns a row for every finalist that stands, in their order, and for the original."""
    shown = [f for f in finalists if f.stands or f.is_original]
    return [_finalist_row(finalist) for finalist in shown]


def finalist_caption(finalists: Sequence[Finalist]) -> str:
    """Explains what the columns of the finalists' table cannot say themselves."""
    lines = [
        "Measured together; scored once on the test split, beside it validation. "
        "Speed-up: against the original at its "
        "best thread count; the intervals hold for all points together with 95 %, an accuracy's "
        "for itself."
    ]
    if any(f.tie is not None for f in finalists):
        lines.append(
            "Trials with the same letter tie: neither latency nor accuracy tells them apart."
        )
    left = [f for f in finalists if not f.stands and not f.is_original]
    if left:
        reasons = "; ".join(f"trial {f.number} ({f.reason})" for f in left)
        lines.append(f"Left the front: {reasons}.")
    beaten = next((f for f in finalists if not f.stands and f.is_original), None)
    if beaten is not None:
        lines.append(f"{BESIDE}: the uncompressed network, not on the front: {beaten.reason}.")
    return " ".join(lines)


def name_tie(tie: int) -> str:
    """Returns the letter of a group of points that cannot be told apart."""
    return ascii_lowercase[tie - 1]


def markdown_table(front: Sequence[ScoredTrial], original: TrialRecord | None = None) -> str:
    """Returns ``front_rows`` as a Markdown table with its caption."""
    rows = front_rows(front, original)
    return _markdown(HEADINGS, rows, caption(rows, front, original)) if rows else NO_FRONT


def finalist_markdown(finalists: Sequence[Finalist]) -> str:
    """Returns ``finalist_rows`` as a Markdown table with its caption."""
    return _markdown(FINALIST_HEADINGS, finalist_rows(finalists), finalist_caption(finalists))


def front_table(front: Sequence[ScoredTrial], original: TrialRecord | None = None) -> FittedTable:
    """Returns ``front_rows`` as a table for the terminal."""
    rows = front_rows(front, original)
    return FittedTable(HEADINGS, rows, caption(rows, front, original) if rows else NO_FRONT)


def finalist_table(finalists: Sequence[Finalist]) -> FittedTable:
    """Returns ``finalist_rows`` as a table for the terminal."""
    rows = finalist_rows(finalists)
    return FittedTable(FINALIST_HEADINGS, rows, finalist_caption(finalists))


@dataclass(frozen=True)
class FittedTable:
    """A table that goes into two lines a row where the terminal is narrow, and cuts nothing.

    Attributes:
        headings: One for each column.
        rows: Their cells.
        note: Below the table.
    """

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draws it as wide as there is room."""
        widths, gap = self._fit(options.max_width)
        table = Table(
            box=SIMPLE_HEAD,
            show_edge=False,
            pad_edge=False,
            padding=(0, gap - 1, 0, 0),  # the box itself separates columns by one
            caption=Text(self.note),
            caption_justify="left",
        )
        for heading, width in zip(self.headings, widths, strict=True):
            table.add_column(heading, justify="right", width=width)
        for row in self.rows:
            # Text, because a plain string is read as markup and [..] may be taken for a tag.
            table.add_row(*map(Text, row))
        yield table

    def _fit(self, room: int) -> tuple[list[int], int]:
        """Returns the columns' widths and the gap between two of them."""
        columns = list(zip(self.headings, *self.rows, strict=True))
        widths = [max(map(len, column)) for column in columns]
        halves = [max(map(_half, column)) for column in columns]
        gap = 2
        # Intervals go below their values first; then whatever gains most.
        order = sorted(
            range(len(columns)),
            key=lambda i: (self.headings[i] not in INTERVALS, halves[i] - widths[i]),
        )
        for index in order:
            if sum(widths) + gap * (len(columns) - 1) <= room:
                break
            if self.headings[index] not in INTERVALS:
                gap = 1
            if sum(widths) + gap * (len(columns) - 1) > room:
                widths[index] = halves[index]
        return widths, gap


def _half(text: str) -> int:
    """Returns how wide a text is in two lines, broken between words where that is best."""
    words = text.split()
    breaks = range(1, len(words))
    found = [max(len(" ".join(words[:at])), len(" ".join(words[at:]))) for at in breaks]
    return min(found, default=len(text))


def _markdown(headings: Sequence[str], rows: Sequence[Sequence[str]], note: str) -> str:
    lines = [_markdown_line(headings), "|" + " ---: |" * len(headings)]
    lines += [_markdown_line(row) for row in rows]
    return "\n".join([*lines, "", note])


def escape_markdown(text: str) -> str:
    """Returns ``text`` such that Markdown shows it as it is, inside a table too."""
    flat = " ".join(text.split())
    return html.escape(re.sub(r"([\\`*_{}\[\]#!|~])", r"\\\1", flat), quote=False)


def _row(record: ScoredTrial) -> FrontRow:
    figures = record.figures
    return FrontRow(
        trial=label(record),
        accuracy=format_share(figures.val_accuracy),
        latency=format_ms(figures.latency_ms),
        speedup=format_speedup(figures),
        size=format_bytes(figures.size_bytes),
        bits=format_bits(record.point.whole("bits"), figures.effective_bits),
        threads=str(record.point["threads"]),
        channels_removed=format_share(figures.channels_removed, decimals=0),
    )


def _finalist_row(finalist: Finalist) -> FinalistRow:
    figures = finalist.figures
    low, high = 100 * finalist.test_low, 100 * finalist.test_high
    return FinalistRow(
        trial=_finalist_label(finalist),
        test=f"{format_share(finalist.test_accuracy)} [{low:.1f}{DASH}{high:.1f}]",
        validation=format_share(figures.val_accuracy),
        latency=format_ms(figures.latency_ms),
        speedup=format_speedup(figures),
        size=format_bytes(figures.size_bytes),
        bits=format_bits(finalist.point.whole("bits"), figures.effective_bits),
        threads=str(finalist.point["threads"]),
        channels_removed=format_share(figures.channels_removed, decimals=0),
    )


def _finalist_label(finalist: Finalist) -> str:
    return label_tied(finalist, finalist.tie) if finalist.stands else BESIDE


def label_tied(one: Numbered, tie: int | None) -> str:
    """Returns what a trial is called, with the letter of those that it ties with."""
    name = label(one)
    if tie is None:
        return name
    short = name[:4] + "." if one.is_original else name  # for 80 columns
    return f"{short} {name_tie(tie)}"


def _markdown_line(row: Sequence[str]) -> str:
    return "| " + " | ".join(escape_markdown(cell) for cell in row) + " |"
