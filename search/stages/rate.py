"""Stage ``rate``: finds the scale of the learning rate by which a pruned network recovers."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import nn

from search import data
from search.devices.stillness import working
from search.networks import networks
from search.networks.networks import Preprocessed
from search.networks.optimization import GRADIENT_NORM, distillation_loss, make_optimizer
from search.networks.placing import use_placed
from search.networks.training import (
    Feed,
    KeptLogits,
    Placement,
    reseed,
    training_batches,
)
from search.process import activity
from search.records.steps.step import ArtifactStore
from search.records.steps.training import FindRate
from search.records.survey import FoundRate
from search.techniques.distillation import TEMPERATURE, WEIGHT
from search.techniques.finetuning import USUAL_RATE

log = logging.getLogger(__name__)

LOWEST, HIGHEST, STEPS = 1e-5, 1.0, 60
SETTLING = 10  # steps whose smoothed loss is that of a few batches, lucky or not, and no verdict
SMOOTHING = 0.2  # share of the latest loss in the smoothed one
DIVERGED = 4.0  # times the least loss so far, at which the test ends
# The loss falls longest just below the rate at which it rises again, which is too high to train at.
SAFETY = 0.5


def run(step: FindRate, artifacts: ArtifactStore) -> FoundRate:
    """Does the step."""
    load = partial(networks.load, step.start, artifacts)
    return use_placed(step, load, partial(_find, step, artifacts))


def _find(
    step: FindRate, artifacts: ArtifactStore, module: Preprocessed, placement: Placement
) -> FoundRate:
    train = Feed(data.load(step.data, artifacts.images).train, placement.device)
    logits = KeptLogits(artifacts.path(step.teacher_logits), step.data.classes, placement.device)
    with torch.random.fork_rng(devices=[]):
        tried = test_rates(module, train, logits, placement, step)
    return FoundRate(choose(tried), tried)


@working()
def test_rates(
    module: nn.Module,
    train: Feed,
    teacher_logits: KeptLogits,
    placement: Placement,
    step: FindRate,
) -> tuple[tuple[float, float], ...]:
    """Trains ``module`` in place at rates that rise from step to step, until its loss rises too.

    Source: Smith 2017, Cyclical Learning Rates for Training Neural Networks (arXiv 1506.01186),
    the "LR range test".

    Args:
        module: Takes pixels in 0..1, gives logits.
        train: Training images.
        teacher_logits: ``[train images, classes]``.
        placement: Device and arithmetic.
        step: What is to be found.

    Returns:
        Each rate with the smoothed loss there.
    """
    optimizer = make_optimizer(module, "adamw", LOWEST, step.weight_decay)
    module.train()
    smoothed = 0.0
    tried: list[tuple[float, float]] = []
    batches = training_batches(train, 0, STEPS, step.batch_size, step.seed)
    for number, (images, labels, index) in enumerate(batches):
        reseed(step.seed, number)
        with placement.autocast():
            logits = module(images)
        loss = distillation_loss(
            logits.float(),
            labels,
            teacher_logits[index],
            float(TEMPERATURE.sound),
            float(WEIGHT.sound),
        )
        activity.tell("step", number + 1, STEPS, loss.detach())
        smoothed += SMOOTHING * (loss.item() - smoothed)
        unbiased = smoothed / (1 - (1 - SMOOTHING) ** (number + 1))
        rate = LOWEST * (HIGHEST / LOWEST) ** (number / (STEPS - 1))
        if not unbiased < DIVERGED * min((past for _, past in tried[SETTLING:]), default=math.inf):
            break
        tried.append((rate, unbiased))
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), GRADIENT_NORM)
        optimizer.step()
    return tuple(tried)


def choose(tried: Sequence[tuple[float, float]]) -> float:
    """Returns the rate to train at: somewhat below that of the least smoothed loss."""
    settled = tried[SETTLING:]
    if not settled:
        log.warning(
            "the loss was not finite from step %d of the learning rate's test on, which found "
            "nothing; %g is taken",
            len(tried) + 1,
            USUAL_RATE,
        )
        return USUAL_RATE
    best, _ = min(settled, key=lambda one: one[1])
    return SAFETY * best
