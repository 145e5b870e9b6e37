"""The launches of a comparison become one measurement."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from search.benchmark.estimates import (
    RUNS_FOR_PERCENTILE,
    percentile,
    sign_test_interval,
)
from search.benchmark.launches import (
    LEVEL,
    TAIL_MS,
    THROUGHPUT_MS,
    Launch,
    single_request,
)
from search.benchmark.plan import (
    LAUNCHES_FOR_SPREAD,
    LOG_HALF_WIDTH,
    MOST_RUNS,
    POOR_LOG_HALF_WIDTH,
    PROTOCOL_VERSION,
    Ask,
    Plan,
    Reply,
)
from search.records.measurement import Measurement, Quality

# Slow models get more of the budget for the percentiles of single runs.
TAIL_SHARE = 0.25


def interval(launches: Sequence[Launch]) -> tuple[float, float]:
    """Returns the ends of the interval of the log ratio that ``launches`` give together.

    A few launches are trusted no further than the widest of their own intervals reach. From
    ``LAUNCHES_FOR_SPREAD`` on the launches themselves are the sample, which holds the median launch
    with ``LEVEL`` by the sign test, however launches differ: between its extremes, and from nine
    launches on between values further in.
    """
    if len(launches) < LAUNCHES_FOR_SPREAD:
        return min(launch.low for launch in launches), max(launch.high for launch in launches)
    return sign_test_interval([launch.estimate for launch in launches], LEVEL)


def half_width(launches: Sequence[Launch]) -> float:
    """Returns half of the width of their ``interval``, about the relative error."""
    low, high = interval(launches)
    return (high - low) / 2


def quality_of(low: float, high: float) -> Quality:
    """Says how far a final interval of a log ratio tells what there is to tell."""
    half = (high - low) / 2
    if half > POOR_LOG_HALF_WIDTH:
        return "poor"
    return "resolved" if half <= LOG_HALF_WIDTH else "unresolved"


@dataclass(frozen=True)
class Alone:
    """What the candidate does by itself: times of single runs, throughput, executed operators."""

    times_ms: tuple[float, ...]
    images_per_s: float | None
    operators: Mapping[str, int]


def measure_alone(ask: Ask, plan: Plan, launches: Sequence[Launch]) -> Alone:
    """Completes the single-stream pass, then saturates the candidate and counts its operators."""
    times = [t for launch in launches for t in launch.single["candidate"]["times_ms"]]
    role = {"role": "candidate"}
    if len(times) < MOST_RUNS:
        limit_ms = max(TAIL_MS, TAIL_SHARE * plan.budget_s * 1e3)
        missing = MOST_RUNS - len(times)
        times += ask(single_request("candidate", missing, limit_ms))["times_ms"]
    saturated = {
        "batch_size": plan.throughput_batch_size,
        "limit_ms": THROUGHPUT_MS,
        "most_ms": plan.budget_s * 1e3,
    }
    images_per_s = ask({"request": "throughput", **role, **saturated})["images_per_s"]
    operators = ask({"request": "operators", **role})["operators"]
    return Alone(tuple(times), images_per_s, operators)


def summarise(
    launches: Sequence[Launch],
    everything: Sequence[Launch],
    alone: Alone,
    conditions: Mapping[str, Any],
) -> Measurement:
    """Gathers what launches of one comparison told.

    Args:
        launches: Those that the answer rests on.
        everything: These, and those of an attempt that was given up.
        alone: What the candidate did by itself.
        conditions: What the figures depend on.
    """
    low, high = interval(launches)
    opened = [launch.opened["candidate"] for launch in launches]
    single = [launch.single["candidate"] for launch in launches]
    peak_rss_bytes = max(int(reply["peak_rss_bytes"]) for reply in single)
    return Measurement(
        p50_ms=percentile(alone.times_ms, 50),
        p90_ms=percentile(alone.times_ms, 90),
        p95_ms=percentile(alone.times_ms, 95),
        p99_ms=percentile(alone.times_ms, 99),
        reference_p50_ms=_reference_ms(launches),
        ratio=math.exp(_median(launch.estimate for launch in launches)),
        ratio_low=math.exp(low),
        ratio_high=math.exp(high),
        rounds=sum(len(launch.rounds.pairs) for launch in launches),
        disturbed_rounds=sum(sum(launch.rounds.disturbed) for launch in launches),
        excluded_rounds=sum(launch.rounds.excluded for launch in launches),
        launches=len(launches),
        quality=quality_of(low, high),
        warm=all(reply["warm"] for launch in launches for reply in launch.opened.values()),
        images_per_s=alone.images_per_s,
        cold_start_ms=_median(reply["cold_start_ms"] for reply in opened),
        cpu_ms=_median(reply["cpu_ms"] for reply in single),
        peak_rss_bytes=peak_rss_bytes,
        model_rss_bytes=peak_rss_bytes - min(int(reply["baseline_rss_bytes"]) for reply in opened),
        energy_mj=_energy_mj(single),
        energy_note=str(single[-1]["energy"].get("source") or single[-1]["energy"]["reason"]),
        operators={str(name): int(count) for name, count in alone.operators.items()},
        protocol=PROTOCOL_VERSION,
        conditions=conditions,
        raw=tuple((n.seed, n.rounds.pairs, n.rounds.disturbed) for n in everything),
    )


def _reference_ms(launches: Sequence[Launch]) -> float:
    """Returns the reference's median latency.

    Single runs of a slow model are too few for a median; its rounds are single runs as well, and
    mostly in processor time, which others do not lengthen.
    """
    single = [launch.single["reference"]["times_ms"] for launch in launches]
    if sum(map(len, single)) < RUNS_FOR_PERCENTILE[50]:
        single = [launch.rounds.used[:, 1] for launch in launches]
    return _median(map(_median, single))


def _energy_mj(single: Sequence[Reply]) -> float | None:
    known = [reply["energy"]["mj"] for reply in single if reply["energy"]["mj"] is not None]
    return _median(known) if len(known) == len(single) else None


def conditions_of(launch: Launch, before: Reply, after: Reply) -> Mapping[str, Any]:
    """Gathers what figures depend on beside the models: device, runtime, options, neighbours."""
    rising = ("stolen_ticks", "throttled_us")
    sides = {
        role: {name: opened[name] for name in ("model_sha256", "onnxruntime", "options")}
        for role, opened in launch.opened.items()
    }
    risen = {name: after[name] - before[name] for name in rising}
    return {**after, **risen, "clock": launch.rounds.clock, **sides}


def _median(values: Iterable[Any]) -> float:
    return float(np.median(list(values)))
