"""What the page says of a trial when it is pointed at, in plotly's small HTML; draws nothing."""

from __future__ import annotations

import html
import textwrap
from collections.abc import Mapping, Sequence

from search.records import TrialRecord
from search.report.formats import (
    format_bits,
    format_bytes,
    format_count,
    format_ms,
    format_ms_interval,
    format_share,
    format_speedup,
)
from search.report.points import Cut, Dot
from search.report.table import name_tie

WIDTH = 48  # letters; what a phone can show
STANDINGS: Mapping[str, str] = {
    "front": "on the front",
    "dominated": "dominated",
    "searched": "not among the finalists",
}


def hover(dot: Dot, tied: Sequence[str] = ()) -> str:
    """Writes the whole recipe and all figures, a few to a line.

    Args:
        dot: The trial.
        tied: The others that it cannot be told apart from.
    """
    standing = STANDINGS.get(dot.kind) or dot.record.reason
    return _lines(dot.record, standing, [*_tie(dot, tied), *_scores(dot), *_figures(dot)])


def hover_stopped(cut: Cut) -> str:
    """Writes why a trial was stopped, what was known by then, and its recipe."""
    accuracy = "not trained"
    if cut.accuracy is not None:
        accuracy = f"accuracy by then {format_share(cut.accuracy)} in PyTorch, on validation"
    return _lines(cut.record, f"stopped, {cut.record.reason}", [accuracy, *_figures(cut)])


def _lines(record: TrialRecord, standing: str, lines: Sequence[str]) -> str:
    title, *more = textwrap.wrap(f"Trial {record.number}: {standing}", WIDTH)
    rest = [*more, *lines, "", *_recipe(record)]
    return "<br>".join([f"<b>{html.escape(title)}</b>", *(html.escape(line) for line in rest)])


def _tie(dot: Dot, tied: Sequence[str]) -> list[str]:
    if dot.tie is None or not tied:
        return []
    sentence = (
        f"tie {name_tie(dot.tie)} with {', '.join(tied)}: neither latency nor accuracy tells "
        "them apart"
    )
    return textwrap.wrap(sentence, WIDTH)


def _scores(dot: Dot) -> list[str]:
    accuracy = f"accuracy {format_share(dot.accuracy)}"
    if dot.validation is not None:
        accuracy += f" on test, {format_share(dot.validation)} on validation"
    elif dot.kind == "searched":
        accuracy += " on validation"
    return [f"{accuracy} (float {format_share(dot.record.figures.float_accuracy)})"]


def _figures(dot: Dot | Cut) -> list[str]:
    figures = dot.record.figures
    return [
        f"latency {format_ms_interval(dot.latency_ms, dot.low_ms, dot.high_ms)}",
        f"speed-up {format_speedup(figures)}",
        f"size {format_bytes(figures.size_bytes)}, {format_count(figures.macs)} MACs,"
        f" {format_count(figures.parameters)} parameters",
        f"CPU {format_ms(figures.cpu_ms)}, cold start {format_ms(figures.cold_start_ms)}",
        f"memory {format_bytes(figures.peak_rss_bytes)}",
    ]


def _recipe(record: TrialRecord) -> list[str]:
    point, figures = record.point, record.figures
    bits = f"bits {format_bits(point.bits, figures.effective_bits)}"
    if figures.compute_operators is not None:
        integers = figures.integer_operators or 0
        bits += f", {integers} of {figures.compute_operators} operators in integers"
    return [
        f"prune ratio {point.prune_ratio:.3g},"
        f" {format_share(figures.channels_removed, decimals=0)} of channels removed",
        bits,
        f"threads {point.threads}",
        f"{point.optimizer}, learning rate {point.learning_rate:.3g}, {point.schedule}",
        f"distillation weight {point.distill_weight:.3g},"
        f" temperature {point.distill_temperature:.3g}",
    ]
