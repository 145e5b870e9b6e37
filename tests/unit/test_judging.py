"""The judge of trials on planted records: what is stopped untrained, at a rung, and what is not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from search.config.study import PolicyConfig
from search.policy.experience import Experience
from search.policy.judging import Judge
from search.records.trial import Progress, StoppedTrial, TrialRecord
from tests.fakes import lab
from tests.plants import plant
from tests.points import SPACE

EXACT: dict[str, Any] = {"latency_ratio": 0.5, "latency_ratio_low": 0.5, "latency_ratio_high": 0.5}


def judge(
    records: Sequence[TrialRecord],
    latency_first: bool = True,
    eta: float | None = None,
    at_rung: Sequence[list[float]] = (),
) -> Judge:
    policy = PolicyConfig(latency_first=latency_first, eta=eta, deployments=0)
    names = ("accuracy", "latency")
    known = Experience(records, lab(), names)
    return Judge(known, policy, (), SPACE, lambda end, own: [*at_rung, own])


def test_hopeless_is_what_the_most_accurate_network_beats() -> None:
    best = plant(0, val_accuracy=0.95, latency_ms=0.8, **EXACT)  # as accurate as the original

    def said(latency_ms: float, **policy: Any) -> str | None:
        figures = replace(best.figures, parameters=10**9, latency_ms=latency_ms)
        return judge([best], **policy).before_training(best.point, figures)

    assert said(0.79) is None
    assert said(0.81) == "not trained: cannot reach the front whatever its accuracy"
    assert said(0.81, latency_first=False) is None


def test_a_smaller_network_that_is_slower_is_not_trained() -> None:
    larger = plant(2, val_accuracy=0.9, latency_ms=0.4, **EXACT)

    def said(latency_ms: float, parameters: int) -> str | None:
        figures = replace(larger.figures, parameters=parameters, latency_ms=latency_ms)
        return judge([larger]).before_training(larger.point, figures)

    known = larger.figures.parameters
    assert said(0.41, known - 1) == "not trained: the larger network of trial 2 is as fast"
    assert said(0.39, known - 1) is None
    assert said(0.41, known + 1) is None
    assert said(0.41, known) is None


def test_noise_condemns_no_network() -> None:
    larger = plant(2, val_accuracy=0.9, latency_ms=0.4, **EXACT)
    figures = replace(larger.figures, parameters=1, latency_ms=0.41)
    perhaps_faster = replace(figures, latency_ratio_low=0.48)  # 0.41 ms, or down to 0.394
    assert judge([larger]).before_training(larger.point, figures) is not None
    assert judge([larger]).before_training(larger.point, perhaps_faster) is None
    lucky = replace(larger, figures=replace(larger.figures, latency_ratio_high=0.52))  # to 0.416
    assert judge([lucky]).before_training(larger.point, figures) is None


def test_a_network_that_breaks_a_limit_condemns_nobody() -> None:
    too_large = replace(
        plant(2, outcome="infeasible", val_accuracy=None, latency_ms=0.4, **EXACT),
        violations={"max_size_bytes": 1000.0},
    )
    assert too_large.figures is not None
    figures = replace(too_large.figures, parameters=1)
    assert judge([too_large]).before_training(too_large.point, figures) is None
    inaccurate = replace(too_large, violations={"max_accuracy_drop": 0.01, "max_size_bytes": -1.0})
    assert judge([inaccurate]).before_training(inaccurate.point, figures) is not None


@pytest.fixture
def behind() -> StoppedTrial:
    """What has reached a rung where five others are better."""
    return plant(9, "stopped", float_accuracy=0.5, latency_ms=1.0)


def reached(record: StoppedTrial) -> Progress:
    assert isinstance(record.figures, Progress)
    return record.figures


OTHERS = [[0.1 + 0.01 * i, 0.5 - 0.01 * i] for i in range(5)]


def test_what_is_behind_at_a_rung_stops(behind: StoppedTrial) -> None:
    def said(eta: float | None, others: Sequence[list[float]]) -> str | None:
        return judge([], eta=eta, at_rung=others).at_rung(behind.point, 0.5, reached(behind))

    assert said(3.0, OTHERS) == "behind at 50% of its training, where one in 3 goes on"
    assert said(None, OTHERS) is None
    assert said(3.0, OTHERS[:3]) is None  # too few to compare with


def test_what_was_trained_already_goes_on(behind: StoppedTrial) -> None:
    def said(trained: TrialRecord) -> str | None:
        found = judge([trained], eta=3.0, at_rung=OTHERS)
        return found.at_rung(behind.point, 0.5, reached(behind))

    same = plant(3)
    elsewhere = replace(same, point=same.point.replaced(prune_ratio=0.6, bits=4, threads=1))
    assert said(elsewhere) is None
    assert said(replace(same, point=same.point.replaced(learning_rate=0.1))) is not None
    assert said(plant(3, parameters=1)) is not None
    assert said(plant(3, outcome="stopped")) is not None
