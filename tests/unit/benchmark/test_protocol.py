"""Closed forms, and whole comparisons over a link and a clock that only pretend."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from search.benchmark.agent import Refused, turns
from search.benchmark.protocol import (
    LAUNCHES,
    LOG_HALF_WIDTH,
    LOOK_LEVEL,
    LOOKS,
    MINIMUM_ROUNDS,
    PROTOCOL_VERSION,
    Plan,
    Side,
    compare,
    log_ratios,
    paired_ratio,
    sign_test_interval,
    sign_test_rank,
)

Noise = Callable[[int, int], float]


class FakeClock:
    """Seconds that pass only when told."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class FakeLink:
    """An agent on a device whose every block costs what ``block_ms(round, side)`` says."""

    def __init__(self, clock: FakeClock, block_ms: Noise, block_s: float) -> None:
        self.clock = clock
        self.block_ms = block_ms
        self.block_s = block_s
        self.log: list[dict[str, Any]] = []
        self.timeouts_s: list[float] = []
        self._rounds = 0

    def ask(self, request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        self.log.append(request)
        self.timeouts_s.append(timeout_s)
        kind = request["request"]
        if kind == "start":
            self._rounds = 0
        if kind == "open":
            self.clock.now_s += 0.2
            return {"cold_start_ms": 5.0, "run_ms": 1.0, "peak_rss_bytes": 1000}
        if kind == "single":
            p50_ms = 2.0 if request["role"] == "candidate" else 4.0
            return {"p50_ms": p50_ms, "cpu_ms": 3.0, "runs": 10, "peak_rss_bytes": 2000}
        if kind == "operators":
            return {"operators": {"Conv": 2}}
        return {"rounds": self._measure(request)} if kind == "rounds" else {}

    def _measure(self, request: dict[str, Any]) -> list[tuple[float, float]]:
        deadline_s = self.clock.now_s + request["limit_ms"] / 1e3
        times: tuple[list[float], list[float]] = ([], [])
        for turn, side in enumerate(turns(request["count"], request["seed"])):
            enough = turn % 4 == 0 and turn >= 2 * request["minimum"]
            if enough and self.clock.now_s >= deadline_s:
                break
            times[side].append(self.block_ms(self._rounds + turn // 2, side))
            self.clock.now_s += self.block_s
        self._rounds += len(times[0])
        return list(zip(*times, strict=True))


def plan(seed: int = 0, budget_s: float = 1e9) -> Plan:
    side = Side("model.onnx", 1, (("key", "value"),))
    return Plan(side, side, "inputs.npy", 1, budget_s, 2e9, seed)


def noisy(ratio: float, rng: np.random.Generator) -> Noise:
    """Blocks under shared drift, noise of their own, and bursts that hit one block in fifteen."""
    drift = [0.0]

    def block_ms(_: int, side: int) -> float:
        drift[0] += rng.normal(0.0, 0.01)
        burst = rng.uniform(0.2, 1.5) if rng.random() < 1 / 15 else 0.0
        own = rng.normal(0.0, 0.03)
        return math.exp(drift[0] + own + burst) * (ratio if side == 0 else 1.0)

    return block_ms


def wide_until(first_narrow: int) -> Noise:
    """Rounds whose log ratios are +-0.5 at first and then exactly 0."""

    def block_ms(number: int, side: int) -> float:
        wide = number < first_narrow and side == 0
        return math.exp(0.5 if number % 2 else -0.5) if wide else 1.0

    return block_ms


@pytest.mark.parametrize(
    ("count", "level", "rank"),
    # Published tables of the sign test's order statistics at 95 %; the last two by hand.
    [(5, 0.95, 0), (6, 0.95, 1), (10, 0.95, 2), (20, 0.95, 6), (20, LOOK_LEVEL, 5), (1, 0.5, 0)],
)
def test_ranks_are_the_tabled_ones(count: int, level: float, rank: int) -> None:
    assert sign_test_rank(count, level) == rank


@pytest.mark.parametrize("count", [6, 7, 20, 33, 160])
def test_rank_is_the_largest_that_keeps_the_level(count: int) -> None:
    rank = sign_test_rank(count, 0.95)
    tail = [sum(math.comb(count, i) for i in range(r)) / 2**count for r in (rank, rank + 1)]
    assert tail[0] <= 0.025 < tail[1]


def test_interval_lies_between_order_statistics() -> None:
    values = np.random.default_rng(0).permutation(np.arange(1.0, 21.0))
    assert sign_test_interval(values, 0.95) == (6.0, 15.0)


def test_too_few_values_give_an_infinite_interval() -> None:
    assert sign_test_interval(np.ones(5), 0.95) == (-math.inf, math.inf)


def test_minimum_is_the_fewest_rounds_with_an_interval() -> None:
    assert sign_test_rank(MINIMUM_ROUNDS, LOOK_LEVEL) > 0
    assert sign_test_rank(MINIMUM_ROUNDS - 2, LOOK_LEVEL) == 0


def test_paired_ratio_ignores_shared_drift_and_a_burst() -> None:
    pairs = np.array([[1.0, 2.0], [10.0, 20.0], [3.0, 6.0], [900.0, 2.0], [0.5, 1.0]])
    assert paired_ratio(pairs) == pytest.approx(0.5)
    assert log_ratios(pairs)[1] == pytest.approx(math.log(0.5))


@pytest.mark.parametrize("seed", range(20))
def test_turns_are_balanced_in_every_quadruple(seed: int) -> None:
    order = turns(40, seed)
    quads = {tuple(order[i : i + 4]) for i in range(0, 80, 4)}
    assert quads <= {(0, 1, 1, 0), (1, 0, 0, 1)}
    assert order.count(0) == order.count(1) == 40
    assert order == turns(40, seed)


def test_turns_use_both_orders_and_refuse_half_a_quadruple() -> None:
    assert len({tuple(turns(2, seed)) for seed in range(20)}) == 2
    with pytest.raises(Refused, match="even"):
        turns(3, 0)


@pytest.mark.parametrize(("ratio", "budget_s"), [(1.0, 3.0), (0.6, 3.0), (1.0, 1e9)])
def test_interval_covers_under_drift_and_bursts(ratio: float, budget_s: float) -> None:
    rng = np.random.default_rng(1)
    covered, estimates, comparisons = 0, [], 300
    for seed in range(comparisons):
        clock = FakeClock()
        link = FakeLink(clock, noisy(ratio, rng), block_s=0.005)
        found = compare(link, plan(seed, budget_s), clock)
        covered += found.ratio_low <= ratio <= found.ratio_high
        assert found.ratio_low <= found.ratio <= found.ratio_high
        estimates.append(found.ratio)
    assert covered / comparisons >= 0.95
    assert np.median(estimates) == pytest.approx(ratio, rel=0.005)


@pytest.mark.parametrize("look", LOOKS)
def test_stops_at_the_look_that_becomes_narrow(look: int) -> None:
    clock = FakeClock()
    first_narrow = 0 if look == LOOKS[0] else look // 2
    found = compare(FakeLink(clock, wide_until(first_narrow), 0.005), plan(), clock)
    assert [len(pairs) for _, pairs in found.raw] == [look] * LAUNCHES
    assert found.rounds == LAUNCHES * look
    assert found.resolved


def test_gives_up_unresolved_after_the_last_look() -> None:
    clock = FakeClock()
    found = compare(FakeLink(clock, wide_until(10**6), 0.005), plan(), clock)
    assert found.rounds == LAUNCHES * LOOKS[-1]
    assert not found.resolved


def test_budget_ends_a_launch_between_looks() -> None:
    clock = FakeClock()
    begin_s = clock.now_s
    found = compare(FakeLink(clock, wide_until(10**6), 0.005), plan(budget_s=1.5), clock)
    assert not found.resolved
    assert MINIMUM_ROUNDS < found.rounds / LAUNCHES < LOOKS[-1]
    assert clock.now_s - begin_s < 1.6


def test_slow_model_gets_the_rounds_that_an_interval_needs() -> None:
    clock = FakeClock()
    found = compare(FakeLink(clock, wide_until(0), block_s=10.0), plan(budget_s=3.0), clock)
    assert found.rounds == LAUNCHES * MINIMUM_ROUNDS
    assert math.isfinite(found.ratio_low)
    assert math.isfinite(found.ratio_high)


def test_interval_holds_what_launches_disagree_about() -> None:
    clock = FakeClock()
    launch_ratios = iter((0.8, 0.6))
    current = [1.0]

    def block_ms(number: int, side: int) -> float:
        return current[0] if side == 0 else 1.0

    class Restarted(FakeLink):
        def ask(self, request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
            if request["request"] == "start":
                current[0] = next(launch_ratios)
            return super().ask(request, timeout_s)

    found = compare(Restarted(clock, block_ms, 0.005), plan(), clock)
    assert (found.ratio_low, found.ratio_high) == pytest.approx((0.6, 0.8))
    assert found.ratio == pytest.approx(math.sqrt(0.6 * 0.8))
    assert math.log(found.ratio_high / found.ratio_low) / 2 > LOG_HALF_WIDTH
    assert not found.resolved


def test_record_holds_what_the_agent_said() -> None:
    clock = FakeClock()
    link = FakeLink(clock, wide_until(0), 0.005)
    found = compare(link, plan(seed=7), clock)
    assert (found.p50_ms, found.reference_p50_ms, found.cpu_ms) == (2.0, 4.0, 3.0)
    assert (found.cold_start_ms, found.peak_rss_bytes) == (5.0, 2000)
    assert (found.operators, found.protocol) == ({"Conv": 2}, PROTOCOL_VERSION)
    assert len({seed for seed, _ in found.raw}) == LAUNCHES
    assert [r["request"] for r in link.log].count("start") == LAUNCHES
    assert link.log[-1] == {"request": "close"}
    assert link.log[1]["session_entries"] == {"key": "value"}


def test_time_out_is_one_for_the_whole_comparison() -> None:
    clock = FakeClock()
    begin_s = clock.now_s
    link = FakeLink(clock, wide_until(0), 0.005)
    compare(link, plan(), clock)
    assert link.timeouts_s[0] == pytest.approx(2e9)
    assert link.timeouts_s[-1] == pytest.approx(2e9 - (clock.now_s - begin_s))
    assert link.timeouts_s == sorted(link.timeouts_s, reverse=True)
