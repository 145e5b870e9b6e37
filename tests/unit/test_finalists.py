"""The closing round: who is chosen, trained on, stands, ties or leaves."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from search.config.study import FinalistsConfig, RandomConfig, StudyConfig
from search.errors import StageFailed
from search.front.front import front
from search.front.standing import joint_level
from search.recipes.closing import FURTHER_RATE, Contender, choose, close, judge
from search.records.closing import Finalist
from search.records.measurement import Session
from search.records.network import Student
from search.records.score import Score
from search.records.steps.measuring import Confirm
from search.records.steps.pruning import Prune
from search.records.steps.scoring import Evaluate
from search.records.steps.step import Step
from search.records.steps.training import Finetune
from search.records.trial import ScoredTrial, TrialRecord
from search.space.parsing import parse_space
from search.storage.journal import Journal
from search.study.study import Study
from tests.deployables import make_deployable
from tests.fakes import PLAIN, FakeEngine, file, lab, measurement, score, trials_of
from tests.plants import plant, rejected
from tests.unit.test_study import SPACE

OBJECTIVES = ("accuracy", "latency")
CONFIG = FinalistsConfig(count=12, epochs=1.5, budget_s=20.0)
IMAGES = 1000
LAUNCHES = 14


@pytest.fixture
def records(tmp_path: Path) -> Iterator[list[TrialRecord]]:
    with Journal(tmp_path, "s") as journal:
        config = StudyConfig(name="s", n_trials=20, timeout_s=None, warm_start=(), seed=1)
        space = parse_space(SPACE, usable_cores=2)
        study = Study(journal, config, space, OBJECTIVES, {})
        yield list(trials_of(study, lab(), FakeEngine(), PLAIN, RandomConfig(name="random")))


def held(records: list[TrialRecord], engine: FakeEngine, **changes: Any) -> tuple[Finalist, ...]:
    config = replace(CONFIG, **changes)
    return close(records, lab(), config, engine)


# ---- the round


def test_an_interrupted_round_ends_like_an_uninterrupted_one(records: list[TrialRecord]) -> None:
    whole = FakeEngine()
    wanted, steps = held(records, whole), len(whole.computed)
    for stop_at in range(1, steps + 1, 5):
        left = stop_at

        def interrupt(step: Step[Any]) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                raise KeyboardInterrupt

        engine = FakeEngine(interrupt)
        with pytest.raises(KeyboardInterrupt):
            held(records, engine)
        assert held(records, engine) == wanted
        assert len(engine.computed) == steps


def test_what_cannot_be_exported_takes_no_part(
    records: list[TrialRecord], caplog: pytest.LogCaptureFixture
) -> None:
    lost = choose(records, OBJECTIVES, CONFIG.count)[0]

    def fail(step: Step[Any]) -> None:
        if isinstance(step, Prune) and step.ratio == lost.point.number("prune_ratio"):
            raise StageFailed("prune", "no")

    found = held(records, FakeEngine(fail))
    expected = {r.number for r in choose(records, OBJECTIVES, CONFIG.count)} - {lost.number}
    assert {finalist.number for finalist in found} == expected
    assert f"trial {lost.number} takes no part in the closing round" in caplog.text


def test_the_front_and_the_original_are_measured_together_and_tested_once(
    records: list[TrialRecord],
) -> None:
    engine = FakeEngine()
    found = held(records, engine)
    members = {r.number for r in front(records, OBJECTIVES)}
    expected = {finalist.number for finalist in found}
    assert expected <= members | {0}
    assert 0 in expected
    assert len(expected - {0}) >= min(len(members), CONFIG.count) - 1
    (session,) = [step for step in engine.computed if isinstance(step, Confirm)]
    assert len(session.comparisons) == len(expected)
    assert {c.reference for c in session.comparisons} == {lab().reference}
    assert {c.reference_threads for c in session.comparisons} == {2}  # its best
    assert {c.budget_s for c in session.comparisons} == {CONFIG.budget_s}
    tested = [s for s in engine.computed if isinstance(s, Evaluate) and s.split == "test"]
    assert len(tested) == len({step.deployable for step in tested})


def test_at_most_so_many_points_cover_the_front(records: list[TrialRecord]) -> None:
    members = front(records, OBJECTIVES)
    assert len(members) > 3
    chosen = choose(records, OBJECTIVES, 3)
    assert len([r for r in chosen if r.number != 0]) <= 3
    by_latency = sorted(members, key=lambda r: r.figures.latency_ms or 0.0)
    assert by_latency[0] in chosen or by_latency[-1] in chosen
    assert choose([], OBJECTIVES, 12) == []


def test_what_only_a_poor_measurement_keeps_on_the_front_comes_last(
    records: list[TrialRecord],
) -> None:
    surely = front(records, OBJECTIVES)
    poor = [
        replace(r, figures=replace(r.figures, quality="poor", latency_ratio_high=1e3))
        for r in records
        if isinstance(r, ScoredTrial)
    ]
    assert len(front(poor, OBJECTIVES)) > len(surely)  # nothing is surely beaten any more
    chosen = choose(poor, OBJECTIVES, len(surely))
    assert {r.number for r in surely} <= {r.number for r in chosen}


def test_students_go_on_gently_from_where_they_stand(records: list[TrialRecord]) -> None:
    engine = FakeEngine()
    held(records, engine)
    further = [s for s in engine.computed if isinstance(s, Finetune) and s.epochs == 1.5]
    assert further
    rates = {r.point.number("learning_rate") for r in records}
    for step in further:
        assert (step.begin, step.end, step.state) == (0.0, 1.0, None)
        assert step.schedule == "cosine"
        assert any(step.learning_rate == FURTHER_RATE * rate for rate in rates)


class Worse(FakeEngine):
    """Further training does harm, or diverges."""

    def __init__(self, fails: bool) -> None:
        super().__init__()
        self._fails = fails

    def _answer(self, step: Step[Any]) -> Any:
        if isinstance(step, Finetune) and step.epochs == CONFIG.epochs:
            if self._fails:
                raise StageFailed("finetune", "the loss is not finite")
            student: Student = super()._answer(step)
            spoilt = replace(student.network, parameters=student.network.parameters - 1)
            return replace(student, network=spoilt)
        return super()._answer(step)


@pytest.mark.parametrize("fails", [True, False])
def test_what_further_training_spoils_stays_as_it_was(
    records: list[TrialRecord], fails: bool
) -> None:
    known = {record.number: record for record in records}
    for finalist in held(records, Worse(fails)):
        assert finalist.deployable == known[finalist.number].deployable


def test_figures_are_against_the_original_at_its_best_thread_count(
    records: list[TrialRecord],
) -> None:
    for finalist in held(records, FakeEngine(), epochs=0):
        ratio = max(0.05, (finalist.figures.size_bytes or 0) / 100_000)
        assert finalist.figures.latency_ms == pytest.approx(0.8 * ratio)
        assert finalist.figures.speedup == pytest.approx(1 / ratio)
        assert finalist.test_low <= finalist.test_accuracy <= finalist.test_high


def test_the_same_round_again_computes_nothing(records: list[TrialRecord]) -> None:
    engine = FakeEngine()
    first = held(records, engine)
    engine.computed.clear()
    assert held(records, engine) == first
    assert engine.computed == []


# ---- the verdict


def contender(number: int, record: TrialRecord, test: Score, size_bytes: int = 1000) -> Contender:
    assert isinstance(record, ScoredTrial)
    record = replace(record, number=number, is_original=number == 0)
    model = make_deployable(file(f"model {number}", size_bytes=size_bytes), 32, ())
    return Contender(record, model, 0.9, score(0.9, IMAGES), test)


Judge = Callable[..., tuple[Finalist, ...]]


@pytest.fixture
def verdict(records: list[TrialRecord]) -> Judge:
    """Judges models given as (latency ratio, test score, size)."""

    def give(*models: tuple[float, Score, int], **changes: Any) -> Any:
        rng = np.random.default_rng(0)
        logs = [tuple(math.log(r) + rng.normal(0, 0.004, LAUNCHES)) for r, _, _ in models]
        told = tuple(measurement(r) for r, _, _ in models)
        session = Session(
            told,
            tuple(logs),
            tuple((one.cpu_ms,) * LAUNCHES for one in told),
            tuple((one.peak_rss_bytes,) * LAUNCHES for one in told),
        )
        contenders = [
            contender(number, records[0], test, size)
            for number, (_, test, size) in enumerate(models)
        ]
        where = lab(**changes)
        level = joint_level(len(models), where.bench.limits.names)
        return judge(contenders, session, level, where)

    return give


def accuracy(share: float) -> Score:
    return score(share, IMAGES)


def test_two_equal_models_tie_and_a_slower_one_leaves(verdict: Judge) -> None:
    found = verdict(
        (1.03, accuracy(0.9), 500), (1.0, accuracy(0.9), 1000), (1.0, accuracy(0.9), 900)
    )
    assert [(f.number, f.stands, f.tie) for f in found] == [
        (2, True, 1),  # as accurate, but smaller
        (1, True, 1),
        (0, False, None),
    ]
    assert found[2].reason in (
        "1 is faster and not measurably less accurate",
        "2 is faster and not measurably less accurate",
    )


def test_a_slower_and_more_accurate_point_stands(verdict: Judge) -> None:
    found = verdict((0.5, accuracy(0.88), 1000), (1.0, accuracy(0.92), 1000))
    assert [(f.number, f.stands, f.tie) for f in found] == [(0, True, None), (1, True, None)]


def test_an_accuracy_that_may_be_chance_does_not_save_a_slower_point(verdict: Judge) -> None:
    found = verdict((0.5, accuracy(0.900), 1000), (1.0, accuracy(0.902), 1000))
    assert [(f.number, f.stands) for f in found] == [(0, True), (1, False)]


def test_a_slower_point_stands_that_is_probably_more_accurate(verdict: Judge) -> None:
    # Four images more, and none less, are seen by chance once in 16 times.
    found = verdict((0.5, accuracy(0.900), 1000), (1.0, accuracy(0.904), 1000))
    assert [(f.number, f.stands) for f in found] == [(0, True), (1, True)]


def test_who_left_drives_nobody_out(verdict: Judge) -> None:
    # 0 is no worse than 1 and 1 no worse than 2, but 0 is worse than 2.
    found = verdict(
        (0.5, accuracy(0.900), 10), (0.7, accuracy(0.902), 10), (1.0, accuracy(0.904), 10)
    )
    assert [(f.number, f.stands) for f in found] == [(0, True), (2, True), (1, False)]


def test_a_smaller_point_stands_where_size_is_traded(verdict: Judge) -> None:
    models = ((0.5, accuracy(0.9), 1000), (1.0, accuracy(0.9), 500))
    assert [f.stands for f in verdict(*models)] == [True, False]
    assert [f.stands for f in verdict(*models, names=(*OBJECTIVES, "size"))] == [True, True]


def test_a_point_that_breaks_a_limit_leaves_and_drives_nobody_out(verdict: Judge) -> None:
    models = ((1.0, accuracy(0.92), 10), (0.5, accuracy(0.92), 10), (0.7, accuracy(0.90), 10))
    found = verdict(*models, max_accuracy_drop=0.01, max_latency_ms=0.6)
    assert {f.number: f.reason for f in found} == {
        1: "",
        2: "it loses 2.00 % on test, 1.00 % is allowed",
        0: "it takes 0.800 ms, 0.600 ms is allowed",  # the original itself
    }


def test_an_original_that_breaks_a_limit_takes_part_all_the_same(
    records: list[TrialRecord],
) -> None:
    first, *others = records
    assert isinstance(first, ScoredTrial)
    assert choose([rejected(first), *others], OBJECTIVES, 12)[-1].number == 0
    unscored = plant(0, "infeasible", val_accuracy=None)
    assert choose([unscored, *others], OBJECTIVES, 12)[-1].number != 0


def test_intervals_widen_with_the_number_of_finalists(verdict: Judge) -> None:
    few = verdict((1.0, accuracy(0.9), 10), (2.0, accuracy(0.9), 10))
    many = verdict((1.0, accuracy(0.9), 10), *((2.0, accuracy(0.9), 10) for _ in range(8)))

    def width(finalist: Finalist) -> float:
        return finalist.figures.speedup_high - finalist.figures.speedup_low

    assert width(next(f for f in many if f.number == 0)) > width(few[0])


def test_without_a_front_there_is_no_round() -> None:
    assert held([], FakeEngine()) == ()


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_the_verdict_does_not_depend_on_the_order_of_the_contenders(
    records: list[TrialRecord], data: st.DataObject
) -> None:
    count = data.draw(st.integers(1, 6))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    noise = data.draw(st.sampled_from([0.002, 0.05]))
    names = data.draw(st.sampled_from([OBJECTIVES, (*OBJECTIVES, "size", "cpu", "memory")]))
    told = [measurement(float(ratio)) for ratio in rng.integers(4, 7, count) / 5]
    logs = [math.log(one.ratio) + rng.normal(0, noise, LAUNCHES) for one in told]
    loads = np.exp(rng.normal(0, noise, (count, LAUNCHES)))
    contenders = []
    for number in range(count):
        right = rng.random(IMAGES) < 0.9
        test = Score(float(right.mean()), IMAGES, np.packbits(right).tobytes().hex())
        contenders.append(contender(number, records[0], test, int(rng.integers(1, 3))))
    where = lab(names=names)

    def judged(order: Sequence[int]) -> tuple[Finalist, ...]:
        session = Session(
            tuple(told[i] for i in order),
            tuple(tuple(logs[i].tolist()) for i in order),
            tuple(tuple(loads[i].tolist()) for i in order),
            tuple(tuple((1e6 * loads[i]).astype(int).tolist()) for i in order),
        )
        level = joint_level(count, names)
        return judge([contenders[i] for i in order], session, level, where)

    found = judged(range(count))
    assert any(finalist.stands for finalist in found)
    assert judged(data.draw(st.permutations(range(count)))) == found


def test_what_is_little_better_than_guessing_on_test_leaves_and_drives_nobody_out(
    verdict: Judge,
) -> None:
    # Two classes: half of the way from 0.5 to the original's 0.92 is 0.71.
    found = verdict((1.0, accuracy(0.92), 10), (0.2, accuracy(0.70), 10), (0.3, accuracy(0.72), 10))
    assert {f.number: f.stands for f in found} == {2: True, 0: True, 1: False}
    assert found[-1].reason == (
        "it is little better than guessing: 70.00 % on test, where at least 71.00 % is wanted"
    )


def test_a_point_leaves_where_another_is_more_accurate_and_as_fast(verdict: Judge) -> None:
    found = verdict((1.0, accuracy(0.95), 10), (0.5, accuracy(0.88), 10), (0.5, accuracy(0.91), 10))
    assert {f.number: f.stands for f in found} == {2: True, 0: True, 1: False}
    assert found[-1].reason == "2 is more accurate and not measurably slower"
