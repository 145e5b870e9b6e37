"""The plain loop that this project is compared with: train all, measure last, reuse nothing."""

from __future__ import annotations

from dataclasses import dataclass

from search.recipes.deploying import deploy, measure
from search.recipes.training import finetune
from search.records.bench import Lab
from search.records.deployable import Deployable
from search.records.measurement import Measurement
from search.records.network import Student
from search.records.point import Point
from search.records.score import Score
from search.records.steps.editing import Edited
from search.records.steps.pruning import Prune
from search.records.steps.recipe import Recipe
from search.records.steps.scoring import Evaluate


@dataclass(frozen=True)
class Found:
    """What the plain loop learns of a point."""

    accuracy: float
    latency_ms: float
    deployable: Deployable


def plain_trial(point: Point, lab: Lab) -> Recipe[Found]:
    """Compresses, trains to the end, scores, and measures last."""
    bench = lab.bench
    pruned: Edited = yield Prune(
        lab.teacher.network, point.number("prune_ratio"), bench.device.round_to
    )
    network = pruned.network
    if pruned.figures["channels_removed"] > 0:
        untrained = Student(network, None, 0.0)
        student: Student = yield finetune(untrained, 0.0, 1.0, point, lab)
        network = student.network
    deployable = yield from deploy(network, point.whole("bits"), bench)
    score: Score = yield Evaluate(deployable, bench.data, "validation", bench.device)
    speed: Measurement = yield measure(
        bench, deployable, point.whole("threads"), lab.reference, point.whole("threads")
    )
    latency_ms = lab.baseline.latency_ms(point.whole("threads")) * speed.ratio
    return Found(score.accuracy, latency_ms, deployable)
