"""Fine-tuning a pruned network rung by rung."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from search.errors import StageFailed
from search.records.bench import Lab
from search.records.network import Network, Student
from search.records.point import Point
from search.records.steps.recipe import Recipe
from search.records.steps.training import Finetune, Reestimate


@dataclass(frozen=True)
class Recovered:
    """A student after its fine-tuning, or as far as it came.

    Attributes:
        best: The most accurate network on the way, the pruned one before any training included.
        remark: Why this is not the one that training ended with; empty if it is.
        stopped: Why training was stopped; None when it was not.
    """

    best: Student
    remark: str
    stopped: str | None


def recover(
    pruned: Network,
    point: Point,
    lab: Lab,
    watch: Callable[[float, Student], str | None] = lambda end, best: None,
) -> Recipe[Recovered]:
    """Fine-tunes a pruned network rung by rung.

    Args:
        pruned: As pruning left it.
        point: Its recipe.
        lab: Where.
        watch: Told the best student so far at every rung but the last, and the share of the
            training that is done; returns why to stop, or None.

    Raises:
        StageFailed: When training fails, and no network before it is better than guessing.
    """
    start: Student = yield reestimate(pruned, lab)
    student, best, at = start, start, 0.0
    for begin, end in pairwise((0.0, *lab.bench.train.rungs)):
        try:
            student = yield finetune(student, begin, end, point, lab)
        except StageFailed as error:
            if best.val_accuracy < lab.least_accuracy:
                raise
            return Recovered(best, _describe_kept(at, f"the rest failed ({error})"), None)
        if student.val_accuracy >= best.val_accuracy:
            best, at = student, end
        stopped = watch(end, best) if end < 1 else None
        if stopped is not None:
            return Recovered(best, "", stopped)
    if best is student:
        return Recovered(best, "", None)
    change = f"{best.val_accuracy:.2%} became {student.val_accuracy:.2%}"
    why = f"the rest made it worse on validation ({change})"
    return Recovered(best, _describe_kept(at, why), None)


def _describe_kept(at: float, why: str) -> str:
    when = f"{at:.0%} of its fine-tuning" if at > 0 else "no fine-tuning"
    return f"the network after {when} is kept, because {why}"


def reestimate(network: Network, lab: Lab) -> Reestimate:
    """Returns the step that makes a pruned network as good as it is without training."""
    return Reestimate(
        network=network,
        data=lab.bench.data,
        batch_size=lab.bench.batch_size(lab.bench.train.epochs),
        precision=lab.placement.precision,
        layout=lab.placement.layout,
        device=lab.placement.device,
        seed=lab.bench.seed,
    )


def finetune(student: Student, begin: float, end: float, point: Point, lab: Lab) -> Finetune:
    """Returns the step that trains a student from one share of its budget to the next."""
    train = lab.bench.train
    return Finetune(
        start=student.network,
        state=student.state,
        begin=begin,
        end=end,
        teacher_logits=lab.teacher.logits,
        data=lab.bench.data,
        distill_temperature=point.number("distill_temperature"),
        distill_weight=point.number("distill_weight"),
        optimizer=point.word("optimizer"),
        learning_rate=point.number("learning_rate"),
        schedule=point.word("schedule"),
        weight_decay=train.weight_decay,
        epochs=train.epochs,
        batch_size=lab.bench.batch_size(train.epochs),
        precision=lab.placement.precision,
        layout=lab.placement.layout,
        device=lab.placement.device,
        seed=lab.bench.seed,
    )
