"""What a busy machine does to ratios, by the rule that rounds are made with: a scheduler imitated.

A process that has slept runs for about a time slice; then others have the processor for some
slices, and so on. Of the two rules, one gives both models the same number of runs and times
them as a whole, as protocol 2 did; the other is the agent's.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

from search.benchmark.launches import BLOCK_MS
from search.devices.agent import session
from search.devices.agent.clocks import PROCESSOR, WALL, is_fine
from search.devices.agent.processor import place, share_cpu, usable_cpus
from search.devices.agent.turns import (
    EVEN,
    LONGEST_PIECE_MS,
    PIECE_MS,
    Shares,
    share_time,
)
from search.devices.agent.warming import is_steady
from search.records.measurement import Measurement
from tests.unit.benchmark.test_protocol import FakeClock, FakeLink, plan, run

RATIOS = (0.2, 0.5, 1.0, 3.0)
SIMULATIONS = 25
REFERENCE_MS = 0.5
SLICE_MS = 3.0
COLD_MS = 0.01  # of processor time, to have the caches again after others
NOISE = 0.01


@dataclass
class Machine:
    """A processor that others want too.

    Args:
        rng: Source of chance.
        others: Processes that want it; 0 is an idle machine.
    """

    rng: np.random.Generator
    others: float

    def wake(self) -> None:
        self.left_ms = SLICE_MS * self.rng.uniform(0.5, 1.5)

    def work(self, work_ms: float) -> dict[str, float]:
        """Returns what work takes, in milliseconds by clock."""
        took = {PROCESSOR: work_ms * math.exp(self.rng.normal(0.0, NOISE)), WALL: 0.0}
        remaining = took[PROCESSOR]
        while self.others and remaining > self.left_ms:
            remaining -= self.left_ms
            took[WALL] += self.others * SLICE_MS * self.rng.uniform(0.5, 1.5)
            took[PROCESSOR] += COLD_MS
            self.left_ms = SLICE_MS
        self.left_ms -= remaining
        took[WALL] += took[PROCESSOR]
        return took


Rule = Callable[[float, float], Shares]


def equal_runs(candidate_ms: float, reference_ms: float) -> Shares:
    runs = math.ceil(BLOCK_MS / min(candidate_ms, reference_ms))
    return Shares([runs, runs], 1, [1, 1])


def equal_time(candidate_ms: float, reference_ms: float) -> Shares:
    return share_time([candidate_ms, reference_ms], BLOCK_MS)


def compare(
    ratio: float, reference_ms: float, others: float, rule: Rule, clock: str, seed: int
) -> Measurement:
    """Compares two models on a machine, as the protocol does."""
    run_ms = (ratio * reference_ms, reference_ms)
    shares = rule(*run_ms)
    machine = Machine(np.random.default_rng([seed, round(100 * ratio)]), others)
    # Fresh processes differ a little.
    luck = machine.rng.normal(0.0, 0.003, 100)
    launches = itertools.count()
    current = [0.0]

    def launch() -> None:
        current[0] = luck[next(launches)]

    def block_ms(_: int, side: int) -> float:
        machine.wake()
        machine.work(shares.warm[side] * run_ms[side])
        piece_ms = shares.runs[side] * run_ms[side]
        pieces = [machine.work(piece_ms)[clock] for _ in range(shares.pieces)]
        return np.median(pieces) / shares.runs[side] * math.exp(current[0] * (1 - 2 * side) / 2)

    # Its clock is of rounds alone: so many fit into a launch's share of the budget.
    link = FakeLink(FakeClock(), block_ms, 0.008, launch)
    found: Measurement = run(link, plan(seed, budget_s=6.0))
    return found


def errors(others: float, rule: Rule, clock: str, ratio: float, reference_ms: float) -> list[float]:
    found = [
        compare(ratio, reference_ms, others, rule, clock, seed).ratio for seed in range(SIMULATIONS)
    ]
    return [one / ratio - 1 for one in found]


@pytest.mark.parametrize("ratio", [0.2, 3.0])
def test_equal_runs_are_biased_on_a_busy_machine(ratio: float) -> None:
    bias = np.median(errors(1.0, equal_runs, WALL, ratio, REFERENCE_MS))
    assert abs(bias) > 0.25
    assert np.sign(bias) == np.sign(math.log(ratio))  # the slower one seems slower still


def test_a_model_beside_itself_does_not_show_it() -> None:
    assert abs(np.median(errors(1.0, equal_runs, WALL, 1.0, REFERENCE_MS))) < 0.05


@pytest.mark.parametrize("others", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("reference_ms", [0.05, REFERENCE_MS, 5.0])
def test_equal_time_is_not(others: float, reference_ms: float) -> None:
    """Of all cores busy and twice as many, with models of much less and more than a time slice."""
    holds = 0
    for ratio, seed in itertools.product(RATIOS, range(SIMULATIONS)):
        found = compare(ratio, reference_ms, others, equal_time, PROCESSOR, seed)
        assert found.ratio == pytest.approx(ratio, rel=0.02 if others == 0 else 0.05)
        holds += found.ratio_low <= ratio <= found.ratio_high
    assert holds / (len(RATIOS) * SIMULATIONS) >= 0.95


@pytest.mark.parametrize("others", [1.0, 2.0])
def test_nor_is_it_by_the_wall_clock(others: float) -> None:
    """Several threads have no other."""
    holds = 0
    for ratio in RATIOS:
        found = [
            compare(ratio, REFERENCE_MS, others, equal_time, WALL, seed)
            for seed in range(SIMULATIONS)
        ]
        assert np.median([one.ratio for one in found]) == pytest.approx(ratio, rel=0.02)
        holds += sum(one.ratio_low <= ratio <= one.ratio_high for one in found)
    assert holds / (len(RATIOS) * SIMULATIONS) >= 0.95


@pytest.mark.parametrize("reference_ms", [0.01, 0.1, 1.0, 5.0])
@pytest.mark.parametrize("ratio", [0.05, 0.2, 0.45, 0.7, 0.9, 1.0, 1.3, 2.5, 3.0, 20.0])
def test_pieces_take_both_the_same_time(reference_ms: float, ratio: float) -> None:
    run_ms = [ratio * reference_ms, reference_ms]
    shares = share_time(run_ms, BLOCK_MS)
    took = [runs * ms for runs, ms in zip(shares.runs, run_ms, strict=True)]
    slow_ms = max(run_ms)
    assert max(took) >= PIECE_MS / EVEN
    assert max(took) <= max(1.2 * LONGEST_PIECE_MS, slow_ms)
    assert 0.7 * BLOCK_MS <= shares.pieces * max(took) <= max(1.3 * BLOCK_MS, max(took))
    if slow_ms <= LONGEST_PIECE_MS / 5:
        assert max(took) / min(took) <= 1.2


def test_slow_models_run_once_and_warm_themselves() -> None:
    assert share_time([200.0, 190.0], BLOCK_MS) == Shares([1, 1], 1, [0, 0])
    assert share_time([60.0, 20.0], BLOCK_MS) == Shares([1, 3], 1, [1, 3])


@pytest.mark.parametrize(("step_ns", "fine"), [(300, True), (10_000_000, False)])
def test_a_clock_of_ticks_is_not_fine(step_ns: int, fine: bool) -> None:
    nanoseconds = itertools.count(0, 100)
    assert is_fine(lambda: next(nanoseconds) // step_ns * step_ns) is fine


@pytest.mark.parametrize(
    ("samples", "steady"),
    [
        ([200.0, 204.0, 201.0], True),
        ([300.0, 200.0, 204.0, 201.0], True),
        ([200.0, 204.0], False),
        ([200.0, 220.0, 201.0], False),
    ],
)
def test_a_few_runs_of_a_slow_model_must_agree(samples: list[float], steady: bool) -> None:
    assert is_steady(samples) is steady


@pytest.mark.parametrize(
    ("took_ms", "warm"),
    [([500.0, 300.0, 200.0, 204.0, 201.0], True), ([500.0, *[300.0, 200.0] * 3], False)],
)
def test_a_slow_model_is_warm_once_a_few_runs_agree(
    took_ms: list[float], warm: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of its runs no window fits into the time that fast models warm up in."""
    monkeypatch.setattr(session, "WARM_LIMIT_MS", 0.0)
    bench, runs = session.Session(), iter(took_ms)
    bench._clock, bench._feeds = WALL, [{}]
    monkeypatch.setattr(bench, "_time_piece", lambda piece, clock: next(runs))
    assert bench._warm_up() == (200.0, warm)
    assert list(runs) == []


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="only Linux places processes")
def test_two_processes_share_one_processor_and_leave_it() -> None:
    everywhere = os.sched_getaffinity(0)
    with contextlib.ExitStack() as stack:
        pids = []
        for _ in range(2):
            process = stack.enter_context(subprocess.Popen(["sleep", "60"]))
            stack.callback(process.kill)
            pids.append(process.pid)
        share_cpu(pids)
        one, other = map(os.sched_getaffinity, pids)
        assert one == other
        assert len(one) == 1
        assert one <= everywhere
        place(pids, usable_cpus())
        assert [os.sched_getaffinity(pid) for pid in pids] == 2 * [everywhere]
    share_cpu(pids)  # both are gone
