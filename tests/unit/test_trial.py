"""The recipe of a trial, answered by formula: what is asked, in which order, and what is spared."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.engine.base import Done
from search.engine.driving import ResourceUsage, drive
from search.errors import InfeasiblePoint, StageFailed
from search.recipes.deploying import canary, export
from search.recipes.preparing import LONG_TRAINING_S, prepare, sound_rate, survey, sweep
from search.recipes.pricing import cost_of, effective_bits
from search.recipes.referee import Referee, Unjudged
from search.recipes.trial import kept_layers, trial, violated
from search.records.baseline import Baseline
from search.records.bench import Lab
from search.records.measurement import Measurement
from search.records.network import Student, Teacher
from search.records.placement import ChosenPlacement
from search.records.point import Point
from search.records.score import Score
from search.records.steps.editing import Edited
from search.records.steps.exporting import Export, Exported, Graph, Quantize, Trace
from search.records.steps.measuring import Measure
from search.records.steps.pruning import Cuts, Prune, Sweep
from search.records.steps.recipe import Recipe
from search.records.steps.scoring import Evaluate
from search.records.steps.step import Step
from search.records.steps.training import (
    ChoosePlacement,
    FindRate,
    Finetune,
    Reestimate,
    Teach,
)
from search.records.survey import Cut, FoundRate
from search.records.trial import (
    Cost,
    Figures,
    KeptLayer,
    Progress,
    ScoredTrial,
    StoppedTrial,
    TrialRecord,
)
from search.techniques.finetuning import USUAL_RATE
from tests.deployables import make_deployable
from tests.fakes import (
    CUTS,
    LOCAL,
    NETWORK,
    PROFILE,
    RATE,
    TEACHER_ACCURACY,
    FakeEngine,
    file,
    lab,
    measurement,
    score,
)
from tests.plants import make_cost
from tests.points import make_point

POINT = make_point(
    prune_ratio=0.5,
    bits=8,
    distill_temperature=4.0,
    distill_weight=0.7,
    optimizer="adamw",
    learning_rate=0.01,
    schedule="cosine",
    threads=2,
)
DEPLOY = ["trace", "export", "quantize"]


def finished(point: Point, where: Lab, referee: Referee, engine: FakeEngine) -> TrialRecord:
    """Drives one trial, and returns its record."""
    ending = drive(trial(point, where, referee), engine)
    return ending(
        number=1, is_original=False, student_of=None, stage_s={}, reused_steps=0, wall_s=1.0,
        finished_at=0.0, worker_rss_bytes=None,
    )  # fmt: skip


def scored(record: TrialRecord) -> Figures:
    """The figures of a trial whose model was scored."""
    assert isinstance(record, ScoredTrial)
    return record.figures


class Recorder(FakeEngine):
    """Remembers every step that was asked for, known or not."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[Step[Any]] = []

    def run(self, step: Step[Any]) -> Done:
        self.asked.append(step)
        return super().run(step)

    def finish(self, point: Point, where: Lab | None = None) -> TrialRecord:
        """Drives one trial; afterwards ``asked`` and ``computed`` hold its steps alone."""
        self.asked.clear()
        self.computed.clear()
        return finished(point, where or lab(), Unjudged(), self)

    def kinds(self) -> list[str]:
        return [step.kind for step in self.asked]

    def new_kinds(self) -> list[str]:
        return [step.kind for step in self.computed]


# ---- order


def test_latency_is_known_before_anything_is_trained() -> None:
    engine = Recorder()
    ending = engine.finish(POINT)
    assert ending.outcome == "complete"
    assert engine.kinds() == [
        *["prune", *DEPLOY, "measure"],
        *["reestimate", "finetune", "finetune", *DEPLOY, "evaluate"],
    ]
    # The trained weights go into the graph that was traced before.
    assert engine.new_kinds().count("trace") == 1


def test_the_untrained_and_not_the_trained_model_is_measured() -> None:
    engine = Recorder()
    engine.finish(POINT)
    exports = [step for step in engine.asked if isinstance(step, Export)]
    (measured,) = [step for step in engine.asked if isinstance(step, Measure)]
    (scored,) = [step for step in engine.asked if isinstance(step, Evaluate)]
    pruned, trained = (step.network for step in exports)
    tuned = [step for step in engine.asked if isinstance(step, Finetune)]
    assert [tuned[0].start, tuned[0].state] == [pruned, None]
    assert trained != pruned
    assert measured.deployable != scored.deployable
    assert (measured.threads, measured.reference_threads) == (2, 2)
    assert measured.reference == lab().reference
    assert scored.split == "validation"


def test_layers_are_weights_with_channels_in_order() -> None:
    def shapes(first: int, second: int) -> Any:
        return (
            ("block.conv.weight", (first, 1, 3, 3)),
            ("block.norm.weight", (first,)),
            ("block.conv.bias", (first,)),
            ("fc.weight", (second, first)),
        )

    whole, pruned = replace(NETWORK, shapes=shapes(8, 10)), replace(NETWORK, shapes=shapes(3, 10))
    assert kept_layers(pruned, whole) == (KeptLayer("block.conv", 3, 8), KeptLayer("fc", 10, 10))


@pytest.mark.parametrize("limit", [{}, {"max_latency_ms": 0.1}, {"max_accuracy_drop": 0.0}])
def test_every_ending_after_pruning_has_its_layers(limit: dict[str, Any]) -> None:
    ending = finished(POINT, lab(**limit), Unjudged(), FakeEngine())
    assert ending.layers == (KeptLayer("weight", 8, 8),)


def test_rungs_follow_each_other() -> None:
    engine = Recorder()
    engine.finish(POINT)
    first, second = (step for step in engine.asked if isinstance(step, Finetune))
    assert (first.begin, first.end, second.begin, second.end) == (0.0, 0.5, 0.5, 1.0)
    answer: Student = engine.run(first).result
    assert (second.start, second.state) == (answer.network, answer.state)
    assert second.state is not None


def test_the_whole_point_reaches_its_steps() -> None:
    engine = Recorder()
    engine.finish(POINT)
    for step in engine.asked:
        match step:
            case Prune():
                assert (step.ratio, step.round_to) == (0.5, 8)
            case Quantize():
                assert (step.format.bits, step.int8_format) == (8, "u8s8")
            case Finetune():
                assert (step.distill_temperature, step.distill_weight) == (4.0, 0.7)
                assert (step.optimizer, step.learning_rate) == ("adamw", 0.01)
                assert step.schedule == "cosine"
                assert step.teacher_logits == lab().teacher.logits


def test_nothing_is_trained_when_no_channel_was_removed() -> None:
    engine = Recorder()
    ending = engine.finish(POINT.replaced(prune_ratio=0.0))
    assert ending.outcome == "complete"
    assert engine.new_kinds() == ["prune", *DEPLOY, "measure", "evaluate"]
    assert scored(ending).float_accuracy == TEACHER_ACCURACY
    assert scored(ending).channels_removed == 0.0


# ---- what is spared


@pytest.mark.parametrize(
    ("change", "computed"),
    [
        ({}, []),
        ({"threads": 1}, ["measure"]),
        ({"bits": 4}, ["quantize", "measure", "quantize", "evaluate"]),
        (
            {"learning_rate": 0.02},
            ["finetune", "finetune", "export", "quantize", "evaluate"],
        ),
    ],
    ids=["nothing", "threads", "bits", "learning rate"],
)
def test_steps_that_are_known_are_reused(change: dict[str, Any], computed: list[str]) -> None:
    engine = Recorder()
    engine.finish(POINT)
    engine.finish(POINT.replaced(**change))
    assert engine.new_kinds() == computed


@pytest.mark.parametrize(
    "change",
    [
        {"distill_temperature": 5.0},
        {"distill_weight": 0.8},
        {"optimizer": "sgd"},
        {"schedule": "plateau"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_part_of_the_recipe_is_a_training_of_its_own(change: dict[str, Any]) -> None:
    engine = Recorder()
    engine.finish(POINT)
    engine.finish(POINT.replaced(**change))
    assert engine.new_kinds()[:2] == ["finetune", "finetune"]


@pytest.mark.parametrize("point", [POINT, POINT.replaced(prune_ratio=0.0)])
def test_a_recipe_of_the_unpruned_network_does_not_matter(point: Point) -> None:
    engine = Recorder()
    engine.finish(point.replaced(prune_ratio=0.0))
    engine.finish(point.replaced(prune_ratio=0.0, optimizer="sgd", learning_rate=0.3))
    assert engine.new_kinds() == []


def test_effort_counts_seconds_by_stage() -> None:
    engine, usage = FakeEngine(), ResourceUsage()
    drive(trial(POINT, lab(), Unjudged()), engine, usage)
    assert usage.stage_s == {
        **{"prune": 0.5, "trace": 0.5, "export": 1.0, "quantize": 1.0},
        **{"measure": 0.5, "reestimate": 0.5, "finetune": 1.0, "evaluate": 0.5},
    }
    assert usage.reused_steps == 0


def test_effort_counts_a_step_that_is_asked_for_again_once() -> None:
    def recipe() -> Recipe[None]:
        for ratio in (0.5, 0.5, 0.25):
            yield Prune(NETWORK, ratio, 8)

    engine, first, second = FakeEngine(), ResourceUsage(), ResourceUsage()
    drive(recipe(), engine, first)
    assert (first.stage_s, first.reused_steps) == ({"prune": 1.0}, 0)
    drive(recipe(), engine, second)
    assert (second.stage_s, second.reused_steps) == ({"prune": 1.0}, 2)


# ---- limits


def test_a_limit_that_latency_breaks_ends_before_training() -> None:
    engine = Recorder()
    ending = engine.finish(POINT, lab(max_latency_ms=0.05))
    assert (ending.outcome, ending.deployable) == ("infeasible", None)
    assert engine.kinds() == ["prune", *DEPLOY, "measure"]
    assert ending.figures is not None
    # 12 500 bytes: 0.125 of the reference's 0.8 ms
    assert ending.figures.latency_ms == pytest.approx(0.1)
    assert ending.violations == {"max_latency_ms": pytest.approx(0.05)}
    assert ending.reason == "exceeds max_latency_ms by 0.05"
    assert type(ending.figures) is Cost


def test_an_unpruned_network_is_scored_though_it_is_too_slow() -> None:
    # It costs no training, and without the original's accuracy there is no hypervolume.
    ending = Recorder().finish(POINT.replaced(prune_ratio=0.0, bits=32), lab(max_latency_ms=0.05))
    assert ending.outcome == "infeasible"
    assert scored(ending).val_accuracy == TEACHER_ACCURACY
    assert ending.deployable is not None


def test_a_size_limit_ends_before_training() -> None:
    engine = Recorder()
    ending = engine.finish(POINT, lab(max_size_bytes=12_000, max_latency_ms=0.01))
    assert "finetune" not in engine.kinds()
    assert ending.reason == "exceeds max_latency_ms by 0.09, max_size_bytes by 500"


def test_a_memory_limit_ends_before_training() -> None:
    engine = Recorder()
    ending = engine.finish(POINT, lab(max_memory_bytes=69_000_000))
    assert "finetune" not in engine.kinds()
    assert ending.violations == {"max_memory_bytes": 1_000_000}
    assert ending.reason == "exceeds max_memory_bytes by 1e+06"


def test_a_limit_that_accuracy_breaks_keeps_the_scored_model() -> None:
    ending = Recorder().finish(POINT, lab(max_accuracy_drop=0.08))
    assert ending.outcome == "infeasible"
    assert ending.deployable is not None
    assert scored(ending).val_accuracy == pytest.approx(TEACHER_ACCURACY - 0.0875)
    assert ending.reason == "exceeds max_accuracy_drop by 0.0075"


class Guessing(Recorder):
    """Every student of fewer channels answers with one of the two classes, whatever it sees."""

    def _answer(self, step: Step[Any]) -> Any:
        pruned = isinstance(step, Evaluate) and step.deployable != lab().reference
        return score(0.5, 20) if pruned else super()._answer(step)


def test_little_better_than_guessing_is_infeasible_but_trained_to_the_end() -> None:
    engine = Guessing()
    ending = engine.finish(POINT)
    assert engine.kinds().count("finetune") == len(lab().bench.train.rungs)
    assert (ending.outcome, scored(ending).val_accuracy) == ("infeasible", 0.5)
    assert ending.violations == {"min_accuracy_share": pytest.approx((0.95 - 0.5) / 2)}
    assert ending.deployable is not None
    assert ending.reason.startswith("is little better than guessing: 50.00 % on validation")
    also_late = engine.finish(POINT, lab(max_accuracy_drop=0.1))
    assert also_late.reason.endswith("and exceeds max_accuracy_drop by 0.35")


@pytest.mark.parametrize(
    ("accuracy", "share", "outcome"),
    [
        (0.725, 0.5, "complete"),  # half of the way from 0.5 to 0.95
        (0.72, 0.5, "infeasible"),
        (0.72, 0.4, "complete"),
        (0.4, 0.0, "complete"),  # no limit
    ],
)
def test_the_way_from_guessing_to_the_original_counts(
    accuracy: float, share: float, outcome: str
) -> None:
    where = lab(min_accuracy_share=share)
    excess = violated(make_cost(), accuracy, where)["min_accuracy_share"]
    assert (excess > 0) == (outcome == "infeasible")


def test_where_the_original_guesses_there_is_no_way_to_go_half_of() -> None:
    unskilled = replace(lab(), reference_accuracy=0.4)
    assert unskilled.least_accuracy == 0.5
    uneven = replace(lab().bench.data, chances=(0.9, 0.9, 0.9))
    where = replace(lab(), bench=replace(lab().bench, data=uneven))
    assert where.least_accuracy == pytest.approx(0.925)


@pytest.mark.parametrize(
    ("accuracy", "excess"), [(0.94, 0.0), (0.95, -0.01), (0.93, 0.01), (0.97, -0.03)]
)
def test_excess_over_a_limit_has_no_binary_hair(accuracy: float, excess: float) -> None:
    found = violated(make_cost(), accuracy, lab(max_accuracy_drop=0.01))
    assert found["max_accuracy_drop"] == excess


def test_limits_on_what_is_not_known_are_not_judged() -> None:
    limited = lab(max_accuracy_drop=0.0, max_latency_ms=1.0)
    assert violated(make_cost(latency_ms=1.0), None, limited) == {"max_latency_ms": 0.0}
    assert violated(make_cost(), None, lab()) == {}


# ---- export


def answers(recipe: Any, replies: list[Any]) -> tuple[list[Step[Any]], Any]:
    """Sends replies one after another; returns the steps and what the recipe returned."""
    steps = [next(recipe)]
    for reply in replies:
        try:
            steps.append(recipe.send(reply))
        except StopIteration as stop:
            return steps, stop.value
    return steps, None


def test_an_unfaithful_graph_is_traced_again_at_its_own_width() -> None:
    good = Exported(file("good"), 1e-6)
    replies = [Graph(file("a")), Exported(file("bad"), None), Graph(file("b")), good]
    steps, result = answers(export(NETWORK, lab().bench), replies)
    assert result == good
    shapes = [step.shapes for step in steps if isinstance(step, Trace)]
    assert shapes == [None, NETWORK.shapes]


def test_a_graph_that_stays_unfaithful_fails_the_trial() -> None:
    bad = Exported(file("bad"), 0.2)
    with pytest.raises(StageFailed, match=r"^export: .*relative error 0\.2"):
        answers(export(NETWORK, lab().bench), [Graph(file("a")), bad, Graph(file("b")), bad])


# ---- preparation


def test_preparation_measures_the_original_at_every_thread_count() -> None:
    bench = lab().bench
    teacher = Teacher(NETWORK, file("logits"), 0.96)
    deployable = make_deployable(file("float"), 32, ())
    one = replace(measurement(1.02), reference_p50_ms=3.0)
    two = measurement(0.7)
    replies = [
        Graph(file("graph")),
        ChosenPlacement("cpu", "bfloat16", "contiguous", 1.0),
        teacher,
        Graph(file("graph")),
        Exported(file("float"), 0.0),
        deployable,
        Score(0.955, 20),
        one,
        two,
        Cuts((Cut(0.31, 0.5), Cut(0.5, 0.25))),
        Edited(NETWORK, {"channels_removed": 0.3}),
        Student(NETWORK, None, 0.4),
        FoundRate(0.02, ()),
    ]
    steps, prepared = answers(prepare(bench), replies)
    assert [step.kind for step in steps] == [
        *["trace", "placement", "teacher", *DEPLOY, "evaluate", "measure", "measure"],
        *["sweep", "prune", "reestimate", "rate"],
    ]
    chosen, taught = steps[1:3]
    assert isinstance(chosen, ChoosePlacement)
    assert isinstance(taught, Teach)
    assert (taught.precision, taught.device) == ("bfloat16", "cpu")
    pairs = [(s.threads, s.reference_threads) for s in steps if isinstance(s, Measure)]
    assert pairs == [(1, 1), (2, 1)]
    assert prepared.teacher == teacher
    assert prepared.reference == deployable
    assert prepared.reference_accuracy == 0.955
    baseline = prepared.baseline
    assert baseline.base_ms == 3.0
    assert baseline.against_base == {
        1: replace(one, ratio=1.0, ratio_low=1.0, ratio_high=1.0),
        2: two,
    }
    assert baseline.latency_ms(2) == pytest.approx(2.1)
    assert baseline.best_threads == 2
    pruned = next(step for step in steps if isinstance(step, Prune))
    assert pruned.ratio == 0.31  # of the first cut
    assert (prepared.cuts, prepared.rate) == (replies[-4].cuts, replies[-1])  # type: ignore[attr-defined]


def test_nothing_is_looked_for_where_nothing_can_be_pruned(
    caplog: pytest.LogCaptureFixture,
) -> None:
    whole = replace(lab(), cuts=(), rate=None)
    steps, found = answers(survey(whole), [Cuts((), "its layers are asleep")])
    assert [step.kind for step in steps] == ["sweep"]
    assert found == replace(whole, bench=replace(whole.bench, prunes=False))
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage().endswith("bits and threads are searched: its layers are asleep")


def surveyed(refuse: Callable[[Step[Any]], None]) -> Lab:
    """What is found where steps that ``refuse`` raises for fail."""
    return drive(survey(replace(lab(), cuts=(), rate=None)), FakeEngine(refuse))


@pytest.mark.parametrize("error", [InfeasiblePoint("its code asserts"), StageFailed("prune", "no")])
def test_cuts_that_a_network_does_not_survive_are_left_out(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(step: Step[Any]) -> None:
        if isinstance(step, Prune) and step.ratio in (CUTS[0].prune_ratio, CUTS[1].prune_ratio):
            raise error

    found = surveyed(refuse)
    assert (found.cuts, found.rate) == (CUTS[2:], RATE)
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2
    assert "50 %" in caplog.text
    assert sound_rate(found, CUTS[2].prune_ratio) == pytest.approx(RATE.learning_rate, rel=0.1)


@pytest.mark.parametrize("kind", [Sweep, Prune, Reestimate, FindRate])
def test_a_network_whose_students_fail_can_still_be_used(kind: type[Step[Any]]) -> None:
    def refuse(step: Step[Any]) -> None:
        if isinstance(step, kind):
            raise StageFailed(step.kind, "ZeroDivisionError: division by zero")

    found = surveyed(refuse)
    assert (found.cuts, found.rate) == ((), None)
    assert sound_rate(found, 0.5) == USUAL_RATE
    assert sweep(found, math.inf, math.inf) == []


# ---- what suits the network


def test_rates_rise_with_the_share_that_is_pruned_from_the_one_found() -> None:
    ready = replace(lab(), cuts=(Cut(0.3, 0.5),), rate=FoundRate(0.01, ()))
    assert [sound_rate(ready, ratio) for ratio in (0.0, 0.3, 0.9)] == [0.005, 0.01, 0.04]


@pytest.mark.parametrize(
    ("trials", "time_s", "shares"),
    [
        (math.inf, math.inf, (0.8, 0.65, 0.5, 0.25)),
        (3, math.inf, (0.65, 0.5, 0.25, 0.8)),
        (32, 2.5 * LONG_TRAINING_S, (0.5, 0.25, 0.8, 0.65)),
        (32, 1.0, (0.5, 0.8, 0.65, 0.25)),
    ],
)
def test_long_trainings_begin_with_what_is_easily_mended_and_reach_what_is_hard(
    trials: float, time_s: float, shares: tuple[float, ...]
) -> None:
    cuts = tuple(Cut(1 - share, share) for share in (0.5, 0.25, 0.65, 0.8))
    ready = replace(lab(), cuts=cuts)
    assert sweep(ready, trials, time_s) == [cut.prune_ratio for cut in cuts]
    steps = ready.bench.steps(ready.bench.train.epochs)
    slow = replace(ready.placement, step_s=1.01 * LONG_TRAINING_S / steps)
    assert sweep(replace(ready, placement=slow), trials, time_s) == [1 - one for one in shares]


# ---- what fine-tuning is worth


class Tuned(FakeEngine):
    """Scores students as told: before any training, and at the end of each rung."""

    def __init__(self, *scores: float) -> None:
        super().__init__()
        self._scores = iter(scores)

    def _answer(self, step: Step[Any]) -> Any:
        answer = super()._answer(step)
        if isinstance(step, Reestimate | Finetune):
            return replace(answer, val_accuracy=next(self._scores))
        return answer


@pytest.mark.parametrize(
    ("scores", "kept", "remark"),
    [
        ((0.5, 0.6, 0.7), 0.7, ""),
        ((0.5, 0.5, 0.5), 0.5, ""),
        ((0.5, 0.8, 0.7), 0.8, "after 50% of its fine-tuning"),
        ((0.9, 0.3, 0.4), 0.9, "after no fine-tuning"),
    ],
)
def test_the_best_network_on_the_way_is_kept_and_told(
    scores: tuple[float, ...], kept: float, remark: str
) -> None:
    engine = Tuned(*scores)
    ending = finished(POINT.replaced(bits=32), lab(), Unjudged(), engine)
    assert (ending.outcome, scored(ending).float_accuracy) == ("complete", kept)
    assert remark in ending.reason
    assert bool(ending.reason) == bool(remark)
    students = [*(s for s in engine.computed if isinstance(s, Reestimate | Finetune))]
    exported = [s.network for s in engine.computed if isinstance(s, Export)][-1]
    of = max(range(3), key=lambda number: (scores[number], number))
    assert exported == engine.run(students[of]).result.network


class Watching(Unjudged):
    """Notes the accuracies that it is told at rungs."""

    def __init__(self) -> None:
        self.told: list[float] = []

    def at_rung(self, _point: Point, _end: float, progress: Progress) -> str | None:
        self.told.append(progress.float_accuracy)
        return "stopped here"


def test_a_trial_is_judged_by_the_best_network_on_its_way() -> None:
    referee = Watching()
    ending = finished(POINT, lab(), referee, Tuned(0.93, 0.3))
    assert referee.told == [0.93]
    assert isinstance(ending, StoppedTrial)
    assert isinstance(ending.figures, Progress)
    assert ending.figures.float_accuracy == 0.93


class Diverging(Tuned):
    """Fails at the rung that begins at ``begin``."""

    def __init__(self, begin: float, *scores: float) -> None:
        super().__init__(*scores)
        self._begin = begin

    def _answer(self, step: Step[Any]) -> Any:
        if isinstance(step, Finetune) and step.begin == self._begin:
            raise StageFailed("finetune", "the loss is not finite; give a lower rate")
        return super()._answer(step)


@pytest.mark.parametrize(
    ("begin", "scores", "kept", "when"),
    [
        (0.0, (0.93,), 0.93, "after no fine-tuning"),
        (0.5, (0.5, 0.9), 0.9, "after 50% of its fine-tuning"),
        (0.5, (0.93, 0.9), 0.93, "after no fine-tuning"),
    ],
)
def test_a_fine_tuning_that_fails_leaves_the_best_network_on_the_way(
    begin: float, scores: tuple[float, ...], kept: float, when: str
) -> None:
    ending = finished(POINT, lab(), Unjudged(), Diverging(begin, *scores))
    assert (ending.outcome, scored(ending).float_accuracy) == ("complete", kept)
    assert when in ending.reason
    assert "the loss is not finite; give a lower rate" in ending.reason
    limited = finished(POINT, lab(max_accuracy_drop=0.0), Unjudged(), Diverging(begin, *scores))
    assert limited.outcome == "infeasible"
    assert limited.reason.startswith("exceeds max_accuracy_drop")
    assert "the loss is not finite" in limited.reason


def test_a_fine_tuning_that_fails_before_anything_is_worth_it_fails_the_trial() -> None:
    with pytest.raises(StageFailed, match="the loss is not finite"):
        drive(trial(POINT, lab(), Unjudged()), Diverging(0.0, 0.5))


# ---- figures


def between(ratio: float, low: float, high: float, **changes: Any) -> Measurement:
    return replace(measurement(ratio), ratio_low=low, ratio_high=high, **changes)


BASELINE = Baseline(
    2.0,
    {1: between(1.0, 1.0, 1.0), 2: between(0.8, 0.75, 0.85), 4: between(0.9, 0.88, 0.93)},
)
MODEL = make_deployable(file("model", size_bytes=777), 8, ())


def figures(threads: int, measured: Measurement, baseline: Baseline = BASELINE) -> Cost:
    edited, where = Edited(NETWORK, {"channels_removed": 0.4}), replace(lab(), baseline=baseline)
    return cost_of(edited, MODEL, threads, measured, where)


def test_a_chain_of_ratios_leads_to_the_original_at_its_best() -> None:
    found = figures(4, between(0.5, 0.45, 0.55))
    assert found.latency_ms == pytest.approx(2.0 * 0.9 * 0.5)
    assert found.speedup == pytest.approx((2.0 * 0.8) / (2.0 * 0.9 * 0.5))
    assert found.speedup_low == pytest.approx(0.75 / 0.93 / 0.55)
    assert found.speedup_high == pytest.approx(0.85 / 0.88 / 0.45)
    assert (found.latency_ratio, found.latency_ratio_low, found.latency_ratio_high) == (
        *(0.5, 0.45, 0.55),
    )


def test_at_the_best_thread_count_the_chain_has_one_link() -> None:
    found = figures(2, between(0.5, 0.45, 0.55))
    assert found.latency_ms == pytest.approx(0.8)
    assert found.speedup == pytest.approx(2.0)
    assert found.speedup_low == pytest.approx(1 / 0.55)
    assert found.speedup_high == pytest.approx(1 / 0.45)


def test_the_original_is_as_fast_as_itself() -> None:
    found = figures(2, between(1.0, 1.0, 1.0))
    assert (found.speedup, found.speedup_low, found.speedup_high) == (1.0, 1.0, 1.0)


def test_a_cost_names_the_structure_that_it_is_of() -> None:
    assert figures(2, between(1.0, 1.0, 1.0)).structure == NETWORK.structure


def test_with_one_thread_count_only_it_is_the_best() -> None:
    single = Baseline(3.0, {2: between(1.0, 1.0, 1.0)})
    found = figures(2, between(0.25, 0.2, 0.4), single)
    assert single.best_threads == 2
    assert found.latency_ms == pytest.approx(0.75)
    assert found.speedup == pytest.approx(4.0)


@given(
    st.lists(st.floats(0.05, 20), min_size=3, max_size=3),
    st.lists(st.floats(0, 0.5), min_size=3, max_size=3),
    st.integers(1, 3),
)
def test_a_speedup_lies_in_its_interval(
    ratios: list[float], spreads: list[float], threads: int
) -> None:
    against = {
        count: between(ratio, ratio * (1 - spread), ratio * (1 + spread))
        for count, (ratio, spread) in enumerate(zip(ratios, spreads, strict=True), 1)
    }
    against[1] = between(1.0, 1.0, 1.0)
    found = figures(threads, between(0.7, 0.6, 0.9), Baseline(1.5, against))
    assert found.speedup_low <= found.speedup * (1 + 1e-12)
    assert found.speedup <= found.speedup_high * (1 + 1e-12)
    best = min(1.5 * measured.ratio for measured in against.values())
    assert found.speedup == pytest.approx(best / found.latency_ms)


@pytest.mark.parametrize(
    ("operators", "integer", "total", "bits"),
    [
        ({"Conv": 2, "FusedGemm": 1, "Reshape": 9}, 0, 3, 32.0),
        ({"QLinearConv": 3, "QGemm": 1, "QuantizeLinear": 1}, 4, 4, 8.0),
        ({"QLinearConv": 1, "FusedConv": 1, "MatMul": 2}, 1, 4, 26.0),
        ({"MatMulIntegerToFloat": 1, "NhwcFusedConv": 1}, 1, 2, 20.0),
        ({}, 0, 0, 32.0),
    ],
)
def test_effective_bits_count_executed_operators(
    operators: Mapping[str, int], integer: int, total: int, bits: float
) -> None:
    found = figures(1, replace(measurement(1.0), operators=operators))
    assert (found.integer_operators, found.compute_operators) == (integer, total)
    assert found.effective_bits == bits == effective_bits(integer, total - integer)


def test_everything_measured_is_passed_on() -> None:
    measured = replace(measurement(0.5), p50_ms=1.5, cpu_ms=2.5, cold_start_ms=3.5)
    found = figures(1, measured)
    assert (found.p50_ms, found.cpu_ms, found.cold_start_ms) == (1.5, 2.5, 3.5)
    assert found.peak_rss_bytes == measured.peak_rss_bytes
    assert (found.macs, found.parameters, found.size_bytes) == (1000, 72, 777)
    assert found.channels_removed == 0.4
    assert not found.is_changed


# ---- the device

AT = (("mine", 20), ("another", 10))


def test_canary_compares_the_original_with_itself_once_for_each_moment_of_a_study() -> None:
    ready = lab()
    (first,), found = answers(canary(ready, "mine", 10), [measurement(1.03, spread=0.01)])
    others = [answers(canary(ready, *at), [measurement(1.0)])[0][0] for at in AT]
    assert isinstance(first, Measure)
    assert first.deployable == first.reference == ready.reference
    assert first.threads == first.reference_threads == 1
    assert len({first.key, *(other.key for other in others)}) == 3
    assert (found.after_trials, found.is_noisy) == (10, True)


def test_a_probe_decides_what_the_trials_are_made_for() -> None:
    bench = replace(lab().bench, measuring=replace(LOCAL, probe=True), prunes=False)
    found = replace(PROFILE, int8_format="s8s8", round_to=4)
    replies = [
        Graph(file("graph")),
        found,
        lab().placement,
        lab().teacher,
        Graph(file("graph")),
        Exported(file("float"), 0.0),
        lab().reference,
        Score(0.95, 20),
        measurement(1.0),
        measurement(0.8),
    ]
    steps, prepared = answers(prepare(bench), replies)
    assert [step.kind for step in steps][1] == "probe"
    assert prepared.bench.device == found


@pytest.mark.parametrize(
    ("images", "epochs", "size"),
    [(54_000, 1.5, 128), (3_600, 1.5, 16), (3_600, 12, 128), (14_400, 1.5, 64), (100, 1, 16)],
)
def test_a_short_training_takes_smaller_batches(images: int, epochs: float, size: int) -> None:
    bench = lab().bench
    data = replace(bench.data, sizes=(images, 20, 30))
    bench = replace(bench, data=data, train=replace(bench.train, batch_size="auto"))
    assert bench.batch_size(epochs) == size
    fixed = replace(bench, train=replace(bench.train, batch_size=96))
    assert fixed.batch_size(epochs) == 96
