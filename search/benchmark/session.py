"""Compares several models with one reference in one session.

Launches of all comparisons take turns, in another order each time round: what the device does for
a minute befalls all of them, and two models are compared through the reference within a round.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Sequence

from search.benchmark.estimates import fewest_launches
from search.benchmark.launches import LEVEL, Launch, launch_pair
from search.benchmark.plan import Clock, Link, Plan, Reply
from search.benchmark.summary import conditions_of, measure_alone, summarise
from search.records.measurement import Measurement, Session

# Here a launch is a value and needs no interval of its own: one quadruple of turns is enough.
LEAST_ROUNDS = 2
# A launch may take so long however small its budget is: processes have to start and warm up.
STARTING_S = 2.0
# Where the launches would take this much longer than they may, the models are too slow for all.
OVERTIME = 1.5


def compare_together(
    link: Link,
    plans: Sequence[Plan],
    launches: int,
    clock: Clock = time.monotonic,
    on_launch: Callable[[int, int], None] = lambda done, total: None,
) -> Session:
    """Measures every plan's candidate in ``launches`` pairs of fresh processes.

    Models too slow for so many within the budgets get fewer, and still enough for intervals of all
    candidates' ratios that hold together with ``LEVEL``.

    Args:
        link: Leads to an agent that holds no model, on a device that is held.
        plans: Comparisons with one and the same reference; each has its budget for itself.
        launches: Of every comparison.
        clock: Seconds that only rise.
        on_launch: Called before every launch with the number of those that are done and of all.

    Raises:
        StageFailed: As the link raised it.
    """
    told: list[list[Launch]] = [[] for _ in plans]
    found: dict[int, Measurement] = {}
    rounds_s: list[float] = []
    is_last = False
    while not is_last:
        number, begun = len(rounds_s), clock()
        is_last = number + 1 >= allowed_launches(plans, launches, rounds_s)
        total = len(plans) * (number + 1 if is_last else launches)
        order = list(range(len(plans)))
        random.Random(plans[0].seed * launches + number).shuffle(order)
        for position, index in enumerate(order):
            on_launch(number * len(plans) + position, total)
            plan = plans[index]

            def ask(request: dict[str, object], timeout_s: float = plan.timeout_s) -> Reply:
                return link.ask(request, timeout_s)

            before = ask({"request": "conditions"})
            until = clock() + plan.budget_s / launches
            told[index].append(launch_pair(ask, plan, number, until, clock, LEAST_ROUNDS))
            if is_last:
                alone = measure_alone(ask, plan, told[index])
                after = ask({"request": "conditions"})
                conditions = conditions_of(told[index][-1], before, after)
                found[index] = summarise(told[index], told[index], alone, conditions)
            ask({"request": "close"})
        rounds_s.append(clock() - begun)
    return _gather([found[index] for index in range(len(plans))], told)


def allowed_launches(plans: Sequence[Plan], launches: int, rounds_s: Sequence[float]) -> int:
    """Returns how many launches of every comparison there is time for.

    Args:
        plans: The comparisons.
        launches: That are wanted of each.
        rounds_s: Seconds that each round of launches took so far. Their median counts, for this
            program may have been stopped in one.
    """
    least = fewest_launches(1.0 - (1.0 - LEVEL) / len(plans))
    if len(rounds_s) < least - 1:
        return launches
    may_take_s = OVERTIME * sum(max(plan.budget_s, launches * STARTING_S) for plan in plans)
    return min(launches, max(least, int(may_take_s / statistics.median(rounds_s))))


def _gather(found: Sequence[Measurement], told: Sequence[Sequence[Launch]]) -> Session:
    return Session(
        measurements=tuple(found),
        log_ratios=tuple(tuple(launch.estimate for launch in mine) for mine in told),
        cpu_ms=tuple(
            tuple(float(launch.single["candidate"]["cpu_ms"]) for launch in mine) for mine in told
        ),
        peak_rss_bytes=tuple(
            tuple(int(launch.single["candidate"]["peak_rss_bytes"]) for launch in mine)
            for mine in told
        ),
    )
