"""Compares two models by paired rounds until their ratio is known well enough.

A link and a clock are given. ``PROTOCOL_VERSION`` rises when figures stop being comparable with
older ones; the choices and their sources are in ``docs/benchmarking.md``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from search.benchmark.launches import Launch, launch_pair
from search.benchmark.plan import (
    LEAST_LAUNCHES,
    LOG_HALF_WIDTH,
    MOST_LAUNCHES,
    POOR_LOG_HALF_WIDTH,
    Ask,
    Clock,
    Link,
    Plan,
    Reply,
)
from search.benchmark.summary import (
    conditions_of,
    half_width,
    measure_alone,
    summarise,
)
from search.records.measurement import Measurement

RETRY_DELAY_S = 1.0


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
