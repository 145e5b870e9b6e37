"""One launch of a comparison: two fresh processes that take turns."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from search.benchmark.estimates import (
    log_ratios,
    paired_ratio,
    signed_rank_interval,
)
from search.benchmark.plan import (
    LOG_HALF_WIDTH,
    MOST_RUNS,
    POOR_LOG_HALF_WIDTH,
    ROLES,
    SEEDS_APART,
    Ask,
    Clock,
    Plan,
    Reply,
    Side,
)

LOOKS = (20, 40, 80, 160)
LEVEL = 0.95
BLOCK_MS = 2.0
# To start a pair of processes takes longer: what is started is made use of.
LEAST_ROUNDS_S = 0.3
SINGLE_MS, THROUGHPUT_MS, TAIL_MS = 60.0, 200.0, 1000.0


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
