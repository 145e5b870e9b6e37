"""Profiling two models over a link that only pretends: turns, launches, and other thread counts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from search.benchmark.plan import Side
from search.benchmark.profiling import LAUNCHES, Profiled, profile_together
from tests.unit.benchmark.test_protocol import FakeClock, FakeLink, plan

NOTHING = Side("empty.onnx", 1, ())


class Models(FakeLink):
    """A device on which a model takes 1 ms over its threads, and the reference twice as long."""

    def __init__(self) -> None:
        super().__init__(FakeClock(), self._time, 0.004)
        self.threads: dict[str, int] = {}
        self.starts = 0

    def _start(self, request: dict[str, Any]) -> dict[str, Any]:
        self.starts += 1
        return super()._start(request)

    def _open(self, request: dict[str, Any]) -> dict[str, Any]:
        self.threads[request["role"]] = request["threads"]
        return {**super()._open(request), "cold_start_ms": 8.0 - self.starts}

    def _time(self, _: int, side: int) -> float:
        return (1 + side) / self.threads[("candidate", "reference")[side]]

    def _profile(self, request: dict[str, Any]) -> dict[str, Any]:
        return {"kernels": [{"name": request["role"], "microseconds": request["runs"]}]}


def profile(link: Models, threads: int = 1, counts: tuple[int, ...] = ()) -> dict[str, Profiled]:
    sides = replace(plan(), candidate=Side("a", threads, (("key", "value"),)))
    return profile_together(link, sides, NOTHING, counts)


def test_both_models_take_turns_in_fresh_processes() -> None:
    link = Models()
    found = profile(link)
    starts = [request["roles"] for request in link.log if request["request"] == "start"]
    assert starts == [["candidate", "reference"], ["reference", "candidate", "empty"]]
    rounds = [request for request in link.log if request["request"] == "rounds"]
    assert len(rounds) == LAUNCHES
    assert len({request["seed"] for request in rounds}) == LAUNCHES
    assert found["candidate"].latency_ms == {1: 1.0}
    assert found["reference"].latency_ms == {1: 2.0}
    # The better of the launches.
    assert found["candidate"].cold_start_ms == 6.0
    assert link.log[-1] == {"request": "close"}


def test_other_thread_counts_are_timed_with_the_same_session() -> None:
    link = Models()
    found = profile(link, threads=2, counts=(1, 2, 4))
    assert found["candidate"].latency_ms == {1: 1.0, 2: 0.5, 4: 0.25}
    assert found["reference"].latency_ms == {1: 2.0, 2: 1.0, 4: 0.5}
    opened = [request for request in link.log if request["request"] == "open"]
    entries = {"candidate": {"key": "value"}, "reference": {"key": "value"}, "empty": {}}
    assert all(one["session_entries"] == entries[one["role"]] for one in opened)
    # The candidate's own count was not opened again.
    assert [o["threads"] for o in opened if o["role"] == "candidate"] == [2, 2, 1, 4]


@pytest.mark.parametrize(("latency_ms", "runs"), [(0.01, 100), (2.0, 50), (500.0, 5)])
def test_slow_models_are_profiled_in_fewer_runs(latency_ms: float, runs: int) -> None:
    link = Models()
    link.block_ms = lambda number, side: latency_ms
    assert profile(link)["candidate"].kernels == [{"name": "candidate", "microseconds": runs}]
