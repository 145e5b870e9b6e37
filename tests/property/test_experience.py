"""What is looked up quickly is what a look at every trial in turn would find."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from search.front.front import front, losses
from search.policy.deployments import Deployment, LatencyModel, Students, worth_deploying
from search.policy.experience import Experience
from search.records.trial import CompleteTrial, Cost, Outcome, ScoredTrial, TrialRecord
from tests.fakes import PROFILE, lab
from tests.plants import plant
from tests.points import SPACE

NAMES = ("accuracy", "latency")
ALLOWED: list[Deployment] = [(32, 1), (32, 2), (8, 1), (8, 2), (4, 1)]
SIZES = [(1000, 100), (600, 100), (600, 60), (200, 60), (200, 20)]
OUTCOMES: list[Outcome] = ["complete", "complete", "complete", "infeasible", "stopped"]


def students_of(records: Sequence[TrialRecord]) -> list[ScoredTrial]:
    return [r for r in records if r.student_of is None and isinstance(r, ScoredTrial)]


@st.composite
def drawn_trials(draw: st.DrawFn) -> list[TrialRecord]:
    """Trials of few sizes, accuracies and latencies, so that many are equal in something."""
    records: list[TrialRecord] = []
    for number in range(draw(st.integers(1, 12))):
        macs, parameters = draw(st.sampled_from(SIZES))
        bits, threads = draw(st.sampled_from(ALLOWED))
        accuracy = 0.5 + draw(st.integers(0, 4)) / 10
        outcome = draw(st.sampled_from(OUTCOMES))
        record: TrialRecord = plant(
            number,
            outcome,
            bits=bits,
            macs=macs,
            parameters=parameters,
            val_accuracy=accuracy if outcome == "complete" else None,
            float_accuracy=accuracy + draw(st.integers(0, 1)) / 20,
            latency_ms=draw(st.integers(1, 9)) / 10,
        )
        ratio = draw(st.sampled_from([0.0, 0.5, 0.6]))
        rate = draw(st.sampled_from([0.001, 0.01]))
        limits = [
            {"min_accuracy_share": 0.2},
            {"max_accuracy_drop": 0.1},
            {"max_size_bytes": 1.0},
        ]
        records.append(
            replace(
                record,
                point=record.point.replaced(prune_ratio=ratio, threads=threads, learning_rate=rate),
                violations=draw(st.sampled_from(limits)) if outcome == "infeasible" else {},
                student_of=draw(st.sampled_from([None, *(r.number for r in students_of(records))])),
            )
        )
    return records


def moved(cost: Cost, end: float) -> float:
    return cost.latency_ms * end / cost.latency_ratio


def measured(record: TrialRecord) -> Cost:
    assert record.figures is not None
    return record.figures


def keeps_limits(record: TrialRecord) -> bool:
    return "max_size_bytes" not in record.violations


@given(drawn_trials(), st.sampled_from(SIZES), st.integers(1, 9), st.sampled_from([32, 8, 4]))
def test_rivals(records: list[TrialRecord], size: tuple[int, int], tenths: int, bits: int) -> None:
    known = Experience(records, lab(), NAMES)
    own = plant(99, macs=size[0], parameters=size[1], latency_ms=tenths / 10).figures
    fastest = moved(own, own.latency_ratio_low)
    rivals = [record for record in records if keeps_limits(record)]
    complete = [record for record in rivals if isinstance(record, CompleteTrial)]
    best = max([lab().reference_accuracy, *(r.figures.val_accuracy for r in complete)])
    assert known.is_beaten(own) == any(
        r.figures.val_accuracy >= best and moved(r.figures, r.figures.latency_ratio_high) <= fastest
        for r in complete
    )
    larger = [
        record.number
        for record in rivals
        if record.point.whole("bits") >= bits
        and (measured(record).macs, measured(record).parameters) != size
        and measured(record).macs >= size[0]
        and measured(record).parameters >= size[1]
        and moved(measured(record), measured(record).latency_ratio_high) <= fastest
    ]
    assert known.larger_as_good(bits, own) == (larger[0] if larger else None)
    assert known.asked == sum(record.student_of is None for record in records)


@given(drawn_trials(), st.integers(1, 3), st.booleans())
def test_students_that_may_be_deployed_once_more(
    records: list[TrialRecord], limit: int, only_changed: bool
) -> None:
    students = Students(records)
    everybody = students_of(records)
    busy = [everybody[0].number] if everybody else []
    found = students.open(limit, busy, only_changed)
    siblings = [*(record.student_of for record in records), *busy]
    assert [students.records[position] for position in found] == [
        record
        for record in everybody
        if siblings.count(record.number) < limit and (record.figures.is_changed or not only_changed)
    ]


@pytest.mark.parametrize("names", [NAMES, ("accuracy", "latency", "size", "cpu", "memory")])
@given(data=st.data())
def test_no_student_that_may_reach_the_front_is_left_out(
    names: tuple[str, ...], data: st.DataObject
) -> None:
    records = data.draw(drawn_trials())
    known = Experience(records, lab(), names)
    everybody = known.students.open(9, [], only_changed=False)
    given_all = known.tried, known.front.members, known.latency_model, ALLOWED, SPACE, names
    together = worth_deploying(known.students, everybody, *given_all)
    one_by_one = [
        prediction
        for position in everybody
        for prediction in worth_deploying(
            known.students, everybody[everybody == position], *given_all
        )
    ]
    assert together == one_by_one
    # Nothing is beaten for sure that a student promises: with no front to reach all are hoped for.
    free = worth_deploying(
        known.students, everybody, set(), [], known.latency_model, ALLOWED, SPACE, names
    )
    assert len(free) == len(everybody) * len(ALLOWED)
    assert known.front.members == front(records, names)
    if not everybody.size:
        return
    promised = known.latency_model.promises(known.students.structures(everybody), ALLOWED)
    bound = known.students.at_most(everybody, promised, names)
    for position, least in zip(everybody, bound, strict=True):
        student = known.students.records[position]
        for prediction in (
            prediction for prediction in free if prediction.student == student.number
        ):
            promised_losses = losses(prediction.figures, prediction.figures.val_accuracy, names)
            assert (least <= np.array(promised_losses) * (1 + 1e-12)).all()


def unlikeness(one: int, other: int) -> float:
    return abs(math.log((one + 1) / (other + 1)))


@given(st.lists(st.integers(1, 40), min_size=1, max_size=9), st.integers(1, 40))
@example([3, 8], 5)  # as alike as can be told
def test_the_most_similar_network_is_asked(sizes: list[int], wanted: int) -> None:
    # Every network shows another gain by its second thread, so the answer tells which was asked.
    latency_model = LatencyModel(PROFILE, lab().baseline, {})
    shares: dict[int, float] = {}
    for order, macs in enumerate(dict.fromkeys(sizes)):
        shares[macs] = 0.5 + order / 100
        latency_model.measured[macs, 1, ""] = {}
        for threads, ms in ((1, 1.0), (2, shares[macs])):
            record = plant(order, bits=32, macs=macs, parameters=1, latency_ms=ms)
            latency_model.add(replace(record, point=record.point.replaced(threads=threads)))
    own = plant(99, bits=32, macs=wanted, parameters=2, latency_ms=1.0)
    latency_model.add(replace(own, point=own.point.replaced(threads=1)))
    nearest = min(shares, key=lambda macs: unlikeness(wanted, macs))
    shown = shares[nearest] * 1.0
    assert latency_model.predicted_ms((wanted, 2, ""), (32, 2)) == pytest.approx(shown)
