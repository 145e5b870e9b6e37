"""Loads or trains the accurate network that the search starts from."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from search import data
from search.devices.stillness import working
from search.errors import ConfigError, StageFailed
from search.networks import networks
from search.networks.batch_statistics import reestimate
from search.networks.checkpoints import load_checkpoint
from search.networks.networks import Preprocessed
from search.networks.optimization import make_optimizer
from search.networks.placing import use_placed
from search.networks.training import (
    Feed,
    Placement,
    accuracy,
    pack_logits,
    predictions,
    reseed,
    steps_per_epoch,
    training_batches,
)
from search.process import activity
from search.records.data import Dataset
from search.records.files import File
from search.records.network import NetworkSpec, Teacher
from search.records.steps.step import ArtifactStore
from search.records.steps.training import Teach

log = logging.getLogger(__name__)


def run(step: Teach, artifacts: ArtifactStore) -> Teacher:
    """Does the step."""
    return use_placed(step, partial(_build, step), partial(_obtain, step, artifacts))


def _build(step: Teach) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(step.seed)
        return networks.build(step.spec)


def _obtain(
    step: Teach, artifacts: ArtifactStore, module: Preprocessed, placement: Placement
) -> Teacher:
    splits = data.load(step.data, artifacts.images)
    train = Feed(splits.train, placement.device)
    if step.checkpoint is None:
        with torch.random.fork_rng(devices=[]):
            teach(module, train, placement, step)
            reestimate(module, train, placement, step.batch_size, step.seed, frozen_too=False)
    else:  # the user's own statistics belong to the user's weights
        load_checkpoint(module.network, artifacts.path(step.checkpoint), "model.checkpoint")
    logits = note_logits(module, train, placement, artifacts)
    score = accuracy(module, Feed(splits.validation, placement.device), placement)
    return Teacher(
        network=networks.save(module.network, step.spec, artifacts),
        logits=logits,
        val_accuracy=score,
    )


@working()
def note_logits(
    module: nn.Module, train: Feed, placement: Placement, artifacts: ArtifactStore
) -> File:
    """Keeps the logits of all training images, which students learn from."""
    answers = predictions(module, train, placement, "noting the teacher's answers")
    return artifacts.put_parts((pack_logits(logits) for logits, _ in answers), ".f16")


@working()
def teach(module: nn.Module, train: Feed, placement: Placement, step: Teach) -> None:
    """Trains ``module`` in place with AdamW and one cycle of the learning rate.

    Source: Smith & Topin 2018, Super-Convergence (arXiv 1708.07120).

    Raises:
        StageFailed: When the loss stops being finite.
    """
    per_epoch = steps_per_epoch(len(train), step.batch_size)
    total = step.epochs * per_epoch
    optimizer = make_optimizer(module, "adamw", step.learning_rate, step.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, step.learning_rate, total_steps=max(total, 2)
    )
    module.train()
    batches = training_batches(train, 0, total, step.batch_size, step.seed)
    for number, (images, labels, _) in enumerate(batches):
        reseed(step.seed, number)
        with placement.autocast():
            loss = F.cross_entropy(module(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        activity.tell("step", number + 1, total, loss.detach())
        if (number + 1) % per_epoch == 0:
            _check_finite(loss, step)


def _check_finite(loss: Tensor, step: Teach) -> None:
    if not torch.isfinite(loss):
        raise StageFailed(
            "teacher",
            f"the loss is not finite with train.teacher_learning_rate={step.learning_rate}; "
            "lower it",
        )


def check(spec: NetworkSpec, checkpoint: Path | None, origin: str, dataset: Dataset | None) -> None:
    """Looks for what would stop ``run``, without training anything.

    Args:
        spec: The network, which must suit the data.
        checkpoint: The user's weights, which must suit the network.
        origin: Key and value that the checkpoint came from, for messages.
        dataset: Whose images a network of the user's is tried on; noise while they are not there.

    Raises:
        ConfigError: When one of them does not.
    """
    with torch.random.fork_rng(devices=[]):
        network = networks.build(spec)
    if checkpoint is not None:
        where = load_checkpoint(network, checkpoint, origin)
        if where and dataset is None:  # told once
            log.info("%s: takes the weights in %s", origin, where)
    if checkpoint is not None or spec.factory is not None:
        owner = origin if spec.factory is None else f"model.factory={spec.factory!r}"
        _check_answers(network, owner, spec.image_shape, dataset)


def _check_answers(
    network: nn.Module, origin: str, shape: tuple[int, int, int], dataset: Dataset | None
) -> None:
    """Looks at what a network gives for real images, or for noise before there are any.

    Raises:
        ConfigError: When that is not finite.
    """
    with torch.inference_mode():
        if dataset is None:
            generator = torch.Generator().manual_seed(0)
            logits = network.eval()(torch.rand(2, *shape, generator=generator))
        else:
            module = Preprocessed(network, dataset.mean, dataset.std).eval()
            logits = module(torch.from_numpy(data.read_samples(dataset)))
    if not torch.isfinite(logits).all():
        what, cause = "images of the data", ", and data.mean and data.std"
        if dataset is None:
            what, cause = "noise between 0 and 1", ""
        raise ConfigError(
            f"{origin}: the network gives NaN or infinity for {what}; check its weights{cause}"
        )
    if dataset is None:
        return
    sums = logits.double().sum(1)
    if (logits >= 0).all() and torch.allclose(sums, torch.ones_like(sums), atol=1e-3):
        log.warning(
            "%s: the network gives probabilities, it seems (none below 0, their sum 1): training "
            "takes logits, so leave out its softmax",
            origin,
        )
