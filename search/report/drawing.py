"""What the page's script draws from, as JSON values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

from search.front.front import hypervolumes
from search.records.formats import (
    DASH,
    format_bytes,
    format_ms,
    format_ms_interval,
    format_share,
    format_speedup,
)
from search.records.point import shared_dimensions
from search.records.trial import TrialRecord
from search.report.hovers import hover, hover_stopped
from search.report.limits import accuracy_stops, latency_stops
from search.report.points import Cut, Dot, Window, frame, label, place, staircase
from search.report.table import name_tie
from search.space.dimension import is_logarithmic, known_dimensions

OBJECTIVES: Mapping[str, str] = {"cpu": "processor time"}  # that are not called as they are named
# Digits that label a logarithmic axis, and those where so few of them are on it.
ROUND, FINER, FEWEST_TICKS = ("1", "2", "5"), ("1", "1.5", "2", "3", "4", "5", "7"), 3


def name_of(name: str) -> str:
    """Returns what the page calls a dimension or an objective."""
    one = known_dimensions().get(name)
    return OBJECTIVES.get(name, name) if one is None else one.label


def front_data(
    command: str, dots: Sequence[Dot], searched: Sequence[Dot], cuts: Sequence[Cut], split: str
) -> dict[str, Any]:
    """Returns the plane of accuracy and latency, and what a point is chosen with.

    Args:
        command: Picks from the study, but for what is picked.
        dots: What is shown, by latency.
        searched: Shown on request beside finalists.
        cuts: Stopped trials, shown on request.
        split: That the accuracies are of.
    """
    front = [dot for dot in dots if dot.kind == "front"]
    return {
        "split": split,
        "dots": [
            *(_dot(dot, _tied(dot, dots)) for dot in dots),
            *(_dot(dot, []) for dot in searched),
            *map(_cut, cuts),
        ],
        "line": [[dot.latency_ms, dot.accuracy] for dot in staircase(dots)],
        "views": _views(dots, searched, cuts),
        "command": command,
        "stops": {
            "latency_ms": latency_stops([dot.latency_ms for dot in front]) if front else [],
            "accuracy": accuracy_stops([dot.accuracy for dot in front]) if front else [],
        },
    }


def parallel_data(records: Sequence[TrialRecord], numbers: Sequence[int]) -> dict[str, Any]:
    """Returns every complete trial's value on every axis: dimensions, latency and accuracy.

    A dimension that all trials share has no axis. Trials far worse than the rest are left out,
    because they would squeeze the others together.

    Args:
        records: Finished trials.
        numbers: Of the trials on the search's front.
    """
    placed = [dot for dot in place(records, numbers) if dot.kind != "infeasible"]
    if not placed:
        return {"axes": [], "accuracies": [], "left_out": 0}
    view = frame(placed)
    # In order of accuracy: the better is drawn above the worse.
    dots = sorted((d for d in placed if d.accuracy >= view.lowest), key=lambda d: d.accuracy)
    points = [dot.record.point for dot in dots]
    axes = [_axis(name, [p[name] for p in points]) for name in shared_dimensions(points)]
    latencies = [dot.latency_ms for dot in dots]
    percents = [100 * dot.accuracy for dot in dots]
    latency = _log_axis(latencies) if view.log_latency else {"values": latencies}
    return {
        "axes": [
            *(axis for axis in axes if axis is not None),
            {"label": "latency (ms)", **latency},
            {"label": "accuracy (%)", "values": percents},
        ],
        "accuracies": percents,
        "left_out": len(placed) - len(dots),
    }


def progress_data(records: Sequence[TrialRecord], objectives: Sequence[str]) -> dict[str, Any]:
    """Returns the hypervolume after every trial, and the minutes that all trials took by then.

    Minutes are the trials' own, so that a night between two runs of a study is not counted.
    """
    return {
        "numbers": [record.number for record in records],
        "minutes": [seconds / 60 for seconds in accumulate(r.wall_s for r in records)],
        "hypervolumes": hypervolumes(records, objectives),
    }


def _tied(dot: Dot, dots: Sequence[Dot]) -> list[str]:
    if dot.tie is None:
        return []
    return [other.label for other in dots if other.tie == dot.tie and other is not dot]


def _dot(dot: Dot, tied: Sequence[str]) -> dict[str, Any]:
    return {
        "number": dot.number,
        "trial": dot.label,
        "kind": dot.kind,
        "original": dot.is_original,
        "accuracy": dot.accuracy,
        "latency_ms": dot.latency_ms,
        "low_ms": dot.low_ms,
        "high_ms": dot.high_ms,
        "accuracy_low": dot.accuracy_low,
        "accuracy_high": dot.accuracy_high,
        "tie": None if dot.tie is None else name_tie(dot.tie),
        "tied": list(tied),
        "brief": f"{format_share(dot.accuracy)} at {format_ms(dot.latency_ms)}",
        "facts": _facts(dot) if dot.kind == "front" else [],
        "hover": hover(dot, tied),
    }


def _facts(dot: Dot) -> list[str]:
    """Returns what is said of a chosen point: accuracy, latency, speed-up, size."""
    accuracy = format_share(dot.accuracy)
    if dot.accuracy_low < dot.accuracy_high:
        accuracy += f" [{100 * dot.accuracy_low:.1f}{DASH}{100 * dot.accuracy_high:.1f}]"
    return [
        accuracy,
        format_ms_interval(dot.latency_ms, dot.low_ms, dot.high_ms),
        format_speedup(dot.figures),
        format_bytes(dot.figures.size_bytes),
    ]


def _cut(cut: Cut) -> dict[str, Any]:
    trained = cut.accuracy is not None
    return {
        "number": cut.record.number,
        "trial": label(cut.record),
        "kind": "stopped" if trained else "untrained",
        "original": False,
        "accuracy": cut.accuracy,
        "latency_ms": cut.latency_ms,
        "low_ms": cut.low_ms,
        "high_ms": cut.high_ms,
        "accuracy_low": cut.accuracy,
        "accuracy_high": cut.accuracy,
        "tie": None,
        "tied": [],
        "brief": "",
        "facts": [],
        "hover": hover_stopped(cut),
    }


def _views(dots: Sequence[Dot], searched: Sequence[Dot], cuts: Sequence[Cut]) -> dict[str, Any]:
    """Returns the window that suits what is shown at first, and those for what may come to it."""
    if not dots:
        return {}
    shown = frame(dots)
    views: dict[str, Any] = {"shown": {**_view(shown), "log_latency": shown.log_latency}}
    for kind in ("searched", "infeasible"):
        if extra := [dot for dot in searched if dot.kind == kind]:
            views[kind] = _view(frame([*dots, *extra]))
    if trained := [cut.accuracy for cut in cuts if cut.accuracy is not None]:
        views["stopped"] = _view(frame(dots, trained))
    return views


def _view(view: Window) -> dict[str, Any]:
    return {"lowest": view.lowest, "highest": view.highest}


def _axis(name: str, values: Sequence[Any]) -> dict[str, Any] | None:
    """Returns one axis of the parallel coordinates; None where all values are the same."""
    distinct = sorted(set(values))
    if len(distinct) < 2:
        return None
    heading = {"label": name_of(name)}
    if is_logarithmic(name):
        return {**heading, **_log_axis(values)}
    if any(isinstance(value, float) for value in distinct):
        return {**heading, "values": list(values)}
    # Words, and whole numbers of which only a few are used, are evenly spaced.
    places = {value: place for place, value in enumerate(distinct)}
    return {
        **heading,
        "values": [places[value] for value in values],
        "tickvals": list(places.values()),
        "ticktext": [str(value) for value in distinct],
    }


def _log_axis(values: Sequence[float]) -> dict[str, Any]:
    """Returns the logarithms of positive values, with ticks that are round numbers.

    These are 1, 2 and 5 of every decade, more within less than one, or the ends.
    """
    low, high = min(values), max(values)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    inside = [low, high]
    for digits in (FINER, ROUND):
        ticks = [float(f"{digit}e{decade}") for decade in decades for digit in digits]
        found = [tick for tick in ticks if low <= tick <= high]
        inside = found if len(found) >= FEWEST_TICKS else inside
    return {
        "values": [math.log10(value) for value in values],
        "tickvals": [math.log10(tick) for tick in inside],
        "ticktext": [f"{tick:.3g}" for tick in inside],
    }
