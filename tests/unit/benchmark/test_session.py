"""Several models in one session: turns, corrected intervals, and what they find."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from search.benchmark.estimates import (
    fewest_launches,
    highest_level,
    launches_needed,
    signed_rank_interval,
    signed_rank_rank,
    walsh_means,
    wilson_interval,
    worse_by_chance,
)
from search.benchmark.plan import Plan, Side
from search.benchmark.session import LEAST_ROUNDS, allowed_launches, compare_together
from search.records.measurement import Session
from tests.unit.benchmark.test_protocol import FakeClock, FakeLink, plan

SESSIONS = 200


class ModelLink(FakeLink):
    """A device on which every model has its own latency, and every launch its own luck.

    Args:
        latencies_ms: By the model's path.
        luck: Standard deviation of the logarithm of a launch, for each side.
        seed: Of the luck.
        block_s: Seconds of a block.
    """

    def __init__(
        self, latencies_ms: dict[str, float], luck: float, seed: int, block_s: float = 0.004
    ) -> None:
        super().__init__(FakeClock(), self._time, block_s, self._draw)
        self._latencies_ms, self._luck = latencies_ms, luck
        self._rng = np.random.default_rng(seed)
        self._models = ["", ""]
        self._factors = [1.0, 1.0]
        self.opened: list[str] = []

    def _draw(self) -> None:
        self._factors = list(np.exp(self._rng.normal(0.0, self._luck, 2)))

    def _open(self, request: dict[str, Any]) -> dict[str, Any]:
        side = 0 if request["role"] == "candidate" else 1
        self._models[side] = request["model"]
        if side == 0:
            self.opened.append(request["model"])
        return super()._open(request)

    def _time(self, _: int, side: int) -> float:
        own = math.exp(self._rng.normal(0.0, 0.02))
        return self._latencies_ms[self._models[side]] * self._factors[side] * own


def plans(models: Sequence[str], seed: int = 0) -> list[Plan]:
    sides = [replace(plan(seed, 30.0), candidate=Side(model, 1, ())) for model in models]
    return [replace(one, reference=Side("original", 1, ())) for one in sides]


def hold_session(link: ModelLink, models: Sequence[str], launches: int) -> Session:
    return compare_together(link, plans(models), launches, link.clock)


def test_every_round_launches_every_model_once_in_changing_order() -> None:
    models = ["a", "b", "c", "d"]
    link = ModelLink(dict.fromkeys([*models, "original"], 1.0), 0.0, 0)
    session = hold_session(link, models, 8)
    rounds = [link.opened[i : i + 4] for i in range(0, 32, 4)]
    assert all(sorted(turn) == models for turn in rounds)
    assert len({tuple(turn) for turn in rounds}) > 3
    assert [len(logs) for logs in session.log_ratios] == [8] * 4
    assert [m.launches for m in session.measurements] == [8] * 4


def test_ratios_are_the_models_own() -> None:
    link = ModelLink({"fast": 0.5, "slow": 2.0, "original": 1.0}, 0.0, 0)
    session = hold_session(link, ["slow", "fast"], 9)
    assert [m.ratio for m in session.measurements] == pytest.approx([2.0, 0.5], rel=0.02)
    assert np.median(session.log_ratios[0]) == pytest.approx(math.log(2.0), abs=0.02)


def test_equal_models_are_rarely_told_apart_and_three_percent_are_found() -> None:
    launches, level = launches_needed(1 - 0.05 / 6), 1 - 0.05 / 6
    false_alarms = found = 0
    for seed in range(SESSIONS):
        latencies = {"a": 1.0, "b": 1.0, "c": 1.03, "original": 2.0}
        session = hold_session(ModelLink(latencies, 0.005, seed), ["a", "b", "c"], launches)
        a, b, c = np.array(session.log_ratios)
        low, high = signed_rank_interval(a - b, level)
        false_alarms += not low <= 0 <= high
        found += signed_rank_interval(c - a, level)[0] > 0
    assert false_alarms / SESSIONS <= 0.05
    assert found / SESSIONS >= 0.95


# ---- models that take long


def test_slow_models_get_the_launches_that_their_own_intervals_need() -> None:
    models = ["a", "b", "c"]
    link = ModelLink(dict.fromkeys([*models, "original"], 1.0), 0.01, 0, block_s=2.0)
    told: list[tuple[int, int]] = []
    brief = [replace(one, budget_s=10.0) for one in plans(models)]
    begin_s = link.clock.now_s
    session = compare_together(
        link, brief, 12, link.clock, lambda done, total: told.append((done, total))
    )
    assert [len(logs) for logs in session.log_ratios] == [7] * 3  # at 1 - 0.05 / 3
    assert highest_level(7) >= 1 - 0.05 / 3 > highest_level(6)
    assert [m.rounds for m in session.measurements] == [7 * LEAST_ROUNDS] * 3
    assert all(0 < m.ratio_low < 1 < m.ratio_high < 2 for m in session.measurements)
    assert told[0] == (0, 36)
    assert told[-1] == (20, 21)
    launch_s = LEAST_ROUNDS * 2 * 2.0
    assert link.clock.now_s - begin_s < 21 * (launch_s + 1.0)


def test_quick_models_get_all_launches_however_small_the_budget() -> None:
    link = ModelLink({"a": 1.0, "original": 1.0}, 0.0, 0)
    (brief,) = (replace(one, budget_s=0.1) for one in plans(["a"]))
    session = compare_together(link, [brief], 12, link.clock)
    assert [len(logs) for logs in session.log_ratios] == [12]


def test_a_round_in_which_the_search_was_stopped_costs_no_launches() -> None:
    assert allowed_launches(plans(["a"]), 12, [2.0] * 6 + [5000.0]) == 12
    assert allowed_launches(plans(["a"]), 12, [20.0] * 3) == 12  # too early to tell
    assert allowed_launches(plans(["a"]), 12, [20.0] * 6) == 6


# ---- closed forms


@pytest.mark.parametrize("count", range(2, 20))
def test_the_highest_level_is_that_of_the_whole_span(count: int) -> None:
    assert signed_rank_rank(count, highest_level(count)) == 1
    assert signed_rank_rank(count, highest_level(count) + 1e-9) == 0
    assert fewest_launches(highest_level(count)) == count


@pytest.mark.parametrize("count", range(1, 11))
def test_signed_rank_agrees_with_all_signs(count: int) -> None:
    sums = [
        sum(rank for rank, sign in enumerate(signs, 1) if sign)
        for signs in itertools.product((False, True), repeat=count)
    ]
    for level in (0.5, 0.9, 0.95, 0.99):
        rank = signed_rank_rank(count, level)
        allowed = (1 - level) / 2 * len(sums)
        assert sum(total < rank for total in sums) <= allowed < sum(total <= rank for total in sums)


@pytest.mark.parametrize("count", [51, 80, 160])
def test_signed_rank_of_many_values_is_as_good_as_counted(count: int) -> None:
    chances = np.ones(1)
    for rank in range(1, count + 1):
        chances = np.convolve(chances, [0.5, *np.zeros(rank - 1), 0.5])
    for level in (0.95, 0.9875):
        counted = int(np.searchsorted(np.cumsum(chances), (1 - level) / 2, side="right"))
        assert abs(signed_rank_rank(count, level) - counted) <= 0.01 * counted


def test_signed_rank_intervals_are_the_tabled_ones() -> None:
    # Hollander, Wolfe and Chicken, table A.4: n = 8 at 95 %: the fourth smallest mean of pairs.
    assert signed_rank_rank(8, 0.95) == 4
    values = np.array([1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0])
    means = sorted((a + b) / 2 for a, b in itertools.combinations_with_replacement(values, 2))
    assert walsh_means(values).tolist() == means
    assert signed_rank_interval(values, 0.95) == (means[3], means[-4])


def test_too_few_launches_give_an_infinite_interval() -> None:
    assert signed_rank_interval(np.ones(5), 0.95) == (-math.inf, math.inf)
    assert launches_needed(0.95) == 6 + 3


@pytest.mark.parametrize("noise", ["normal", "laplace", "standard_cauchy"])
def test_signed_rank_interval_covers_the_centre(noise: str) -> None:
    rng = np.random.default_rng(3)
    covered = 0
    for _ in range(1000):
        low, high = signed_rank_interval(getattr(rng, noise)(size=12) + 5.0, 0.95)
        covered += low <= 5.0 <= high
    assert covered / 1000 >= 0.94


def test_wilson_interval() -> None:
    # Newcombe 1998, table I: 81 of 263 and 0 of 20.
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson_interval(20, 20)[1] == 1.0


def test_mcnemar_by_hand() -> None:
    assert worse_by_chance(1, 5) == pytest.approx(7 / 64)
    assert worse_by_chance(0, 0) == 1.0
    assert worse_by_chance(10, 2) > 0.99
    # Beyond what can be summed in time, the normal approximation.
    assert worse_by_chance(4900, 5100) == pytest.approx(0.0233, abs=0.0005)
