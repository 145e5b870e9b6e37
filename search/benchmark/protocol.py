"""Compares two models by paired rounds; knows when to stop and how sure the ratio is.

It does not know what carries its requests, what a model is, or what time it is: a link and a clock
are given. ``PROTOCOL_VERSION`` rises when figures stop being comparable with older ones; the
choices below and their sources are in ``docs/benchmarking.md``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from search.benchmark.estimates import (
    RUNS_FOR_PERCENTILE,
    log_ratios,
    paired_ratio,
    percentile,
    sign_test_interval,
    signed_rank_interval,
)
from search.records import Measurement, Quality

PROTOCOL_VERSION = 4
# Two sessions that were started once may agree on a wrong ratio for as long as they live: the fresh
# launch is the unit of repetition. The spread of seven holds the median launch with 98 %.
LEAST_LAUNCHES, MOST_LAUNCHES, LAUNCHES_FOR_SPREAD = 2, 7, 6
LOOKS = (20, 40, 80, 160)
LEVEL = 0.95
LOG_HALF_WIDTH = 0.015
# An attempt that is wider than this was disturbed: one more after a pause, with all its launches.
POOR_LOG_HALF_WIDTH = 0.05
RETRY_DELAY_S = 1.0
BLOCK_MS = 2.0
# To start a pair of processes takes longer: what is started is made use of.
LEAST_ROUNDS_S = 0.3
SINGLE_MS, THROUGHPUT_MS, TAIL_MS = 60.0, 200.0, 1000.0
# Slow models get more of the budget for the percentiles of single runs.
TAIL_SHARE = 0.25
MOST_RUNS = max(RUNS_FOR_PERCENTILE.values())
ROLES = ("candidate", "reference")

Reply = Mapping[str, Any]
Ask = Callable[[dict[str, Any]], Reply]
Clock = Callable[[], float]


class Link(Protocol):
    """Something that carries requests to an agent; ``agent.py`` lists them."""

    def ask(self, request: dict[str, Any], timeout_s: float) -> Reply:
        """Returns the agent's answer.

        Raises:
            StageFailed: If the agent refuses, dies or does not answer in ``timeout_s`` seconds.
        """


@dataclass(frozen=True)
class Side:
    """One of the two models: its path on the device, threads and session configuration."""

    model: str
    threads: int
    session_entries: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Plan:
    """One comparison.

    Attributes:
        candidate: The model in question.
        reference: What it is compared with; may be the same model.
        inputs: Path on the device of a float32 ``.npy`` file ``[k, C, H, W]``.
        batch_size: Images of one inference.
        throughput_batch_size: Images of one inference where throughput is measured.
        memory_limit_bytes: What a model may take beyond the runtime's own memory; None = all.
        launches: Pairs of fresh processes at least, from 2; two of a model that takes long.
        retry: Whether a second attempt follows a disturbed one.
        budget_s: Seconds of one attempt, after which no more evidence is sought than an interval
            needs.
        timeout_s: Seconds after which an answer is given up.
        seed: Seed of the order of turns and inputs.
    """

    candidate: Side
    reference: Side
    inputs: str
    batch_size: int
    throughput_batch_size: int
    memory_limit_bytes: int | None
    launches: int
    retry: bool
    budget_s: float
    timeout_s: float
    seed: int


@dataclass(frozen=True)
class Rounds:
    """Paired rounds of one pair of processes.

    Attributes:
        pairs: Milliseconds of candidate and reference, in order.
        disturbed: Whether others took the processor in that round, in order.
        clock: What the milliseconds are of: ``processor`` time, or ``wall``.
    """

    pairs: tuple[tuple[float, float], ...]
    disturbed: tuple[bool, ...]
    clock: str

    @property
    def used(self) -> NDArray[np.float64]:
        """Rounds that count, ``[n, 2]``: the undisturbed ones, or all where they are too few."""
        pairs = np.asarray(self.pairs, dtype=np.float64).reshape(-1, 2)
        kept = pairs[~np.asarray(self.disturbed, dtype=bool)]
        return kept if len(kept) >= MINIMUM_ROUNDS else pairs

    @property
    def excluded(self) -> int:
        """Number of rounds that do not count."""
        return len(self.pairs) - len(self.used)


@dataclass(frozen=True)
class Launch:
    """What one pair of fresh processes told: agent replies, rounds, log ratio and its interval."""

    seed: int
    opened: Mapping[str, Reply]
    single: Mapping[str, Reply]
    rounds: Rounds
    estimate: float
    low: float
    high: float


# Stopping at the first narrow interval tries as many times as there are looks. Bonferroni's share
# of the error for each keeps the level of whichever look is the last.
LOOK_LEVEL = 1.0 - (1.0 - LEVEL) / len(LOOKS)
# Of a slow model too. The interval of eight, the fewest that have one, spans them all; that of
# twelve is 0.6 times as wide. Even, for the agent measures whole ABBA quadruples.
MINIMUM_ROUNDS = 12
# Between the seeds of comparisons, and of launches, lie more than one of them uses.
SEEDS_APART = 1000


def compare(
    link: Link,
    plan: Plan,
    clock: Clock = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Measurement:
    """Measures the candidate against the reference in pairs of fresh processes.

    Every launch covers the ratio of its own processes with ``LEVEL``; the answer's interval never
    is narrower than what fresh starts differ by. A model too slow for the budget still gets the
    few rounds that an interval needs.

    Args:
        link: Leads to an agent that holds no model, on a device that is held.
        plan: What to compare.
        clock: Seconds that only rise.
        sleep: Waits so many seconds.

    Raises:
        StageFailed: As the link raised it.
    """
    begin = clock()

    def ask(request: dict[str, Any]) -> Reply:
        return link.ask(request, plan.timeout_s)

    before = ask({"request": "conditions"})
    launches = everything = _attempt(ask, plan, plan.launches, 0, clock)
    is_quick = _is_quick(plan, clock() - begin)
    if plan.retry and is_quick and half_width(launches) > POOR_LOG_HALF_WIDTH:
        sleep(RETRY_DELAY_S)
        launches = _attempt(ask, plan, MOST_LAUNCHES, len(launches), clock)
        everything = [*everything, *launches]
        if half_width(launches) > POOR_LOG_HALF_WIDTH:
            launches = everything  # no burst, but how this device is
    # Of what the last pair of processes holds: figures of the candidate alone.
    alone = measure_alone(ask, plan, launches)
    conditions = conditions_of(launches[-1], before, ask({"request": "conditions"}))
    ask({"request": "close"})
    return summarise(launches, everything, alone, conditions)


def _is_quick(plan: Plan, took_s: float) -> bool:
    """Says whether there is time for more than a figure needs; a slow model gets no more."""
    return 3 * took_s < plan.timeout_s


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


def _attempt(ask: Ask, plan: Plan, wanted: int, before: int, clock: Clock) -> list[Launch]:
    """Launches until the interval is narrow or nothing more can be done within the budget.

    Args:
        ask: Leads to the agent.
        plan: What to compare.
        wanted: Launches before a narrow interval ends the attempt.
        before: Launches of an earlier attempt, which had other seeds.
        clock: Seconds that only rise.
    """
    begin = clock()
    until = begin + plan.budget_s
    most = max(MOST_LAUNCHES, wanted)
    launches: list[Launch] = []
    while len(launches) < most:
        begun = clock()
        share = (until - begun) / (most - len(launches))
        launches.append(launch_pair(ask, plan, before + len(launches), begun + share, clock))
        least = plan.launches if _is_quick(plan, clock() - begin) else LEAST_LAUNCHES
        if len(launches) < least:
            continue
        enough = len(launches) >= wanted and half_width(launches) <= LOG_HALF_WIDTH
        if enough or clock() + (clock() - begun) > until:
            break
    return launches


def launch_pair(
    ask: Ask, plan: Plan, number: int, until: float, clock: Clock, least: int = MINIMUM_ROUNDS
) -> Launch:
    """Opens both models in fresh processes and measures them until the clock says ``until``.

    Args:
        ask: Leads to the agent.
        plan: What to compare.
        number: Of the launch, from 0.
        until: When it ends, with a narrow interval also before.
        clock: Seconds that only rise.
        least: Rounds however long they take, an even number; with fewer than ``MINIMUM_ROUNDS`` the
            launch has an estimate and no interval of its own.
    """
    seed = plan.seed * SEEDS_APART + number
    # Whoever starts first may get the better memory: take turns in that as well.
    roles = ROLES if number % 2 == 0 else ROLES[::-1]
    ask({"request": "start", "roles": list(roles)})
    sides = dict(zip(ROLES, (plan.candidate, plan.reference), strict=True))
    opened = {role: ask(open_request(plan, role, sides[role], seed)) for role in roles}
    single = {role: ask(single_request(role, MOST_RUNS, SINGLE_MS)) for role in roles}
    rounds = _measure_rounds(ask, seed, max(until, clock() + LEAST_ROUNDS_S), clock, least)
    low, high = signed_rank_interval(log_ratios(rounds.used), LOOK_LEVEL)
    return Launch(
        seed=seed,
        opened=opened,
        single=single,
        rounds=rounds,
        estimate=math.log(paired_ratio(rounds.used)),
        low=low,
        high=high,
    )


def open_request(plan: Plan, role: str, side: Side, seed: int) -> dict[str, Any]:
    """Asks for a model in the role's process; all but ``side`` is as planned."""
    return {
        "request": "open",
        "role": role,
        "model": side.model,
        "inputs": plan.inputs,
        "batch_size": plan.batch_size,
        "threads": side.threads,
        "session_entries": dict(side.session_entries),
        "memory_limit_bytes": plan.memory_limit_bytes,
        "seed": seed,
    }


def single_request(role: str, count: int, limit_ms: float) -> dict[str, Any]:
    """Asks for the times of single runs: at most ``count``, and at most so long."""
    return {"request": "single", "role": role, "count": count, "limit_ms": limit_ms}


def _measure_rounds(ask: Ask, seed: int, until: float, clock: Clock, least: int) -> Rounds:
    """Asks for rounds up to each look; ends with a narrow interval or with the time.

    A disturbed round does not count towards a look, but so many are made up for at most once. A
    slow model's few rounds that say too little are made as many as the first look's, which is
    sooner done than another attempt.
    """
    rounds = Rounds((), (), "wall")
    for look in LOOKS:
        asked = _more_rounds(ask, rounds, look, seed, until, clock, least)
        if asked.excluded:
            asked = _more_rounds(ask, asked, look + asked.excluded, seed, until, clock, least)
        short = len(asked.pairs) < look
        rounds = asked
        low, high = signed_rank_interval(log_ratios(rounds.used), LOOK_LEVEL)
        if (high - low) / 2 <= LOG_HALF_WIDTH or short:
            break
    says_little = (high - low) / 2 > POOR_LOG_HALF_WIDTH
    if says_little and least >= MINIMUM_ROUNDS:
        rounds = _more_rounds(ask, rounds, LOOKS[0], seed, until, clock, LOOKS[0])
    return rounds


def _more_rounds(
    ask: Ask, rounds: Rounds, wanted: int, seed: int, until: float, clock: Clock, least: int
) -> Rounds:
    """Returns ``rounds`` with as many more as make ``wanted``, or as there is time for.

    Slow models' least rounds are asked for one by one, so that no answer takes long.
    """
    while (done := len(rounds.pairs)) < wanted:
        if done >= least and clock() >= until:
            break
        request = {
            "request": "rounds",
            "count": wanted - done + wanted % 2,  # whole ABBA quadruples are two rounds each
            "limit_ms": max(0.0, until - clock()) * 1e3,
            "block_ms": BLOCK_MS,
            "seed": seed * SEEDS_APART + done,
        }
        reply = ask(request)
        pairs = tuple((float(a), float(b)) for a, b in reply["rounds"])
        disturbed = tuple(bool(d) for d in reply["disturbed"])
        rounds = Rounds(rounds.pairs + pairs, rounds.disturbed + disturbed, str(reply["clock"]))
    return rounds


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
