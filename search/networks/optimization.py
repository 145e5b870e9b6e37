"""A fine-tuning recipe in torch's terms: the loss, the optimizer and its learning rate."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer, lr_scheduler

from search.errors import StageFailed
from search.records.steps.training import Finetune

MOMENTUM = 0.9
STEP_FACTOR = 0.1  # of the step schedule, at one half and three quarters
WARM_UP_SHARE = 0.05  # of all steps
GRADIENT_NORM = 10.0  # at most; steps beyond are rare, and would throw a network far off
PLATEAU_CHECKS = 20  # looks at the training loss over the whole fine-tuning
PLATEAU_FACTOR = 0.5
PLATEAU_PATIENCE = 1


@dataclass(frozen=True)
class Pace:
    """An optimizer with the schedule of its learning rate, which begins after a warm-up.

    Attributes:
        optimizer: Its rate is 0 times to once ``learning_rate`` during the warm-up.
        schedule: At its beginning until then.
        learning_rate: That the schedule begins with.
        warm_up_steps: Optimizer steps, 0 or more.
        plateau_steps: Optimizer steps between two looks at the loss.
    """

    optimizer: Optimizer
    schedule: lr_scheduler.LRScheduler
    learning_rate: float
    warm_up_steps: int
    plateau_steps: int

    def __post_init__(self) -> None:
        self._warm_up(0)

    def advance(self, step: int, recent_loss: float) -> None:
        """Moves the schedule on after optimizer step ``step``, counted from 1."""
        if step < self.warm_up_steps:
            self._warm_up(step)
        elif step == self.warm_up_steps:
            self._set(self.learning_rate)
        elif not isinstance(self.schedule, lr_scheduler.ReduceLROnPlateau):
            self.schedule.step()
        elif step % self.plateau_steps == 0:
            self.schedule.step(recent_loss)

    def _warm_up(self, steps_done: int) -> None:
        if self.warm_up_steps:
            self._set(self.learning_rate * (steps_done + 1) / (self.warm_up_steps + 1))

    def _set(self, learning_rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate


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


def make_pace(module: nn.Module, step: Finetune, total: int) -> Pace:
    """Builds the optimizer and the schedule of a fine-tuning of ``total`` steps."""
    optimizer = make_optimizer(module, step.optimizer, step.learning_rate, step.weight_decay)
    # One cycle warms up by itself.
    warm_up = 0 if step.schedule == "one_cycle" else round(WARM_UP_SHARE * total)
    schedule = make_schedule(optimizer, step.schedule, step.learning_rate, total - warm_up)
    plateau_steps = max(1, total // PLATEAU_CHECKS)
    return Pace(optimizer, schedule, step.learning_rate, warm_up, plateau_steps)


def make_optimizer(
    module: nn.Module, name: str, learning_rate: float, weight_decay: float
) -> Optimizer:
    """Builds one of sgd (Nesterov momentum), adam, adamw and rmsprop."""
    # Whole numbers, such as an index, are not trained.
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
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
