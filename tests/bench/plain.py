"""The plain loop that this project is compared with: train all, measure last, reuse nothing."""

from __future__ import annotations

from dataclasses import dataclass

from search.records import Deployable, Measurement, Point, Student
from search.steps import Evaluate, Prune, Pruned, Score
from search.trial import Lab, Recipe, deploy, finetune, measure


@dataclass(frozen=True)
class Found:
    """What the plain loop learns of a point."""

    accuracy: float
    latency_ms: float
    deployable: Deployable


def plain_trial(point: Point, lab: Lab) -> Recipe[Found]:
    """Compresses, trains to the end, scores, and measures last."""
    bench = lab.bench
    pruned: Pruned = yield Prune(lab.teacher.network, point.prune_ratio, bench.device.round_to)
    network = pruned.network
    if pruned.channels_removed > 0:
        untrained = Student(network, None, 0.0)
        student: Student = yield finetune(untrained, 0.0, 1.0, point, lab)
        network = student.network
    deployable = yield from deploy(network, point.bits, bench)
    score: Score = yield Evaluate(deployable, bench.data, "validation")
    speed: Measurement = yield measure(
        bench, deployable, point.threads, lab.reference, point.threads
    )
    latency_ms = lab.yardstick.latency_ms(point.threads) * speed.ratio
    return Found(score.accuracy, latency_ms, deployable)
