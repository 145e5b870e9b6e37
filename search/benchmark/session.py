"""Compares several models with one reference in one session; knows not which of them is better.

Launches of all comparisons take turns, in another order each time round: what the device does for
a minute befalls all of them, and two models are compared through the reference within a round.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence

from search.benchmark.protocol import (
    Clock,
    Launch,
    Link,
    Plan,
    Reply,
    conditions_of,
    launch_pair,
    measure_alone,
    summarise,
)
from search.records import Measurement, Session


def compare_together(
    link: Link,
    plans: Sequence[Plan],
    launches: int,
    clock: Clock = time.monotonic,
    on_round: Callable[[int], None] = lambda number: None,
) -> Session:
    """Measures every plan's candidate in ``launches`` pairs of fresh processes.

    Args:
        link: Leads to an agent that holds no model, on a device that is held.
        plans: Comparisons with one and the same reference; each has its budget for itself.
        launches: Of every comparison.
        clock: Seconds that only rise.
        on_round: Called before every round of launches.

    Raises:
        StageFailed: As the link raised it.
    """
    told: list[list[Launch]] = [[] for _ in plans]
    found: dict[int, Measurement] = {}
    for number in range(launches):
        on_round(number)
        order = list(range(len(plans)))
        random.Random(plans[0].seed * launches + number).shuffle(order)
        for index in order:
            plan = plans[index]

            def ask(request: dict[str, object], timeout_s: float = plan.timeout_s) -> Reply:
                return link.ask(request, timeout_s)

            before = ask({"request": "conditions"})
            until = clock() + plan.budget_s / launches
            told[index].append(launch_pair(ask, plan, number, until, clock))
            if number == launches - 1:
                alone = measure_alone(ask, plan, told[index])
                after = ask({"request": "conditions"})
                conditions = conditions_of(told[index][-1], before, after)
                found[index] = summarise(told[index], told[index], alone, conditions)
            ask({"request": "close"})
    return Session(
        measurements=tuple(found[index] for index in range(len(plans))),
        log_ratios=tuple(tuple(launch.estimate for launch in mine) for mine in told),
        cpu_ms=tuple(
            tuple(float(launch.single["candidate"]["cpu_ms"]) for launch in mine) for mine in told
        ),
        peak_rss_bytes=tuple(
            tuple(int(launch.single["candidate"]["peak_rss_bytes"]) for launch in mine)
            for mine in told
        ),
    )
