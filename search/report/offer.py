"""Shows what there is to pick from in the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from search.front.candidates import Candidate, Offer
from search.records.formats import (
    DASH,
    TIMES,
    format_bits,
    format_bytes,
    format_counted,
    format_ms_interval,
    format_share,
    format_speedup,
)
from search.report.table import BESIDE, label_tied

# Two figures share a column, one above the other: 80 columns are enough.
COLUMNS = (
    "Trial", "Accuracy", "Latency ms", "Speed-up", "p99 ms,\nCPU ms", "Size KiB,\nRAM MiB",
    "Bits,\nthreads", "Pruned",
)  # fmt: skip


def offer_table(offered: Offer) -> Table:
    """Returns the front as a table, the fastest first, intervals below their values.

    The original comes last, in brackets, where the front lacks it.
    """
    table = Table(
        box=SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=0,
        caption=Text(_caption(offered)),
        caption_justify="left",
    )
    for heading in COLUMNS:
        table.add_column(Text(heading), justify="right", no_wrap=True)
    for candidate in offered.candidates:
        name = label_tied(candidate, candidate.tie)
        table.add_row(*map(Text, _cells(candidate, name)))
    if offered.original is not None and offered.original not in offered.candidates:
        table.add_row(*map(Text, _cells(offered.original, BESIDE)))
    return table


def describe(candidate: Candidate) -> str:
    """Returns a line about a point: what it gives, and how it is run."""
    figures, point = candidate.figures, candidate.point
    latency = format_ms_interval(candidate.latency_ms, *figures.latency_interval_ms)
    return (
        f"trial {candidate.number}: {format_share(candidate.accuracy)} on {candidate.split}, "
        f"{latency}, {format_speedup(figures)}, {format_bytes(figures.size_bytes)}, "
        f"{point['bits']} bits, {format_counted(point.whole('threads'), 'thread')}"
    )


def _cells(candidate: Candidate, name: str) -> Sequence[str]:
    figures, point = candidate.figures, candidate.point
    size_kib, rss_mib = figures.size_bytes / 1024, figures.peak_rss_bytes / 1024**2
    low_ms, high_ms = figures.latency_interval_ms
    return (
        name,
        f"{format_share(candidate.accuracy)}\n"
        f"{100 * candidate.accuracy_low:.1f}{DASH}{100 * candidate.accuracy_high:.1f}",
        f"{_plain(figures.latency_ms)}\n{_plain(low_ms)}{DASH}{_plain(high_ms)}",
        f"{figures.speedup:.2f}{TIMES}",
        f"{_plain(figures.p99_ms)}\n{_plain(figures.cpu_ms)}",
        f"{_plain(size_kib)}\n{_plain(rss_mib)}",
        f"{format_bits(point.whole('bits'), figures.effective_bits)}\n"
        f"{format_counted(point.whole('threads'), 'thread')}",
        format_share(figures.channels_removed, decimals=0),
    )


def _plain(value: float | None) -> str:
    """Writes three significant digits, whole ones all kept."""
    if value is None:
        return DASH
    return f"{value:.0f}" if value >= 100 else f"{value:#.3g}"


def _caption(offered: Offer) -> str:
    if offered.confirmed:
        lines = ["Accuracy on the test split and latency, each with its interval below it."]
    else:
        lines = ["No closing round was held: accuracy is that of validation, latency the search's."]
    if any(candidate.tie is not None for candidate in offered.candidates):
        lines.append("Trials with the same letter cannot be told apart.")
    lines.append("p99: raw, 99 % of runs are faster. Pruned: share of channels removed.")
    return " ".join(lines)
