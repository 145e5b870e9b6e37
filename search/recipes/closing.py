"""The closing round: the best points are trained on, measured together and scored on test data.

It decides which of them stand, and which cannot be told apart.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np

from search.benchmark.estimates import (
    highest_level,
    launches_needed,
    signed_rank_interval,
    walsh_means,
    wilson_interval,
)
from search.benchmark.summary import quality_of
from search.config.study import FinalistsConfig
from search.engine.base import Engine
from search.engine.driving import drive, drive_all
from search.errors import DeviceLost, StageFailed
from search.front import pareto
from search.front.front import front, loss_matrix, original
from search.front.scores import recognised
from search.front.standing import Rivals, joint_level
from search.recipes.deploying import deploy, evaluate, measure, profile
from search.recipes.training import finetune, recover
from search.recipes.trial import edit
from search.records.bench import Lab
from search.records.closing import Finalist
from search.records.deployable import Deployable
from search.records.measurement import RunFigures, Session
from search.records.network import Network, Student
from search.records.score import Score
from search.records.steps.measuring import Confirm
from search.records.steps.recipe import Recipe
from search.records.trial import Figures, ScoredTrial, TrialRecord, shared
from search.report.departures import broken_limits, describe_beaten
from search.report.points import label

log = logging.getLogger(__name__)
LEAST_MS = 1e-6  # that a clock can tell from nothing
# What was trained once is trained on gently: by this share of its learning rate, falling to zero.
FURTHER_RATE = 0.3


@dataclass(frozen=True)
class Contender:
    """A point of the front after its further training.

    Attributes:
        record: As the search saw it.
        deployable: The better of its models, by validation accuracy.
        float_accuracy: Its student's, in PyTorch.
        validation: Its score on the validation split.
        test: Its score on the test split.
    """

    record: ScoredTrial
    deployable: Deployable
    float_accuracy: float
    validation: Score
    test: Score

    @property
    def threads(self) -> int:
        """With which it is run."""
        return self.record.point.whole("threads")


def close(
    records: Sequence[TrialRecord], lab: Lab, config: FinalistsConfig, engine: Engine
) -> tuple[Finalist, ...]:
    """Trains the front on, measures it together and scores it once on the test split.

    Returns:
        The finalists: those that stand by latency, tied ones together, then those that left.

    Raises:
        StageFailed: When they cannot be measured together.
    """
    contenders = []
    chosen = choose(records, lab.bench.limits.names, config.count)
    improving = drive_all(
        [improve(record, lab, config.epochs) for record in chosen],
        engine,
        [f"finalist {record.number}" for record in chosen],
    )
    for record, run in zip(chosen, improving, strict=True):
        try:
            contenders.append(run.result())
        except StageFailed as error:
            log.warning("trial %d takes no part in the closing round: %s", record.number, error)
    if not contenders:
        return ()
    session, level = drive(confirm(contenders, lab, config.budget_s), engine, title="closing round")
    return judge(contenders, session, level, lab)


def profile_front(finalists: Sequence[Finalist], lab: Lab, engine: Engine) -> None:
    """Finds out what the time of the front's points goes into, for whoever explains it."""
    for finalist in finalists:
        if finalist.stands and finalist.deployable != lab.reference:
            try:
                drive(profile(finalist.deployable, finalist.point.whole("threads"), lab), engine)
            except (StageFailed, DeviceLost) as error:
                log.warning("trial %d could not be profiled: %s", finalist.number, error)


def confirm(
    contenders: Sequence[Contender], lab: Lab, budget_s: float
) -> Recipe[tuple[Session, float]]:
    """Measures the contenders together.

    Returns:
        The session, and the level of its intervals, at which all comparisons hold together; lower
        where the models were too slow for so many launches.
    """
    best = lab.baseline.best_threads
    level = joint_level(len(contenders), lab.bench.limits.names)
    launches = launches_needed(level)
    session: Session = yield Confirm(
        tuple(
            replace(
                measure(
                    lab.bench, c.deployable, c.record.point.whole("threads"), lab.reference, best
                ),
                budget_s=budget_s,
                launches=launches,
            )
            for c in contenders
        ),
        launches,
    )
    told = len(session.log_ratios[0])
    if told < launches:
        log.warning(
            "launches take so long that the closing round had time for %d of %d of each model: the "
            "intervals of their speed-ups hold together, the comparisons between them with %.2f %% "
            "each; a larger finalists.budget_s lets all hold together",
            *(told, launches, 100 * highest_level(told)),
        )
    return session, min(level, highest_level(told))


def choose(
    records: Sequence[TrialRecord], objectives: Sequence[str], count: int
) -> list[ScoredTrial]:
    """Returns at most ``count`` points that cover the front, by latency, and the original.

    Where latencies were measured poorly the front is deep, because few points are surely beaten:
    those that nothing beats by its centre come first.
    """
    members: list[ScoredTrial] = [*front(records, objectives)]
    kept = islice(pareto.layered_order(loss_matrix(members, objectives)), count)
    chosen = [members[index] for index in sorted(kept)]
    first = original(records)
    # Also where a limit forbids it: it is what all else is compared with.
    if chosen and isinstance(first, ScoredTrial) and first not in chosen:
        chosen.append(first)
    return chosen


def improve(record: ScoredTrial, lab: Lab, epochs: float) -> Recipe[Contender]:
    """Trains a point's student on, and keeps what is more accurate on validation."""
    bench, point = lab.bench, record.point
    edited = yield from edit(point, lab)
    is_edited, bits = lab.is_changed(edited.network), point.whole("bits")
    student = Student(edited.network, None, lab.teacher.val_accuracy)
    if is_edited:
        student = (yield from recover(edited.network, point, lab)).best
    best = student.val_accuracy, *(yield from _score(student.network, bits, lab))
    if is_edited and epochs > 0:
        rate = FURTHER_RATE * point.number("learning_rate")
        gentle = point.replaced(learning_rate=rate, schedule="cosine")
        further = finetune(replace(student, state=None), 0.0, 1.0, gentle, lab)
        with suppress(StageFailed):  # it did without before
            longer: Student = yield replace(further, epochs=epochs)
            found = longer.val_accuracy, *(yield from _score(longer.network, bits, lab))
            best = max(best, found, key=lambda scored: scored[2].accuracy)
    float_accuracy, deployable, validation = best
    test = yield from evaluate(deployable, "test", bench)
    return Contender(record, deployable, float_accuracy, validation, test)


def _score(network: Network, bits: int, lab: Lab) -> Recipe[tuple[Deployable, Score]]:
    deployable = yield from deploy(network, bits, lab.bench)
    score = yield from evaluate(deployable, "validation", lab.bench)
    return deployable, score


def judge(
    contenders: Sequence[Contender], session: Session, level: float, lab: Lab
) -> tuple[Finalist, ...]:
    """Decides who stands and who ties.

    A point leaves when it breaks a limit of the study or is little better than guessing, now that
    all is known, or when one that stands beats it, by the rule of ``search.front.standing``.

    Args:
        contenders: With their scores.
        session: Of the same length and order.
        level: Of every interval.
        lab: The study's.
    """
    limits = lab.bench.limits
    reference_ms = lab.baseline.latency_ms(lab.baseline.best_threads)
    finalists = [
        _confirm(contender, measurement_figures(contender, session, index, level, reference_ms))
        for index, contender in enumerate(contenders)
    ]
    rivals = Rivals(
        numbers=[finalist.number for finalist in finalists],
        logs={
            "latency": np.array(session.log_ratios),
            "cpu": np.log(np.maximum(session.cpu_ms, LEAST_MS)),
            "memory": np.log(session.peak_rss_bytes),
        },
        right=[recognised(contender.test) for contender in contenders],
        sizes=[finalist.deployable.model.size_bytes for finalist in finalists],
        level=level,
        objectives=limits.names,
    )
    original_accuracy = next((f.test_accuracy for f in finalists if f.is_original), None)
    order = sorted(
        range(len(finalists)), key=lambda i: (finalists[i].figures.latency_ms, finalists[i].number)
    )
    reasons = {
        i: ", ".join(broken_limits(f.figures, f.test_accuracy, original_accuracy, lab))
        for i, f in enumerate(finalists)
    }
    fit = [index for index in order if not reasons[index]]
    names = {one.number: label(one) for one in finalists}
    for index, beaten in rivals.standing(fit).items():
        reasons[index] = "" if beaten is None else describe_beaten(beaten, names[beaten.by])
    standing = [index for index in order if not reasons[index]]
    ties, arranged = itertools.count(1), []
    for group in rivals.ties(standing):
        tie = next(ties) if len(group) > 1 else None
        for index in sorted(group, key=lambda i: _rank(finalists[i])):
            arranged.append(replace(finalists[index], tie=tie))
    left = [
        replace(finalists[i], stands=False, reason=reasons[i]) for i in order if i not in standing
    ]
    return (*arranged, *left)


def _rank(finalist: Finalist) -> tuple[float, int, int]:
    """Sorts tied points by accuracy, then size."""
    return -finalist.test_accuracy, finalist.figures.size_bytes, finalist.number


def measurement_figures(
    contender: Contender, session: Session, index: int, level: float, reference_ms: float
) -> Figures:
    """Returns the search's figures of a point with what the session and the scores replace."""
    measured, logs = session.measurements[index], np.array(session.log_ratios[index])
    low, high = signed_rank_interval(logs, level)
    ratio = math.exp(float(np.median(walsh_means(logs))))
    return replace(
        contender.record.figures,
        **(shared(RunFigures, measured) | {"quality": quality_of(low, high)}),
        val_accuracy=contender.validation.accuracy,
        float_accuracy=contender.float_accuracy,
        latency_ms=reference_ms * ratio,
        latency_ratio=ratio,
        latency_ratio_low=math.exp(low),
        latency_ratio_high=math.exp(high),
        speedup=1 / ratio,
        speedup_low=math.exp(-high),
        speedup_high=math.exp(-low),
        size_bytes=contender.deployable.model.size_bytes,
    )


def _confirm(contender: Contender, figures: Figures) -> Finalist:
    test = contender.test
    low, high = wilson_interval(round(test.accuracy * test.images), test.images)
    return Finalist(
        number=contender.record.number,
        is_original=contender.record.is_original,
        point=contender.record.point,
        deployable=contender.deployable,
        figures=figures,
        test_accuracy=test.accuracy,
        test_low=low,
        test_high=high,
        stands=True,
        reason="",
        tie=None,
    )
