"""What the page says of a trial when it is pointed at, in plotly's small HTML."""

from __future__ import annotations

import html
import textwrap
from collections.abc import Mapping, Sequence

from search.records.formats import (
    format_bits,
    format_bytes,
    format_count,
    format_ms,
    format_ms_interval,
    format_share,
    format_speedup,
)
from search.records.trial import Cost, TrialRecord
from search.report.points import Cut, Dot
from search.report.table import name_tie
from search.space.dimension import known_dimensions

# Dimensions that share a line, or have more to say than their value.
ARRANGED = (
    "prune_ratio", "bits", "threads", "optimizer", "learning_rate", "schedule", "distill_weight",
    "distill_temperature",
)  # fmt: skip
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
    lines = [*_tie(dot, tied), *_scores(dot), *_costs(dot, dot.figures)]
    return _lines(dot.record, dot.figures, standing, lines)


def hover_stopped(cut: Cut) -> str:
    """Writes why a trial was stopped, what was known by then, and its recipe."""
    accuracy = "not trained"
    if cut.accuracy is not None:
        accuracy = f"accuracy by then {format_share(cut.accuracy)} in PyTorch, on validation"
    figures = cut.record.figures
    standing = f"stopped, {cut.record.reason}"
    return _lines(cut.record, figures, standing, [accuracy, *_costs(cut, figures)])


def _lines(record: TrialRecord, cost: Cost, standing: str, lines: Sequence[str]) -> str:
    title, *more = textwrap.wrap(f"Trial {record.number}: {standing}", WIDTH)
    rest = [*more, *lines, "", *_recipe(record, cost)]
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
    return [f"{accuracy} (float {format_share(dot.figures.float_accuracy)})"]


def _costs(dot: Dot | Cut, cost: Cost) -> list[str]:
    return [
        f"latency {format_ms_interval(dot.latency_ms, dot.low_ms, dot.high_ms)}",
        f"speed-up {format_speedup(cost)}",
        f"size {format_bytes(cost.size_bytes)}, {format_count(cost.macs)} MACs,"
        f" {format_count(cost.parameters)} parameters",
        f"CPU {format_ms(cost.cpu_ms)}, cold start {format_ms(cost.cold_start_ms)}",
        f"memory {format_bytes(cost.peak_rss_bytes)}",
    ]


def _recipe(record: TrialRecord, cost: Cost) -> list[str]:
    point = record.point
    known = known_dimensions()
    told = {n: known[n].describe(v) if n in known else f"{n} {v}" for n, v in point.values.items()}
    bits = f"bits {format_bits(point.whole('bits'), cost.effective_bits)}"
    bits += f", {cost.integer_operators} of {cost.compute_operators} operators in integers"
    return [
        f"{told['prune_ratio']},"
        f" {format_share(cost.channels_removed, decimals=0)} of channels removed",
        bits,
        *_told(told, *(name for name in told if name not in ARRANGED)),
        *_told(told, "threads"),
        *_told(told, "optimizer", "learning_rate", "schedule"),
        *_told(told, "distill_weight", "distill_temperature"),
    ]


def _told(told: Mapping[str, str], *names: str) -> list[str]:
    """Returns one line of what a point says of some dimensions, or none."""
    line = ", ".join(told[name] for name in names if name in told)
    return textwrap.wrap(line, WIDTH) if line else []
