"""The front as a table, for Markdown and the terminal; knows nothing of how a front is found."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from typing import NamedTuple

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from search.records import TrialRecord
from search.report.formats import (
    ARROW,
    format_bits,
    format_bytes,
    format_ms,
    format_share,
    format_speedup,
)
from search.report.points import ORIGINAL, label

NO_FRONT = "No trial is on the front yet."
BESIDE = f"({label(ORIGINAL)})"


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


def front_rows(front: Sequence[TrialRecord], original: TrialRecord | None = None) -> list[FrontRow]:
    """Returns a row for every trial, the fastest first.

    Args:
        front: The trials on the front.
        original: Trial 0; where the front lacks it, it comes last, for comparison.
    """
    rows = [_row(record) for record in sorted(front, key=_by_latency)]
    if rows and original is not None and original not in front:
        rows.append(_row(original)._replace(trial=BESIDE))
    return rows


def caption(rows: Sequence[FrontRow]) -> str:
    """Explains what the columns of ``rows`` cannot say themselves."""
    lines = ["Speed-up: against the original at its own best thread count, with its interval."]
    arrow = next((row.bits for row in rows if ARROW in row.bits), None)
    if arrow is not None:
        stored, _, computed = arrow.split()
        lines.append(
            f"Bits {arrow}: weights stored in {stored} bits, computed in {computed} (the mean over"
            " convolutions and matrix products)."
        )
    if any(row.trial == label(ORIGINAL) for row in rows):
        lines.append(f"{label(ORIGINAL).capitalize()}: the uncompressed network, trial {ORIGINAL}.")
    if any(row.trial == BESIDE for row in rows):
        lines.append(f"{BESIDE}: the uncompressed network, trial {ORIGINAL}, not on the front.")
    return " ".join(lines)


def markdown_table(front: Sequence[TrialRecord], original: TrialRecord | None = None) -> str:
    """Returns ``front_rows`` as a Markdown table with its caption."""
    rows = front_rows(front, original)
    if not rows:
        return NO_FRONT
    lines = [_markdown_line(HEADINGS), "|" + " ---: |" * len(HEADINGS)]
    lines += [_markdown_line(row) for row in rows]
    return "\n".join([*lines, "", caption(rows)])


def front_table(front: Sequence[TrialRecord], original: TrialRecord | None = None) -> Table:
    """Returns ``front_rows`` as a table for the terminal."""
    rows = front_rows(front, original)
    note = caption(rows) if rows else NO_FRONT
    table = Table(
        box=SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        caption=Text(note),
        caption_justify="left",
    )
    for heading, *cells in zip(HEADINGS, *rows, strict=True):
        words = max(len(word) for text in (heading, *cells) for word in text.split())
        width = max([words, *map(len, cells)])
        # In 80 columns a speed-up goes above its interval; nothing is cut.
        fixed = None if heading == HEADINGS.speedup else width
        table.add_column(heading, justify="right", width=fixed, min_width=words, max_width=width)
    for row in rows:
        # Text, because a plain string is read as markup and [..] may be taken for a tag.
        table.add_row(*(Text(cell) for cell in row))
    return table


def escape_markdown(text: str) -> str:
    """Returns ``text`` such that Markdown shows it as it is, inside a table too."""
    flat = " ".join(text.split())
    return html.escape(re.sub(r"([\\`*_{}\[\]()#!|~])", r"\\\1", flat), quote=False)


def _row(record: TrialRecord) -> FrontRow:
    figures = record.figures
    return FrontRow(
        trial=label(record.number),
        accuracy=format_share(figures.val_accuracy),
        latency=format_ms(figures.latency_ms),
        speedup=format_speedup(figures),
        size=format_bytes(figures.size_bytes),
        bits=format_bits(record.point.bits, figures.effective_bits),
        threads=str(record.point.threads),
        channels_removed=format_share(figures.channels_removed, decimals=0),
    )


def _by_latency(record: TrialRecord) -> tuple[float, int]:
    latency_ms = record.figures.latency_ms
    return (float("inf") if latency_ms is None else latency_ms), record.number


def _markdown_line(row: FrontRow) -> str:
    return "| " + " | ".join(escape_markdown(cell) for cell in row) + " |"
