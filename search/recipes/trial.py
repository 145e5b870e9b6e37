"""The recipe of one trial: which steps, in which order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from search.front.front import Traded
from search.recipes.deploying import deploy, evaluate
from search.recipes.pricing import price
from search.recipes.referee import Ending, Referee
from search.recipes.training import recover
from search.records.bench import Lab
from search.records.formats import format_share
from search.records.network import Network, Student
from search.records.point import Point
from search.records.steps.editing import Edited
from search.records.steps.recipe import Recipe
from search.records.trial import (
    CompleteTrial,
    Cost,
    Figures,
    InfeasibleTrial,
    KeptLayer,
    Progress,
    RejectedTrial,
    StoppedTrial,
    shared,
)
from search.techniques import techniques


def trial(point: Point, lab: Lab, referee: Referee) -> Recipe[Ending]:
    """Compresses the teacher as ``point`` says; latency is known before anything is trained."""
    edited = yield from edit(point, lab)
    point = referee.deployment(point, edited.network)
    cost = yield from price(edited, point, lab)
    violations = violated(cost, None, lab)
    known: dict[str, Any] = {
        "point": point,
        "layers": kept_layers(edited.network, lab.teacher.network),
    }
    student = Student(edited.network, None, lab.teacher.val_accuracy)
    remark = ""
    if cost.is_changed:  # an untouched one has nothing to recover from
        if reason := describe_violations(violations, None, lab):
            return partial(
                InfeasibleTrial, **known, reason=reason, figures=cost, violations=violations
            )
        stopped = partial(StoppedTrial, **known, violations=violations)
        if hopeless := referee.before_training(point, cost):
            return partial(stopped, reason=hopeless, figures=cost)

        def watch(end: float, best: Student) -> str | None:
            return referee.at_rung(point, end, progress_of(cost, best))

        recovered = yield from recover(edited.network, point, lab, watch)
        student, remark = recovered.best, recovered.remark
        if recovered.stopped is not None:
            figures = progress_of(cost, student)
            return partial(stopped, reason=recovered.stopped, figures=figures)
    deployable = yield from deploy(student.network, point.whole("bits"), lab.bench)
    score = yield from evaluate(deployable, "validation", lab.bench)
    cost = replace(cost, size_bytes=deployable.model.size_bytes)
    scored = Figures(
        **shared(Progress, progress_of(cost, student)),
        val_accuracy=score.accuracy,
    )
    violations = violated(scored, score.accuracy, lab)
    broken = describe_violations(violations, score.accuracy, lab)
    return partial(
        RejectedTrial if broken else CompleteTrial,
        **known,
        reason="; ".join(filter(None, (broken, remark))),
        figures=scored,
        violations=violations,
        deployable=deployable,
    )


def progress_of(cost: Cost, student: Student) -> Progress:
    """Returns what is known of a student of this cost."""
    return Progress(**shared(Cost, cost), float_accuracy=student.val_accuracy)


def edit(point: Point, lab: Lab) -> Recipe[Edited]:
    """Changes the teacher's network as a point asks, one technique after another."""
    network, figures = lab.teacher.network, dict[str, float]()
    for technique in techniques():
        step = technique.step(point, network, lab.bench)
        if step is not None:
            edited: Edited = yield step
            network, figures = edited.network, {**figures, **edited.figures}
    return Edited(network, figures)


def kept_layers(network: Network, whole: Network) -> tuple[KeptLayer, ...]:
    """Returns the output channels of every layer, beside those it has in the ``whole`` network.

    A layer is a weight of two dimensions or more, of which the first counts its channels; what a
    technique put in its place has other names and is left out.
    """
    before = dict(whole.shapes)
    return tuple(
        KeptLayer(name.removesuffix(".weight"), shape[0], before[name][0])
        for name, shape in network.shapes
        if name.endswith("weight") and len(shape) >= 2 and name in before
    )


def violated(cost: Cost | Traded, accuracy: float | None, lab: Lab) -> dict[str, float]:
    """Returns by how much a trial exceeds each limit; at most 0 keeps it.

    Args:
        cost: Of its network.
        accuracy: On the validation split, 0..1; None where it is not known yet.
        lab: The study's, with its limits.
    """
    limits = lab.bench.limits
    drop = None if accuracy is None else lab.reference_accuracy - accuracy
    shortfall = None if accuracy is None else lab.least_accuracy - accuracy
    checks = {
        "min_accuracy_share": (shortfall, 0.0),
        "max_accuracy_drop": (drop, limits.max_accuracy_drop),
        "max_latency_ms": (cost.latency_ms, limits.max_latency_ms),
        "max_size_bytes": (cost.size_bytes, limits.max_size_bytes),
        "max_memory_bytes": (cost.peak_rss_bytes, limits.max_memory_bytes),
    }
    return {
        name: round(value - limit, 12)  # 0.90 - 0.89 is a hair above 0.01 in binary
        for name, (value, limit) in checks.items()
        if value is not None and limit is not None
    }


def describe_violations(violations: Mapping[str, float], accuracy: float | None, lab: Lab) -> str:
    """Returns which limits are broken, in one line; empty where none is."""
    broken = {name: excess for name, excess in violations.items() if excess > 0}
    reasons = []
    if broken.pop("min_accuracy_share", None) is not None:
        reasons.append(
            f"is little better than guessing: {format_share(accuracy)} on validation, where "
            f"guessing gives {format_share(lab.bench.data.chances[1])} and the original has "
            f"{format_share(lab.reference_accuracy)}"
        )
    if broken:
        reasons.append(f"exceeds {', '.join(f'{name} by {v:.4g}' for name, v in broken.items())}")
    return " and ".join(reasons)
