"""Trains a pruned network back to accuracy with its teacher's help; knows nothing of pruning."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer, lr_scheduler

from search import data, networks
from search.benchmark.stillness import working
from search.errors import StageFailed
from search.networks import Preprocessed
from search.records import Student
from search.steps import Finetune, Shelf
from search.training import (
    Feed,
    Placement,
    accuracy,
    reseed,
    steps_per_epoch,
    training_batches,
)

MOMENTUM = 0.9
STEP_FACTOR = 0.1  # of the step schedule, at one half and three quarters
RECENT_SHARE = 0.1  # of the latest loss in the smoothed one
PLATEAU_CHECKS = 20  # looks at the training loss over the whole fine-tuning
PLATEAU_FACTOR = 0.5
PLATEAU_PATIENCE = 1
CHECK_EVERY_STEPS = 50  # reading the loss waits for the device


def run(step: Finetune, shelf: Shelf) -> Student:
    """Does the step."""
    splits = data.load(step.data)
    placement = Placement(torch.device(step.device), step.precision)
    network = networks.load(step.start, shelf)
    module = placement.place(
        Preprocessed(network, step.data.mean, step.data.std), step.data.image_shape
    )
    teacher_logits = load_file(shelf.path(step.teacher_logits))["train"].to(placement.device)
    state = None
    if step.state is not None:
        state = torch.load(shelf.path(step.state), map_location="cpu", weights_only=True)
    with torch.random.fork_rng():
        train = Feed(splits.train, placement.device)
        loss, state = finetune(module, train, teacher_logits, placement, step, state)
    score = accuracy(module, Feed(splits.validation, placement.device), placement)
    return Student(
        network=networks.save(network, step.start.spec, shelf),
        state=shelf.put(_to_bytes(state), ".pt") if step.end < 1 else None,
        val_accuracy=score,
        train_loss=loss,
    )


@dataclass(frozen=True)
class _Pace:
    """An optimizer with the schedule of its learning rate."""

    optimizer: Optimizer
    schedule: lr_scheduler.LRScheduler
    plateau_steps: int

    def advance(self, step: int, recent_loss: float) -> None:
        """Moves the schedule on after optimizer step ``step``, counted from 1."""
        if not isinstance(self.schedule, lr_scheduler.ReduceLROnPlateau):
            self.schedule.step()
        elif step % self.plateau_steps == 0:
            self.schedule.step(recent_loss)


@working()
def finetune(
    module: nn.Module,
    train: Feed,
    teacher_logits: Tensor,
    placement: Placement,
    step: Finetune,
    state: dict[str, Any] | None,
) -> tuple[float, dict[str, Any]]:
    """Trains ``module`` in place over one rung.

    Args:
        module: Takes pixels in 0..1, gives logits.
        train: Training images.
        teacher_logits: ``[train images, classes]``.
        placement: Device and arithmetic.
        step: The recipe.
        state: What the rung before returned; None for the first.

    Returns:
        The mean loss, and the state to go on from.

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
    sums = torch.zeros((), device=placement.device)
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
        pace.optimizer.step()
        latest = loss.detach()
        sums += latest
        recent = latest if recent is None else torch.lerp(recent.to(latest), latest, RECENT_SHARE)
        pace.advance(number, recent.item() if number % pace.plateau_steps == 0 else 0.0)
        if number % CHECK_EVERY_STEPS == 0 or number == last:
            _check_finite(recent, number, total, step)
    mean = (sums / max(1, last - first)).item()
    return mean, {
        "optimizer": pace.optimizer.state_dict(),
        "schedule": pace.schedule.state_dict(),
        "recent_loss": recent,
    }


def distillation_loss(
    logits: Tensor, labels: Tensor, teacher_logits: Tensor, temperature: float, weight: float
) -> Tensor:
    """Mixes the labels' cross-entropy with the divergence from the softened teacher.

    ``(1 - weight) * CE(logits, labels) + weight * T² * KL(teacher / T || student / T)``; the
    factor T² keeps the gradients' size when the temperature changes.

    Source: Hinton, Vinyals & Dean 2015, Distilling the Knowledge (arXiv 1503.02531).

    Args:
        logits: Student's, ``[n, classes]``.
        labels: ``[n]``.
        teacher_logits: ``[n, classes]``.
        temperature: T, at least 1.
        weight: Share of the teacher's word, 0..1.

    Returns:
        Mean over the batch, ``[]``.
    """
    hard = F.cross_entropy(logits, labels)
    soft = F.kl_div(
        F.log_softmax(logits / temperature, dim=1),
        F.log_softmax(teacher_logits / temperature, dim=1),
        reduction="batchmean",
        log_target=True,
    )
    return (1 - weight) * hard + weight * temperature**2 * soft


def make_pace(module: nn.Module, step: Finetune, total: int) -> _Pace:
    """Builds the optimizer and the schedule of a fine-tuning of ``total`` steps."""
    optimizer = make_optimizer(module, step.optimizer, step.learning_rate, step.weight_decay)
    schedule = make_schedule(optimizer, step.schedule, step.learning_rate, total)
    return _Pace(optimizer, schedule, max(1, total // PLATEAU_CHECKS))


def make_optimizer(
    module: nn.Module, name: str, learning_rate: float, weight_decay: float
) -> Optimizer:
    """Builds one of sgd (Nesterov momentum), adam, adamw and rmsprop."""
    parameters = module.parameters()
    match name:
        case "sgd":
            return torch.optim.SGD(
                parameters,
                learning_rate,
                MOMENTUM,
                weight_decay=weight_decay,
                nesterov=True,
                fused=True,
            )
        case "adam":
            return torch.optim.Adam(
                parameters, learning_rate, weight_decay=weight_decay, fused=True
            )
        case "adamw":
            return torch.optim.AdamW(
                parameters, learning_rate, weight_decay=weight_decay, fused=True
            )
        case "rmsprop":
            return torch.optim.RMSprop(parameters, learning_rate, weight_decay=weight_decay)
    raise StageFailed("finetune", f"there is no optimizer {name}")


def make_schedule(
    optimizer: Optimizer, name: str, learning_rate: float, total: int
) -> lr_scheduler.LRScheduler:
    """Builds the schedule of the learning rate over ``total`` optimizer steps."""
    match name:
        case "constant":
            return lr_scheduler.ConstantLR(optimizer, factor=1.0)
        case "step":
            return lr_scheduler.MultiStepLR(
                optimizer, [max(1, total // 2), max(1, 3 * total // 4)], gamma=STEP_FACTOR
            )
        case "cosine":
            return lr_scheduler.CosineAnnealingLR(optimizer, T_max=total)
        case "one_cycle":
            # Momentum falls while the rate rises, but an optimizer without any must not get it.
            cycled = optimizer.defaults.get("momentum") != 0
            return lr_scheduler.OneCycleLR(
                optimizer, learning_rate, total_steps=max(2, total), cycle_momentum=cycled
            )
        case "plateau":
            return lr_scheduler.ReduceLROnPlateau(
                optimizer, factor=PLATEAU_FACTOR, patience=PLATEAU_PATIENCE
            )
    raise StageFailed("finetune", f"there is no schedule {name}")


def _check_finite(loss: Tensor, number: int, total: int, step: Finetune) -> None:
    if not torch.isfinite(loss):
        raise StageFailed(
            "finetune",
            f"the loss is not finite at step {number} of {total} with {step.optimizer} and "
            f"learning_rate {step.learning_rate:.2g}; lower space.learning_rate.high",
        )


def _to_bytes(state: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()
