"""Compares two models by paired rounds; knows when to stop and how sure the ratio is.

It does not know what carries its requests, what a model is, or what time it is: a link and a clock
are given. ``PROTOCOL_VERSION`` rises when figures stop being comparable with older ones.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from search.records import Measurement

PROTOCOL_VERSION = 1
# Two sessions that were started once may agree on a wrong ratio for as long as they live: the fresh
# launch is the unit of repetition.
LAUNCHES = 2
LOOKS = (20, 40, 80, 160)
LEVEL = 0.95
LOG_HALF_WIDTH = 0.015
BLOCK_MS = 2.0
SINGLE_RUNS, SINGLE_MS = 60, 60.0
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
        budget_s: Seconds after which no more evidence is sought than an interval needs.
        timeout_s: Seconds after which the link gives up.
        seed: Seed of the order of turns and inputs.
    """

    candidate: Side
    reference: Side
    inputs: str
    batch_size: int
    budget_s: float
    timeout_s: float
    seed: int


@dataclass(frozen=True)
class Launch:
    """What one pair of fresh processes told: agent replies, pairs, log ratio and its interval."""

    seed: int
    opened: Mapping[str, Reply]
    single: Mapping[str, Reply]
    pairs: tuple[tuple[float, float], ...]
    estimate: float
    low: float
    high: float


def log_ratios(pairs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Logarithms ``[n]`` of first over second in ``pairs`` ``[n, 2]``, any unit of time above 0."""
    ratios: NDArray[np.float64] = np.log(pairs[:, 0]) - np.log(pairs[:, 1])
    return ratios


def paired_ratio(pairs: NDArray[np.float64]) -> float:
    """Ratio of first over second by the median round of ``pairs`` ``[n, 2]``.

    Pairing cancels drift that both share, and the median ignores bursts that hit one.
    """
    return math.exp(float(np.median(log_ratios(pairs))))


def sign_test_interval(values: NDArray[np.float64], level: float) -> tuple[float, float]:
    """Interval of the median that holds for independent values of any distribution.

    It lies between the ``r``-th smallest and the ``r``-th largest value, with the largest ``r``
    for which a median outside is rejected by the two-sided sign test.

    Args:
        values: ``[n]``, any unit.
        level: Least probability, 0..1, with which the interval covers the median.

    Returns:
        Its ends; infinite when ``n`` values can give no interval of this level.

    Source: H. A. David and H. N. Nagaraja, Order Statistics, 3rd edition, section 7.1.
    """
    ordered = np.sort(values)
    rank = sign_test_rank(len(ordered), level)
    if rank == 0:
        return -math.inf, math.inf
    return float(ordered[rank - 1]), float(ordered[-rank])


def sign_test_rank(count: int, level: float) -> int:
    """Largest ``r`` with ``P(Binomial(count, 1/2) < r) <= (1 - level) / 2``; 0 if there is none."""
    allowed = (1.0 - level) / 2.0 * 2.0**count
    below = 0
    for rank in range(count // 2 + 1):
        below += math.comb(count, rank)
        if below > allowed:
            return rank
    raise AssertionError("half of the outcomes lie below the middle")


# Stopping at the first narrow interval tries as many times as there are looks. Bonferroni's share
# of the error for each keeps the level of whichever look is the last.
LOOK_LEVEL = 1.0 - (1.0 - LEVEL) / len(LOOKS)
# Fewer rounds give no interval at all. Even, for the agent measures whole ABBA quadruples.
MINIMUM_ROUNDS = next(n for n in itertools.count(2, 2) if sign_test_rank(n, LOOK_LEVEL) > 0)


def compare(link: Link, plan: Plan, clock: Clock = time.monotonic) -> Measurement:
    """Measures the candidate against the reference in ``LAUNCHES`` pairs of fresh processes.

    Every launch covers the ratio of its own processes with ``LEVEL``; the answer's interval holds
    all of theirs, so that it is never narrower than what fresh starts differ by. A model too slow
    for the budget still gets the few rounds that an interval needs.

    Args:
        link: Leads to an agent that holds no model.
        plan: What to compare.
        clock: Seconds that only rise.

    Raises:
        StageFailed: As the link raised it.
    """
    begin = clock()

    def ask(request: dict[str, Any]) -> Reply:
        return link.ask(request, begin + plan.timeout_s - clock())

    launches = []
    for number in range(LAUNCHES):
        left_s = begin + plan.budget_s - clock()
        until = clock() + left_s / (LAUNCHES - number)
        launches.append(_launch(ask, plan, number, until, clock))
    operators = ask({"request": "operators", "role": "candidate"})["operators"]
    ask({"request": "close"})
    return _summarise(launches, operators)


def _launch(ask: Ask, plan: Plan, number: int, until: float, clock: Clock) -> Launch:
    """Opens both models in fresh processes and measures them until the clock says ``until``."""
    seed = plan.seed * LAUNCHES + number
    # Whoever starts first may get the better memory: take turns in that as well.
    roles = ROLES if number % 2 == 0 else ROLES[::-1]
    ask({"request": "start", "roles": list(roles)})
    opened = {role: ask(_open_request(plan, role, seed)) for role in roles}
    limits = {"count": SINGLE_RUNS, "limit_ms": SINGLE_MS}
    single = {role: ask({"request": "single", "role": role, **limits}) for role in roles}
    pairs = _measure_rounds(ask, seed, until, clock)
    low, high = sign_test_interval(log_ratios(pairs), LOOK_LEVEL)
    return Launch(
        seed=seed,
        opened=opened,
        single=single,
        pairs=tuple((float(a), float(b)) for a, b in pairs),
        estimate=math.log(paired_ratio(pairs)),
        low=low,
        high=high,
    )


def _open_request(plan: Plan, role: str, seed: int) -> dict[str, Any]:
    side = plan.candidate if role == "candidate" else plan.reference
    return {
        "request": "open",
        "role": role,
        "model": side.model,
        "inputs": plan.inputs,
        "batch_size": plan.batch_size,
        "threads": side.threads,
        "session_entries": dict(side.session_entries),
        "seed": seed,
    }


def _measure_rounds(ask: Ask, seed: int, until: float, clock: Clock) -> NDArray[np.float64]:
    """Asks for rounds up to each look; ends with a narrow interval or with the time.

    Returns:
        Milliseconds of candidate and reference ``[n, 2]``, ``n`` at least ``MINIMUM_ROUNDS``.
    """
    pairs: list[list[float]] = []
    for look in LOOKS:
        request = {
            "request": "rounds",
            "count": look - len(pairs),
            "minimum": max(0, MINIMUM_ROUNDS - len(pairs)),
            "limit_ms": max(0.0, until - clock()) * 1e3,
            "block_ms": BLOCK_MS,
            "seed": seed * LOOKS[-1] + len(pairs),
        }
        pairs += ask(request)["rounds"]
        low, high = sign_test_interval(log_ratios(np.asarray(pairs)), LOOK_LEVEL)
        if (high - low) / 2 <= LOG_HALF_WIDTH or len(pairs) < look:
            break
    return np.asarray(pairs, dtype=np.float64)


def _summarise(launches: list[Launch], operators: Mapping[str, int]) -> Measurement:
    low = min(launch.low for launch in launches)
    high = max(launch.high for launch in launches)
    opened = [launch.opened["candidate"] for launch in launches]
    single = [launch.single["candidate"] for launch in launches]
    reference = [launch.single["reference"] for launch in launches]
    return Measurement(
        p50_ms=_median(reply["p50_ms"] for reply in single),
        reference_p50_ms=_median(reply["p50_ms"] for reply in reference),
        ratio=math.exp(_median(launch.estimate for launch in launches)),
        ratio_low=math.exp(low),
        ratio_high=math.exp(high),
        rounds=sum(len(launch.pairs) for launch in launches),
        resolved=(high - low) / 2 <= LOG_HALF_WIDTH,
        cold_start_ms=_median(reply["cold_start_ms"] for reply in opened),
        cpu_ms=_median(reply["cpu_ms"] for reply in single),
        peak_rss_bytes=max(int(reply["peak_rss_bytes"]) for reply in single),
        operators={str(name): int(count) for name, count in operators.items()},
        protocol=PROTOCOL_VERSION,
        raw=tuple((launch.seed, launch.pairs) for launch in launches),
    )


def _median(values: Any) -> float:
    return float(np.median(list(values)))
