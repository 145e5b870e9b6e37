"""Rules on a planted front choose the point that a user would, or say why there is none."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from search.config.commands import PickConfig
from search.config.parsing import parse
from search.errors import ConfigError, NotMet
from search.front.candidates import Candidate, Offer, accuracy_drop, offer
from search.front.choosing import choose, limits_of, preference, recommend
from search.records.closing import Closing, Finalist
from search.records.trial import CompleteTrial
from tests.deployables import make_deployable
from tests.fakes import file
from tests.plants import make_figures, plant, plant_finalist
from tests.points import make_point

POINT = make_point(0.5, 32, 4.0, 0.9, "sgd", 0.01, "cosine", 1)
DEPLOYABLE = make_deployable(file("a"), 32, ())
NOTHING: Mapping[str, Any] = {
    "study": "s",
    "trial": None,
    "prefer": None,
    "max_latency_ms": None,
    "max_p99_ms": None,
    "min_accuracy": None,
    "max_accuracy_drop": None,
    "max_size_bytes": None,
    "out": None,
    "dry_run": False,
    "promote": False,
    "force": False,
    "reason": None,
    "storage": {"name": "journal"},
    "tracking": {"uri": None, "timeout_s": 1.0},
}


def candidate(
    number: int,
    accuracy: float,
    latency_ms: float,
    size_bytes: int,
    p99_ms: float | None = None,
    tie: int | None = None,
) -> Candidate:
    figures = make_figures(latency_ms=latency_ms, size_bytes=size_bytes, p99_ms=p99_ms)
    return Candidate(
        number, number == 0, POINT, DEPLOYABLE, figures, "test", accuracy, accuracy - 0.01,
        accuracy + 0.01, tie, confirmed=True, left="",
    )  # fmt: skip


# 3 is the fastest, 5 the knee, 2 the smallest, 0 the original.
FRONT = (
    candidate(3, 0.85, 1.0, 400, p99_ms=1.6),
    candidate(2, 0.88, 2.0, 100, p99_ms=2.1),
    candidate(5, 0.91, 3.0, 300, p99_ms=5.0, tie=1),
    candidate(7, 0.91, 3.1, 200, p99_ms=None, tie=1),
    candidate(0, 0.92, 9.0, 900, p99_ms=9.9),
)


def rules(**given: Any) -> PickConfig:
    return parse({**NOTHING, **given}, PickConfig)


def pick(**given: Any) -> int:
    config = rules(**given)
    return FRONT[choose(FRONT, limits_of(config, FRONT[-1]), preference(config))].number


@pytest.mark.parametrize(
    ("given", "number"),
    [
        ({"prefer": "accuracy"}, 0),
        ({"prefer": "latency"}, 3),
        ({"prefer": "size"}, 2),
        ({"prefer": "knee"}, 5),
        ({"max_latency_ms": 3.05}, 5),
        ({"max_latency_ms": 3.0}, 5),  # a limit may be reached
        ({"max_latency_ms": 2.99}, 2),
        ({"max_latency_ms": 100.0}, 0),
        ({"max_latency_ms": 3.5, "prefer": "size"}, 2),
        ({"max_latency_ms": 3.5, "prefer": "latency"}, 3),
        ({"min_accuracy": 0.91}, 5),  # the fastest: that is what the limit leaves free
        ({"min_accuracy": 0.90, "prefer": "size"}, 7),
        ({"max_accuracy_drop": 0.01}, 5),  # 0.92 - 0.91 is a hair above 0.01 in binary
        ({"max_accuracy_drop": 0.0}, 0),
        ({"max_size_bytes": 250}, 7),
        ({"max_p99_ms": 3.0}, 2),  # 7 is never known to keep it
        ({"max_latency_ms": 4.0, "min_accuracy": 0.86}, 5),
        ({"max_latency_ms": 4.0, "min_accuracy": 0.86, "prefer": "latency"}, 2),
    ],
)
def test_rules(given: dict[str, Any], number: int) -> None:
    assert pick(**given) == number


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"max_latency_ms": 0.8},
            "no point of the front keeps max_latency_ms=0.8; max_latency_ms binds: the nearest "
            "point, trial 3, offers latency 1.00 ms",
        ),
        (
            {"min_accuracy": 0.95},
            "no point of the front keeps min_accuracy=0.95; min_accuracy binds: the nearest "
            "point, trial 0, offers accuracy 92.00 %",
        ),
        (
            # Each can be kept, both cannot.
            {"max_latency_ms": 2.5, "min_accuracy": 0.90},
            "no point of the front keeps max_latency_ms=2.5 and min_accuracy=0.9; min_accuracy "
            "binds: the nearest point, trial 2, offers latency 2.00 ms, accuracy 88.00 %",
        ),
        (
            {"max_size_bytes": 50, "max_latency_ms": 4.0},
            "no point of the front keeps max_latency_ms=4 and max_size_bytes=50; max_size_bytes "
            "binds: the nearest point, trial 2, offers latency 2.00 ms, size 100 B",
        ),
        (
            {"max_p99_ms": 1.0},
            "no point of the front keeps max_p99_ms=1; max_p99_ms binds: the nearest point, "
            "trial 3, offers p99 1.60 ms",
        ),
    ],
)
def test_what_cannot_be_met_is_explained(given: dict[str, Any], message: str) -> None:
    with pytest.raises(NotMet) as caught:
        pick(**given)
    assert str(caught.value) == message


def test_a_drop_needs_an_original() -> None:
    with pytest.raises(ConfigError, match="give min_accuracy instead"):
        limits_of(rules(max_accuracy_drop=0.1), None)


@given(
    st.lists(st.tuples(st.integers(0, 50), st.integers(1, 50), st.integers(1, 50)), min_size=1),
    st.integers(0, 50),
    st.integers(1, 50),
    st.sampled_from(["accuracy", "latency", "size", "knee"]),
)
def test_the_choice_keeps_its_limits_and_none_that_does_is_better(
    points: list[tuple[int, int, int]], accuracy: int, latency: int, prefer: Any
) -> None:
    front = [candidate(n, a / 50, float(ms), b) for n, (a, ms, b) in enumerate(points)]
    config = rules(min_accuracy=accuracy / 50, max_latency_ms=float(latency), prefer=prefer)
    allowed = [c for c in front if c.accuracy >= accuracy / 50 and c.latency_ms <= latency]
    assume(prefer != "knee" or len(front) > 2)
    if not allowed:
        with pytest.raises(NotMet):
            choose(front, limits_of(config, None), preference(config))
        return
    chosen = front[choose(front, limits_of(config, None), preference(config))]
    assert chosen in allowed
    if prefer == "accuracy":
        assert chosen.accuracy == max(c.accuracy for c in allowed)
    elif prefer == "latency":
        assert chosen.latency_ms == min(c.latency_ms for c in allowed)
    elif prefer == "size":
        assert chosen.figures.size_bytes == min(c.figures.size_bytes or 0 for c in allowed)


def test_recommendations() -> None:
    offered = Offer(FRONT, (), FRONT[-1], confirmed=True, unfit={})
    named = {name: c.number for name, (c, _) in recommend(offered, None).items()}
    assert named == {"fastest": 5, "most_accurate": 0, "smallest": 2, "knee": 5}
    assert recommend(offered, 0.05)["fastest"][0].number == 2
    assert recommend(offered, 1.0)["fastest"][0].number == 3


def test_a_trial_of_its_own_is_told_what_it_does_not_keep() -> None:
    with pytest.raises(NotMet) as caught:
        choose(FRONT[:1], limits_of(rules(max_latency_ms=0.8), None), "accuracy")
    assert str(caught.value) == (
        "trial 3 does not keep max_latency_ms=0.8; max_latency_ms binds: it offers latency 1.00 ms"
    )


def test_accuracies_of_one_split_are_compared() -> None:
    """A trial that was no finalist has none on test, where all are lower than on validation."""
    original = replace(FRONT[-1], accuracy=0.92, figures=make_figures(val_accuracy=0.95))
    searched = replace(FRONT[0], accuracy=0.92, figures=make_figures(val_accuracy=0.92))
    searched = replace(searched, split="validation")
    assert accuracy_drop(searched, original) == pytest.approx(0.03)
    (limit,) = limits_of(rules(max_accuracy_drop=0.005), original)
    assert limit.excess(searched) > 0
    confirmed = replace(searched, split="test")
    assert accuracy_drop(confirmed, original) == 0
    (limit,) = limits_of(rules(max_p99_ms=1.0), original)
    assert limit.excess(replace(searched, figures=make_figures(p99_ms=None))) == math.inf


def test_two_points_have_no_knee() -> None:
    with pytest.raises(
        NotMet, match=r"prefer=knee: a front bends from 3 points on, this one has 2"
    ):
        choose(FRONT[:2], [], "knee")
    offered = Offer(FRONT[:2], (), None, confirmed=True, unfit={})
    assert "knee" not in recommend(offered, None)
    assert "fastest" in recommend(offered, 0.5)


# ---- what there is to pick from


def _record(number: int, **figures: Any) -> CompleteTrial:
    model = make_deployable(file(str(number)), 8, ())
    record: CompleteTrial = plant(number, "complete", **figures)
    return replace(record, deployable=model)


def test_finalists_that_stand_are_offered() -> None:
    first = _record(0, val_accuracy=0.92, latency_ms=2.0)
    second = _record(1, val_accuracy=0.91, latency_ms=1.0)
    third = _record(2, val_accuracy=0.80, latency_ms=1.5)
    records = [first, second, third, plant(3, outcome="failed", reason="diverged")]

    def finalist(record: CompleteTrial, stands: bool) -> Finalist:
        reason = "" if stands else "1 is faster and not measurably less accurate"
        return plant_finalist(record, deployable=record.deployable, stands=stands, reason=reason)

    closing = Closing(4, (finalist(second, True), finalist(first, False)), ())
    offered = offer(records, closing, ("accuracy", "latency"), 1000)
    assert [c.number for c in offered.candidates] == [1]
    assert offered.candidates[0].split == "test"
    assert offered.candidates[0].accuracy == 0.90
    assert [c.number for c in offered.others] == [0, 2]
    assert offered.original is not None
    assert offered.original.left == ": 1 is faster and not measurably less accurate"
    assert offered.find(2).split == "validation"
    with pytest.raises(ConfigError, match=r"trial=3: is failed \(diverged\); .* are 0, 1, 2"):
        offered.find(3)
    with pytest.raises(ConfigError, match=r"trial=9: there is no such trial; .* are 0, 1, 2"):
        offered.find(9)


def test_an_original_that_breaks_a_limit_is_compared_with_but_not_picked() -> None:
    slow = plant(0, "infeasible", "exceeds max_latency_ms by 1", val_accuracy=0.92, latency_ms=2.0)
    records = [slow, _record(1, val_accuracy=0.91, latency_ms=1.0)]
    offered = offer(records, None, ("accuracy", "latency"), 1000)
    assert [c.number for c in (*offered.candidates, *offered.others)] == [1]
    assert offered.original is not None
    limits = limits_of(rules(max_accuracy_drop=0.01), offered.original)
    assert choose(offered.candidates, limits, "latency") == 0
    with pytest.raises(ConfigError, match="trial=0: is infeasible"):
        offered.find(0)


def test_without_a_closing_round_the_searched_front_is_offered() -> None:
    records = [
        _record(0, val_accuracy=0.92, latency_ms=2.0),
        _record(1, val_accuracy=0.91, latency_ms=1.0),
        _record(2, val_accuracy=0.80, latency_ms=1.5),
    ]
    offered = offer(records, None, ("accuracy", "latency"), 1000)
    assert [c.number for c in offered.candidates] == [1, 0]
    assert not offered.confirmed
    first = offered.candidates[0]
    # Wilson's interval of 910 out of 1000.
    assert (first.accuracy_low, first.accuracy_high) == pytest.approx((0.8906, 0.9262), abs=1e-4)
