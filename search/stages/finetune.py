"""Trains a pruned network back to accuracy with its teacher's help."""

from __future__ import annotations

import io
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from search import data
from search.devices.stillness import working
from search.errors import StageFailed
from search.networks import networks
from search.networks.batch_statistics import reestimate
from search.networks.networks import Preprocessed
from search.networks.optimization import GRADIENT_NORM, distillation_loss, make_pace
from search.networks.placing import use_placed
from search.networks.training import (
    Feed,
    KeptLogits,
    Placement,
    accuracy,
    reseed,
    steps_per_epoch,
    training_batches,
)
from search.process import activity
from search.records.network import Student
from search.records.steps.step import ArtifactStore
from search.records.steps.training import Finetune

RECENT_SHARE = 0.1  # of the latest loss in the smoothed one
CHECK_EVERY_STEPS = 50  # reading the loss waits for the device


def run(step: Finetune, artifacts: ArtifactStore) -> Student:
    """Does the step."""
    load = partial(networks.load, step.start, artifacts)
    return use_placed(step, load, partial(_train, step, artifacts))


def _train(
    step: Finetune, artifacts: ArtifactStore, module: Preprocessed, placement: Placement
) -> Student:
    splits = data.load(step.data, artifacts.images)
    teacher_logits = KeptLogits(
        artifacts.path(step.teacher_logits), step.data.classes, placement.device
    )
    state = None
    if step.state is not None:
        state = torch.load(artifacts.path(step.state), map_location="cpu", weights_only=True)
    train = Feed(splits.train, placement.device)
    with torch.random.fork_rng(devices=[]):
        state = finetune(module, train, teacher_logits, placement, step, state)
        # With the statistics that training has left, evaluation may be worthless.
        reestimate(module, train, placement, step.batch_size, step.seed, frozen_too=False)
    score = accuracy(module, Feed(splits.validation, placement.device), placement)
    return Student(
        network=networks.save(module.network, step.start.spec, artifacts, step.start.edits),
        state=artifacts.put(_to_bytes(state), ".pt") if step.end < 1 else None,
        val_accuracy=score,
    )


@working()
def finetune(
    module: nn.Module,
    train: Feed,
    teacher_logits: KeptLogits,
    placement: Placement,
    step: Finetune,
    state: dict[str, Any] | None,
) -> dict[str, Any]:
    """Trains ``module`` in place over one rung.

    Args:
        module: Takes pixels in 0..1, gives logits.
        train: Training images.
        teacher_logits: ``[train images, classes]``.
        placement: Device and arithmetic.
        step: The recipe.
        state: What the rung before returned; None for the first.

    Returns:
        The state to go on from.

    Raises:
        StageFailed: When the loss stops being finite.
    """
    per_epoch = steps_per_epoch(len(train), step.batch_size)
    total = max(1, round(step.epochs * per_epoch))
    first, last = round(step.begin * total), round(step.end * total)
    pace = make_pace(module, step, total)
    recent: Tensor | None = None
    if state is not None:
        pace.optimizer.load_state_dict(state["optimizer"])
        pace.schedule.load_state_dict(state["schedule"])
        recent = state["recent_loss"]
    module.train()
    batches = training_batches(train, first, last, step.batch_size, step.seed)
    for number, (images, labels, index) in enumerate(batches, first + 1):
        reseed(step.seed, number)
        with placement.autocast():
            logits = module(images)
        loss = distillation_loss(
            logits.float(),
            labels,
            teacher_logits[index],
            step.distill_temperature,
            step.distill_weight,
        )
        pace.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), GRADIENT_NORM)
        pace.optimizer.step()
        latest = loss.detach()
        activity.tell("step", number, total, recent)
        recent = latest if recent is None else torch.lerp(recent.to(latest), latest, RECENT_SHARE)
        pace.advance(number, recent.item() if number % pace.plateau_steps == 0 else 0.0)
        if number % CHECK_EVERY_STEPS == 0 or number == last:
            _check_finite(recent, number, total, step)
    return {
        "optimizer": pace.optimizer.state_dict(),
        "schedule": pace.schedule.state_dict(),
        "recent_loss": recent,
    }


def _check_finite(loss: Tensor, number: int, total: int, step: Finetune) -> None:
    if not torch.isfinite(loss):
        raise StageFailed(
            "finetune",
            f"the loss is not finite at step {number} of {total} with {step.optimizer} and "
            f"learning_rate {step.learning_rate:.2g}; give space.learning_rate a lower range",
        )


def _to_bytes(state: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()
