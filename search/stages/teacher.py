"""Loads or trains the accurate network that the search starts from; knows nothing of students."""

from __future__ import annotations

import logging
import time
import warnings
import zipfile
from pathlib import Path

import torch
from safetensors.torch import load_file
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn
from torch.nn import functional as F

from search import data, networks
from search.batch_statistics import reestimate
from search.benchmark.stillness import working
from search.errors import ConfigError, StageFailed
from search.networks import Preprocessed
from search.records import NetworkSpec, Teacher
from search.steps import Shelf, Teach
from search.training import (
    Feed,
    Placement,
    accuracy,
    predict,
    reseed,
    steps_per_epoch,
    training_batches,
)

log = logging.getLogger(__name__)

TELL_EVERY_S = 30.0


def run(step: Teach, shelf: Shelf) -> Teacher:
    """Does the step."""
    splits = data.load(step.data)
    placement = Placement(torch.device(step.device), step.precision)
    train = Feed(splits.train, placement.device)
    with torch.random.fork_rng():
        torch.manual_seed(step.seed)
        network = networks.build(step.spec)
        module = placement.place(
            Preprocessed(network, step.data.mean, step.data.std), step.data.image_shape
        )
        if step.checkpoint is None:
            teach(module, train, placement, step)
            reestimate(module, train, placement, step.batch_size, step.seed, frozen_too=False)
        else:  # the user's own statistics belong to the user's weights
            load_checkpoint(network, shelf.path(step.checkpoint), "model.checkpoint")
    logits, _ = predict(module, train, placement)
    score = accuracy(module, Feed(splits.validation, placement.device), placement)
    return Teacher(
        network=networks.save(network, step.spec, shelf),
        logits=shelf.put(to_safetensors({"train": logits}), ".safetensors"),
        val_accuracy=score,
    )


@working()
def teach(module: nn.Module, train: Feed, placement: Placement, step: Teach) -> None:
    """Trains ``module`` in place with AdamW and one cycle of the learning rate.

    Source: Smith & Topin 2018, Super-Convergence (arXiv 1708.07120).

    Raises:
        StageFailed: When the loss stops being finite.
    """
    per_epoch = steps_per_epoch(len(train), step.batch_size)
    total = step.epochs * per_epoch
    optimizer = torch.optim.AdamW(
        module.parameters(), step.learning_rate, weight_decay=step.weight_decay, fused=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, step.learning_rate, total_steps=max(total, 2)
    )
    module.train()
    told = time.monotonic()
    batches = training_batches(train, 0, total, step.batch_size, step.seed)
    for number, (images, labels, _) in enumerate(batches):
        reseed(step.seed, number)
        with placement.autocast():
            loss = F.cross_entropy(module(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        epoch, left = divmod(number + 1, per_epoch)
        if left == 0:
            _check_finite(loss, step)
            if time.monotonic() - told > TELL_EVERY_S:
                told = time.monotonic()
                log.info("teacher: %d of %d epochs, loss %.3g", epoch, step.epochs, loss.item())


def _check_finite(loss: Tensor, step: Teach) -> None:
    if not torch.isfinite(loss):
        raise StageFailed(
            "teacher",
            f"the loss is not finite with train.teacher_learning_rate={step.learning_rate}; "
            "lower it",
        )


def check(spec: NetworkSpec, checkpoint: Path | None, origin: str) -> None:
    """Looks for what would stop ``run``, without training anything.

    Args:
        spec: The network, which must suit the data.
        checkpoint: The user's weights, which must suit the network.
        origin: Key and value that the checkpoint came from, for messages.

    Raises:
        ConfigError: When one of them does not.
    """
    with torch.random.fork_rng():
        network = networks.build(spec)
    if checkpoint is not None:
        load_checkpoint(network, checkpoint, origin)


def load_checkpoint(network: nn.Module, path: Path, origin: str) -> None:
    """Loads a user's weights in place, without running any code the file may hold.

    Args:
        network: The network that the file must fit exactly.
        path: ``.safetensors``, or a ``.pt`` state dict, bare or under ``state_dict``.
        origin: Key and value that the file came from, for messages.

    Raises:
        ConfigError: When the file cannot be read or belongs to another network.
    """
    state = _read_state(path, origin)
    wanted = network.state_dict()
    # Counters of batches seen decide nothing in evaluation, and some tools drop them.
    missing = [n for n in wanted if n not in state and not n.endswith("num_batches_tracked")]
    unexpected = [name for name in state if name not in wanted]
    other = [n for n, v in state.items() if n in wanted and v.shape != wanted[n].shape]
    if missing or unexpected or other:
        raise ConfigError(f"{origin}: belongs to another network: {_mismatch(state, wanted)}")
    strange = next((n for n, v in state.items() if not _is_plain(v)), None)
    if strange is not None:
        raise ConfigError(f"{origin}: {strange} is no dense tensor of real numbers; give such")
    damaged = next((n for n, v in state.items() if not torch.isfinite(v).all()), None)
    if damaged is not None:
        raise ConfigError(f"{origin}: {damaged} holds NaN or infinity; give sound weights")
    network.load_state_dict(state, strict=False)


def _is_plain(value: Tensor) -> bool:
    """Tells tensors with values from those of other layouts, and from mere shapes."""
    is_dense = value.layout == torch.strided and not value.is_meta and not value.is_quantized
    return is_dense and not value.is_complex()


def _mismatch(state: dict[str, Tensor], wanted: dict[str, Tensor]) -> str:
    """Names the first tensor in which a checkpoint and a network differ."""
    for name, value in wanted.items():
        if name not in state and not name.endswith("num_batches_tracked"):
            if f"module.{name}" in state:
                return "all its names begin with module.; save network.module.state_dict() instead"
            first = next(iter(state), "nothing")
            return f"it has no {name} (but {first}); check model and model.width"
        if name in state and state[name].shape != value.shape:
            return (
                f"{name} is {list(state[name].shape)} in it and {list(value.shape)} in the "
                "network; check model, model.width, and the data's images and classes"
            )
    extra = next(name for name in state if name not in wanted)
    return f"it has {extra}, the network has not; check model"


def _check_sizes(path: Path) -> None:
    """Refuses an archive whose members unpack to more than the file holds; PyTorch packs none.

    Raises:
        ValueError: If they do.
        BadZipFile: If it is damaged.
    """
    if not zipfile.is_zipfile(path):
        return  # PyTorch's older format
    with zipfile.ZipFile(path) as archive:
        if sum(member.file_size for member in archive.infolist()) > path.stat().st_size:
            raise ValueError("unpacks to more than it holds")


def _read_state(path: Path, origin: str) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        _check_sizes(path)
        with warnings.catch_warnings():  # it has something to say about foreign pickles
            warnings.simplefilter("ignore")
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # weights_only raises pickle errors of many kinds
        raise ConfigError(
            f"{origin}: cannot be read as weights ({type(error).__name__}); it is damaged, or "
            "holds more than tensors: save it with torch.save(network.state_dict(), 'file.pt'), "
            "or as .safetensors"
        ) from error
    if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, dict) or not all(isinstance(v, Tensor) for v in loaded.values()):
        raise ConfigError(
            f"{origin}: holds no state dict; save one with "
            "torch.save(network.state_dict(), 'file.pt')"
        )
    return loaded
