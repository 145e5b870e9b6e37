"""Profiles two models in turns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from search.benchmark.launches import BLOCK_MS, open_request, single_request
from search.benchmark.plan import ROLES, SEEDS_APART, Ask, Link, Plan, Reply, Side

# Fresh starts differ; two of them show whether one was out of the ordinary.
LAUNCHES = 2
ROUNDS, ROUNDS_MS = 16, 120.0
CALL_RUNS, CALL_MS = 2000, 20.0
# The profile of a run is a kilobyte an operator, to be read on the device.
PROFILE_MS, LEAST_PROFILED, MOST_PROFILED = 100.0, 5, 100
EMPTY = "empty"


@dataclass(frozen=True)
class Profiled:
    """What the device told of one model.

    Attributes:
        kernels: As the agent gives them.
        latency_ms: Of a run by number of threads, nobody looking.
        cold_start_ms: Session creation and first run in a fresh process.
    """

    kernels: Sequence[Reply]
    latency_ms: Mapping[int, float]
    cold_start_ms: float


def profile_together(
    link: Link,
    plan: Plan,
    empty: Side,
    thread_counts: Sequence[int],
) -> dict[str, Profiled]:
    """Profiles a plan's models, and times them with other numbers of threads.

    Args:
        link: Leads to an agent that holds no model, on a device that is held.
        plan: The two models; its launches and budget do not count.
        empty: A model that computes nothing, to tell what a call costs.
        thread_counts: Numbers of threads to try beside the planned ones.

    Returns:
        By role: ``candidate``, ``reference`` and ``empty``.

    Raises:
        StageFailed: As the link raised it.
    """

    def ask(request: dict[str, Any]) -> Reply:
        return link.ask(request, plan.timeout_s)

    sides = dict(zip(ROLES, (plan.candidate, plan.reference), strict=True))
    launches = [_launch(ask, plan, sides, number) for number in range(LAUNCHES)]
    own_ms = {role: median(launch.latency_ms[role] for launch in launches) for role in ROLES}
    kernels = {role: _ask_kernels(ask, role, own_ms[role]) for role in ROLES}
    latency_ms = _scale(ask, plan, sides, thread_counts)
    told = {
        role: Profiled(
            kernels[role],
            {**latency_ms[role], sides[role].threads: own_ms[role]},
            # What disturbs a start can only make it longer.
            min(launch.cold_start_ms[role] for launch in launches),
        )
        for role in ROLES
    }
    told[EMPTY] = _profile_alone(ask, plan, empty)
    ask({"request": "close"})
    return told


@dataclass(frozen=True)
class _Launch:
    """What one pair of fresh processes told, by role."""

    latency_ms: Mapping[str, float]
    cold_start_ms: Mapping[str, float]


def _launch(ask: Ask, plan: Plan, sides: Mapping[str, Side], number: int) -> _Launch:
    """Opens both models in fresh processes and times them; the last ones stay."""
    roles = ROLES if number % 2 == 0 else ROLES[::-1]
    last = [EMPTY] if number == LAUNCHES - 1 else []  # with the others: starting disturbs
    ask({"request": "start", "roles": [*roles, *last]})
    opened = {role: ask(open_request(plan, role, sides[role], plan.seed)) for role in roles}
    cold_start_ms = {role: float(reply["cold_start_ms"]) for role, reply in opened.items()}
    return _Launch(_time_both(ask, plan, number), cold_start_ms)


def _time_both(ask: Ask, plan: Plan, number: int) -> dict[str, float]:
    """Times what is open in turns; returns milliseconds of a run by role."""
    request = {
        "request": "rounds",
        "count": ROUNDS,
        "limit_ms": ROUNDS_MS,
        "block_ms": BLOCK_MS,
        "seed": plan.seed * SEEDS_APART + number,
    }
    pairs = ask(request)["rounds"]
    return {role: median(pair[side] for pair in pairs) for side, role in enumerate(ROLES)}


def _scale(
    ask: Ask, plan: Plan, sides: Mapping[str, Side], thread_counts: Sequence[int]
) -> dict[str, dict[int, float]]:
    """Times both models with every number of threads that is not their own."""
    latency_ms: dict[str, dict[int, float]] = {role: {} for role in sides}
    for number, threads in enumerate(thread_counts, LAUNCHES):
        others = {role: side for role, side in sides.items() if side.threads != threads}
        for role, side in others.items():
            ask(open_request(plan, role, replace(side, threads=threads), plan.seed))
        times_ms = _time_both(ask, plan, number) if others else {}
        for role in others:
            latency_ms[role][threads] = times_ms[role]
    return latency_ms


def _profile_alone(ask: Ask, plan: Plan, side: Side) -> Profiled:
    """Profiles the model that computes nothing; its process has been started."""
    opened = ask(open_request(plan, EMPTY, side, plan.seed))
    call_ms = median(ask(single_request(EMPTY, CALL_RUNS, CALL_MS))["times_ms"])
    return Profiled(
        _ask_kernels(ask, EMPTY, call_ms), {side.threads: call_ms}, float(opened["cold_start_ms"])
    )


def _ask_kernels(ask: Ask, role: str, latency_ms: float) -> Sequence[Reply]:
    runs = min(max(round(PROFILE_MS / latency_ms), LEAST_PROFILED), MOST_PROFILED)
    kernels: Sequence[Reply] = ask({"request": "profile", "role": role, "runs": runs})["kernels"]
    return kernels
