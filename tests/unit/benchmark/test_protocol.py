"""Closed forms, and whole comparisons over a link and a clock that only pretend."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest

from search.benchmark.estimates import (
    RUNS_FOR_PERCENTILE,
    log_ratios,
    paired_ratio,
    percentile,
    signed_rank_interval,
    signed_rank_rank,
)
from search.benchmark.launches import (
    LEVEL,
    LOOK_LEVEL,
    LOOKS,
    MINIMUM_ROUNDS,
)
from search.benchmark.plan import (
    LAUNCHES_FOR_SPREAD,
    LOG_HALF_WIDTH,
    MOST_LAUNCHES,
    MOST_RUNS,
    POOR_LOG_HALF_WIDTH,
    PROTOCOL_VERSION,
    Plan,
    Side,
)
from search.benchmark.protocol import RETRY_DELAY_S, compare
from search.benchmark.summary import quality_of
from search.devices.agent.messages import Refused
from search.devices.agent.turns import turns
from search.devices.agent.warming import is_settled
from search.records.steps.measuring import Measure

Noise = Callable[[int, int], float]


class FakeClock:
    """Seconds that pass only when told."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class FakeLink:
    """An agent on a device whose every block costs what ``block_ms(round, side)`` says.

    Args:
        clock: Runs on with every request.
        block_ms: Milliseconds of a run, by the number of the round in its launch and the side.
        block_s: Seconds of a block.
        launch: Called before every launch.
        disturbed: Whether others took the processor in the round of that number.
        run_s: Seconds of a single run.
    """

    def __init__(
        self,
        clock: FakeClock,
        block_ms: Noise,
        block_s: float,
        launch: Callable[[], None] = lambda: None,
        disturbed: Callable[[int], bool] = lambda number: False,
        run_s: float = 1e-5,
    ) -> None:
        self.clock = clock
        self.block_ms = block_ms
        self.block_s = block_s
        self.launch = launch
        self.disturbed = disturbed
        self.run_s = run_s
        self.log: list[dict[str, Any]] = []
        self.timeouts_s: list[float] = []
        self._done = 0

    def ask(self, request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        self.log.append(request)
        self.timeouts_s.append(timeout_s)
        answer = getattr(self, f"_{request['request']}")
        reply: dict[str, Any] = answer(request)
        return reply

    def _start(self, _: dict[str, Any]) -> dict[str, Any]:
        self._done = 0
        self.launch()
        return {}

    def _open(self, request: dict[str, Any]) -> dict[str, Any]:
        self.clock.now_s += 0.2
        return {
            "cold_start_ms": 5.0,
            "run_ms": 1.0,
            "warm": True,
            "options": {"intra_op_num_threads": request["threads"]},
            "model_sha256": "abc",
            "onnxruntime": "1.0",
            "baseline_rss_bytes": 500,
        }

    def _single(self, request: dict[str, Any]) -> dict[str, Any]:
        count = min(request["count"], max(1, round(request["limit_ms"] / 1e3 / self.run_s)))
        self.clock.now_s += count * self.run_s
        time_ms = 2.0 if request["role"] == "candidate" else 4.0
        energy = {"mj": None, "reason": "no counter"}
        return {
            "times_ms": [time_ms] * count, "cpu_ms": 3.0, "energy": energy, "peak_rss_bytes": 2000
        }  # fmt: skip

    def _conditions(self, _: dict[str, Any]) -> dict[str, Any]:
        ticks = round(self.clock.now_s)
        return {"cpu": "a CPU", "cpus": [0, 1], "stolen_ticks": ticks, "throttled_us": 7}

    def _throughput(self, request: dict[str, Any]) -> dict[str, Any]:
        return {"images_per_s": 100.0 * request["batch_size"]}

    def _operators(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"operators": {"Conv": 2}}

    def _close(self, _: dict[str, Any]) -> dict[str, Any]:
        return {}

    def _rounds(self, request: dict[str, Any]) -> dict[str, Any]:
        deadline_s = self.clock.now_s + request["limit_ms"] / 1e3
        times: tuple[list[float], list[float]] = ([], [])
        for turn, side in enumerate(turns(request["count"], request["seed"])):
            if turn % 4 == 0 and turn > 0 and self.clock.now_s >= deadline_s:
                break
            times[side].append(self.block_ms(self._done + turn // 2, side))
            self.clock.now_s += self.block_s
        done, self._done = self._done, self._done + len(times[0])
        return {
            "rounds": list(zip(*times, strict=True)),
            "disturbed": [self.disturbed(number) for number in range(done, self._done)],
            "clock": "processor",
        }


def plan(seed: int = 0, budget_s: float = 1e9, launches: int = 2) -> Plan:
    side = Side("model.onnx", 1, (("key", "value"),))
    return Plan(side, side, "inputs.npy", 1, 8, None, launches, True, budget_s, 2e9, seed)


def run(link: FakeLink, what: Plan) -> Any:
    """Compares on the link's own clock."""

    def sleep(seconds: float) -> None:
        link.clock.now_s += seconds

    return compare(link, what, link.clock, sleep)


class Noisy:
    """Blocks under shared drift, noise of their own, heavy tails, and launches that differ.

    Args:
        ratio: Of the candidate over the reference, in the median of launches.
        rng: Source of chance.
        own: Standard deviation of the logarithm of a block.
        launch: The same of a launch.
        tails: Whether one block in fifteen takes up to 3 times as long.
    """

    def __init__(
        self, ratio: float, rng: np.random.Generator, own: float, launch: float, tails: bool
    ) -> None:
        self._rng = rng
        self._log_ratio, self._own, self._spread, self._tails = math.log(ratio), own, launch, tails
        self._drift, self._launch = 0.0, 0.0

    def start(self) -> None:
        self._launch = self._rng.normal(0.0, self._spread)

    def block_ms(self, _: int, side: int) -> float:
        self._drift += self._rng.normal(0.0, 0.01)
        burst = self._rng.uniform(0.2, 1.1) if self._tails and self._rng.random() < 1 / 15 else 0.0
        effect = self._log_ratio + self._launch if side == 0 else 0.0
        return math.exp(self._drift + self._rng.normal(0.0, self._own) + burst + effect)


def spread(log_width: float) -> Noise:
    """Rounds whose log ratios are normal, with that standard deviation, and evenly drawn."""
    golden = (math.sqrt(5) - 1) / 2

    def block_ms(number: int, side: int) -> float:
        share = (number + 1) * golden % 1
        return math.exp(log_width * NormalDist().inv_cdf(share)) if side == 0 else 1.0

    return block_ms


ALIKE, FAR_APART = 0.0, 0.5


def test_the_fewest_rounds_have_an_interval_narrower_than_their_span() -> None:
    rounds = np.linspace(-0.01, 0.01, MINIMUM_ROUNDS)
    whole = signed_rank_interval(rounds, LOOK_LEVEL)
    assert whole[1] - whole[0] < 0.02
    assert signed_rank_rank(MINIMUM_ROUNDS, LOOK_LEVEL) > MINIMUM_ROUNDS // 2


def test_estimate_lies_within_its_interval() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        pairs = np.exp(rng.standard_cauchy((MINIMUM_ROUNDS, 2)) / 10)
        low, high = signed_rank_interval(log_ratios(pairs), LOOK_LEVEL)
        assert low <= math.log(paired_ratio(pairs)) <= high


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


# More of them are simulated in tests/bench/test_coverage.py.
SIMULATIONS = 300
Noises = tuple[float, float, float, bool, float]  # ratio, own, launch, tails, budget_s
NOISES: dict[str, Noises] = {
    "quiet": (1.0, 0.02, 0.0, False, 8.0),
    "bursts": (1.0, 0.05, 0.0, True, 8.0),
    "launches differ": (1.0, 0.05, 0.02, True, 8.0),
    "launches differ much, effect": (0.95, 0.05, 0.05, True, 8.0),
    "little time": (1.0, 0.05, 0.0, True, 2.0),
}


def simulate(noises: Noises, simulations: int) -> int:
    """Compares two models so often; returns how many intervals hold the truth."""
    ratio, own, launch, tails, budget_s = noises
    rng = np.random.default_rng(1)
    covered, estimates = 0, []
    for seed in range(simulations):
        noisy = Noisy(ratio, rng, own, launch, tails)
        link = FakeLink(FakeClock(), noisy.block_ms, 0.012, noisy.start)
        found = run(link, plan(seed, budget_s))
        covered += found.ratio_low <= ratio <= found.ratio_high
        assert found.ratio_low <= found.ratio <= found.ratio_high
        estimates.append(found.ratio)
    assert np.median(estimates) == pytest.approx(ratio, rel=0.01)
    return covered


def least_covered(simulations: int, level: float, chance: float) -> int:
    """The fewest that intervals of ``level`` hold, but for a ``chance``: a quantile."""
    below = 0.0
    for count in range(simulations + 1):
        below += math.comb(simulations, count) * level**count * (1 - level) ** (simulations - count)
        if below > chance:
            return count
    raise AssertionError("some number of them holds")


@pytest.mark.parametrize("noises", NOISES.values(), ids=NOISES)
def test_interval_covers_and_finds_no_effect_where_none_is(noises: Noises) -> None:
    # For a ratio of 1 what is not covered is a false alarm.
    assert simulate(noises, SIMULATIONS) >= least_covered(SIMULATIONS, LEVEL, 1e-6)


def test_a_planted_effect_of_five_percent_is_found() -> None:
    rng = np.random.default_rng(2)
    found = []
    for seed in range(200):  # enough, for it is found every time
        noisy = Noisy(0.95, rng, 0.03, 0.005, tails=True)
        link = FakeLink(FakeClock(), noisy.block_ms, 0.004, noisy.start)
        found.append(run(link, plan(seed, 8.0)).ratio_high < 1)
    assert np.mean(found) >= 0.95


@pytest.mark.parametrize(
    ("look", "log_width"), [(20, 0.015), (40, 0.029), (80, 0.043), (160, 0.06)]
)
def test_stops_at_the_look_that_becomes_narrow(look: int, log_width: float) -> None:
    found = run(FakeLink(FakeClock(), spread(log_width), 0.005), plan())
    assert [len(pairs) for _, pairs, _ in found.raw] == [look] * 2
    assert found.rounds == 2 * look
    assert found.quality == "resolved"


def test_no_launch_goes_beyond_the_last_look() -> None:
    found = run(FakeLink(FakeClock(), spread(FAR_APART), 0.005), plan())
    assert {len(pairs) for _, pairs, _ in found.raw} == {LOOKS[-1]}


def test_budget_bounds_all_launches_together() -> None:
    clock = FakeClock()
    begin_s = clock.now_s
    found = run(FakeLink(clock, spread(FAR_APART), 0.005), plan(budget_s=6.0))
    assert MINIMUM_ROUNDS < len(found.raw[0][1]) < LOOKS[-1]
    attempts_s = clock.now_s - begin_s - RETRY_DELAY_S * (len(found.raw) > MOST_LAUNCHES)
    assert attempts_s < 2 * 6.5


def test_slow_model_gets_the_rounds_that_an_interval_needs() -> None:
    link = FakeLink(FakeClock(), spread(ALIKE), block_s=10.0)
    found = run(link, plan(budget_s=3.0))
    assert found.rounds == 2 * MINIMUM_ROUNDS
    assert math.isfinite(found.ratio_low)
    assert math.isfinite(found.ratio_high)


def test_the_milliseconds_of_a_slow_model_rest_on_more_than_its_few_single_runs() -> None:
    def block_ms(number: int, side: int) -> float:
        return 150.0 if side == 0 else 200.0 + number % 2

    found = run(FakeLink(FakeClock(), block_ms, block_s=0.2, run_s=0.2), plan(budget_s=3.0))
    assert found.reference_p50_ms == pytest.approx(200.5)


def test_few_rounds_that_say_too_little_become_as_many_as_the_first_look() -> None:
    link = FakeLink(FakeClock(), spread(FAR_APART), block_s=10.0)
    found = run(link, replace(plan(budget_s=3.0), timeout_s=10.0))  # no second attempt
    assert found.rounds == 2 * LOOKS[0]


def launching(link_ratios: list[float]) -> tuple[FakeLink, list[int]]:
    """A link whose launches have these exact ratios, and the numbers of those that were begun."""
    current = [1.0]
    begun: list[int] = []

    def launch() -> None:
        current[0] = link_ratios[len(begun)]
        begun.append(len(begun))

    def block_ms(_: int, side: int) -> float:
        return current[0] if side == 0 else 1.0

    return FakeLink(FakeClock(), block_ms, 0.005, launch), begun


def test_two_launches_that_agree_are_enough() -> None:
    link, begun = launching([0.700, 0.702])
    found = run(link, plan())
    assert begun == [0, 1]
    assert found.ratio == pytest.approx(math.sqrt(0.700 * 0.702))
    assert (found.ratio_low, found.ratio_high) == pytest.approx((0.700, 0.702))


def test_launches_that_disagree_ask_for_more_and_widen_the_interval() -> None:
    ratios = [0.70, 0.73, 0.71, 0.715, 0.72, 0.725, 0.71]
    link, begun = launching(ratios)
    found = run(link, plan())
    assert len(begun) == MOST_LAUNCHES == found.launches
    assert found.ratio == pytest.approx(0.715)
    assert (found.ratio_low, found.ratio_high) == pytest.approx((0.70, 0.73))
    assert found.quality == "unresolved"


def test_a_disturbed_attempt_is_repeated_once_and_replaced() -> None:
    link, begun = launching([0.5, 0.9, *[0.7] * 5, *[0.70, 0.71] * 4])
    clock = link.clock
    begin_s = clock.now_s
    found = run(link, plan())
    assert len(begun) == MOST_LAUNCHES + LAUNCHES_FOR_SPREAD + 1
    assert clock.now_s - begin_s > RETRY_DELAY_S
    assert (found.ratio_low, found.ratio_high) == pytest.approx((0.70, 0.71))
    assert found.quality == "resolved"
    assert len(found.raw) == len(begun)  # the first attempt stays on record


def test_what_stays_wide_is_poor() -> None:
    link, _ = launching([0.5, 0.9] * MOST_LAUNCHES)
    found = run(link, plan())
    assert math.log(found.ratio_high / found.ratio_low) / 2 > POOR_LOG_HALF_WIDTH
    assert (found.quality, found.launches) == ("poor", 2 * MOST_LAUNCHES)


def test_an_outlier_on_either_side_of_many_launches_is_no_label() -> None:
    # Both attempts are wide, and all but two of their launches agree.
    link, _ = launching([0.5, *[0.70, 0.71] * 3, 0.9, *[0.70, 0.71] * 3])
    found = run(link, plan())
    assert found.launches == 2 * MOST_LAUNCHES
    assert (found.ratio_low, found.ratio_high) == pytest.approx((0.70, 0.71))
    assert found.quality == "resolved"


def test_the_label_is_that_of_the_interval_that_is_told() -> None:
    """Launches that agree make a narrow interval together, however wide each one's own is."""
    link = FakeLink(FakeClock(), spread(FAR_APART), 0.005)
    found = run(link, plan(budget_s=3.0))
    assert LAUNCHES_FOR_SPREAD <= found.launches < 2 * MOST_LAUNCHES
    half = math.log(found.ratio_high / found.ratio_low) / 2
    assert half <= LOG_HALF_WIDTH
    assert found.quality == "resolved"


@pytest.mark.parametrize(
    ("half", "quality"), [(0.015, "resolved"), (0.025, "unresolved"), (0.051, "poor")]
)
def test_labels_follow_the_width(half: float, quality: str) -> None:
    assert quality_of(0.7 - half, 0.7 + half - 1e-9) == quality


def test_no_second_attempt_where_its_time_could_run_out() -> None:
    link, begun = launching([0.5, 0.9] * MOST_LAUNCHES)
    found = run(link, replace(plan(), timeout_s=10.0))
    assert (found.quality, len(begun)) == ("poor", MOST_LAUNCHES)


def test_canaries_get_their_launches_even_where_the_budget_is_spent() -> None:
    link, _ = launching([0.7] * 20)
    assert run(link, plan(launches=6, budget_s=0.1)).launches == 6


def test_a_model_that_takes_long_gets_two_launches_with_intervals_of_their_own() -> None:
    link = FakeLink(FakeClock(), spread(ALIKE), block_s=2.0)
    found = run(link, replace(plan(launches=6, budget_s=8.0), timeout_s=120.0))
    assert (found.launches, found.rounds) == (2, 2 * MINIMUM_ROUNDS)
    assert math.isfinite(found.ratio_low + found.ratio_high)
    quick = FakeLink(FakeClock(), spread(ALIKE), block_s=0.2)
    assert run(quick, replace(plan(launches=6, budget_s=8.0), timeout_s=120.0)).launches == 6


def test_store_tells_protocols_apart() -> None:
    assert Measure.version == PROTOCOL_VERSION


def test_a_plan_may_ask_for_more_launches() -> None:
    link, begun = launching([0.7] * 20)
    assert run(link, plan(launches=5)).launches == 5
    assert len(begun) == 5
    link, begun = launching([0.7] * 20)
    assert run(link, plan(launches=12)).launches == 12


def test_spread_of_launches_holds_their_median_with_the_level() -> None:
    for launches in range(LAUNCHES_FOR_SPREAD, MOST_LAUNCHES + 1):
        assert 1 - 2 * 0.5**launches >= LEVEL  # all on one side of the median
    assert 1 - 2 * 0.5 ** (LAUNCHES_FOR_SPREAD - 1) < LEVEL


def test_disturbed_rounds_do_not_count_and_are_made_up_for() -> None:
    def block_ms(number: int, side: int) -> float:
        return 50.0 if number % 10 < 2 and side == 0 else 1.0

    def disturbed(number: int) -> bool:
        return number % 10 < 2

    found = run(FakeLink(FakeClock(), block_ms, 0.005, disturbed=disturbed), plan())
    assert (found.ratio_low, found.ratio, found.ratio_high) == (1.0, 1.0, 1.0)
    assert found.rounds - found.excluded_rounds == 2 * (LOOKS[0] - 2)  # 2 of those made up for
    assert found.excluded_rounds == 2 * sum(map(disturbed, range(found.rounds // 2)))


def test_values_alone_exclude_nothing() -> None:
    def block_ms(number: int, side: int) -> float:
        return 1e6 if number == 3 and side == 0 else 1.0

    found = run(FakeLink(FakeClock(), block_ms, 0.005), plan())
    assert found.excluded_rounds == 0
    assert (1e6, 1.0) in found.raw[0][1]


def test_where_all_is_disturbed_all_counts() -> None:
    link = FakeLink(FakeClock(), spread(ALIKE), 0.005, disturbed=lambda number: True)
    found = run(link, plan())
    assert found.excluded_rounds == 0
    assert found.ratio == 1.0


@pytest.mark.parametrize(("percent", "runs"), RUNS_FOR_PERCENTILE.items())
def test_percentiles_need_their_number_of_runs(percent: int, runs: int) -> None:
    times = list(np.random.default_rng(0).permutation(np.arange(1.0, runs + 1)))
    assert percentile(times[1:], percent) is None
    assert percentile(times, percent) == math.ceil(percent / 100 * runs)


def test_counts_are_those_of_loadgen() -> None:
    assert RUNS_FOR_PERCENTILE == {50: 11, 90: 64, 95: 130, 99: 662}


def test_percentiles_that_there_is_no_time_for_are_null() -> None:
    found = run(FakeLink(FakeClock(), spread(ALIKE), 0.005, run_s=0.012), plan(budget_s=3.0))
    # Five runs in each of two launches, and a second more of them afterwards.
    assert found.p50_ms == 2.0
    assert found.p90_ms == 2.0
    assert found.p99_ms is None
    swift = run(FakeLink(FakeClock(), spread(ALIKE), 0.005), plan())
    assert swift.p99_ms == 2.0


def test_single_stream_pass_is_topped_up_to_the_exact_count() -> None:
    link = FakeLink(FakeClock(), spread(ALIKE), 0.005, run_s=0.001)
    run(link, plan())
    asked = [r for r in link.log if r["request"] == "single" and r["role"] == "candidate"]
    assert [r["count"] for r in asked] == [MOST_RUNS, MOST_RUNS, MOST_RUNS - 2 * 60]


@pytest.mark.parametrize(
    ("samples", "settled"),
    [
        ([1.0] * 20, True),
        ([1.0, 1.01] * 10, True),
        ([3.0] + [1.0, 1.01] * 10, False),  # the first is an outlier
        ([1.2] * 10 + [1.0] * 10, False),  # falls by a fifth
        ([1.0] * 10 + [1.1] * 10, False),  # its quartiles rise by a tenth
        ([1.0] * 7, False),  # too few
    ],
)
def test_warming_up_ends_by_a_test(samples: list[float], settled: bool) -> None:
    assert is_settled(samples) is settled


def test_record_holds_what_the_agent_said() -> None:
    link = FakeLink(FakeClock(), spread(ALIKE), 0.005)
    found = run(link, plan(seed=7))
    assert (found.p50_ms, found.reference_p50_ms, found.cpu_ms) == (2.0, 4.0, 3.0)
    assert (found.cold_start_ms, found.peak_rss_bytes, found.model_rss_bytes) == (5.0, 2000, 1500)
    assert (found.operators, found.protocol) == ({"Conv": 2}, PROTOCOL_VERSION)
    assert (found.images_per_s, found.warm, found.launches) == (800.0, True, 2)
    assert (found.energy_mj, found.energy_note) == (None, "no counter")
    assert found.conditions["candidate"] == {
        "model_sha256": "abc",
        "onnxruntime": "1.0",
        "options": {"intra_op_num_threads": 1},
    }
    assert (found.conditions["cpu"], found.conditions["throttled_us"]) == ("a CPU", 0)
    assert 0 < found.conditions["stolen_ticks"] < 10
    assert len({seed for seed, *_ in found.raw}) == 2
    assert link.log[-1] == {"request": "close"}
    opened = next(request for request in link.log if request["request"] == "open")
    assert opened["session_entries"] == {"key": "value"}


def test_every_answer_has_the_whole_time_out() -> None:
    link = FakeLink(FakeClock(), spread(ALIKE), block_s=2.0)
    run(link, plan(budget_s=3.0))
    assert set(link.timeouts_s) == {plan().timeout_s}
    # A slow model is asked for one quadruple of blocks at a time.
    asked = [request for request in link.log if request["request"] == "rounds"]
    assert len(asked) == MINIMUM_ROUNDS
