"""Scores the model that would be deployed, where it would be deployed."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from search import data
from search.data import Split, batch_of
from search.devices.arithmetic import check_arithmetic
from search.devices.device import Device
from search.devices.reaching import on_device
from search.front.scores import score_of
from search.process import activity
from search.records.score import Score
from search.records.steps.scoring import EvaluateOnDevice
from search.records.steps.step import ArtifactStore

BATCH = 32  # images of a run at most, because a device may have little memory
# Images travel in files of this size at most, so that nobody has to hold all of them; an answer
# has so many classes at most.
FILE_BYTES, FILE_IMAGES = 1 << 26, 50_000
LONG_S = 1.0  # requests are made larger until one takes so long: none comes near the time-out
ROLE = "predict"


def run(step: EvaluateOnDevice, artifacts: ArtifactStore) -> Score:
    """Does the step.

    Raises:
        StageFailed: If the model does not run there, the device's time-out runs out, or the
            device's arithmetic is not the one that the score is to hold for.
        DeviceLost: If the connection to the device breaks again and again.
    """
    splits = data.load(step.data, artifacts.images)
    split = splits.validation if step.split == "validation" else splits.test
    model = artifacts.path(step.deployable.model)
    classes = on_device(
        step.connection,
        lambda device: _classify(step, split, model, device),
        step.deployable.model.size_bytes + FILE_BYTES,
    )
    return score_of(np.array(classes) == split.labels)


def _classify(step: EvaluateOnDevice, split: Split, model: Path, device: Device) -> list[int]:
    """Returns the class that the model gives every image of a split there."""
    request = {
        "request": "predict",
        "role": ROLE,
        "model": device.deliver(model),
        "threads": step.device.usable_cores,
        "session_entries": dict(step.deployable.options),
        "batch_size": batch_of(split.images.shape[-3:], BATCH),
    }

    def ask(wanted: dict[str, Any]) -> dict[str, Any]:
        return device.ask(wanted, step.connection.timeout_s)

    processor = ask({"request": "conditions"})
    ask({"request": "start", "roles": [ROLE]})
    classes: list[int] = []
    with tempfile.TemporaryDirectory(prefix="evaluate-") as folder:
        for images, count in _written(split, Path(folder)):
            inputs = {**request, "inputs": device.deliver(images)}
            for reply in predictions(ask, inputs, count):
                check_arithmetic(step.device, processor, reply["onnxruntime"])
                classes += reply["classes"]
                activity.tell("image", len(classes), len(split))
    return classes


def predictions(
    ask: Callable[[dict[str, Any]], dict[str, Any]],
    request: dict[str, Any],
    count: int,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[dict[str, Any]]:
    """Yields the answers for ``count`` images, in their order; how many each is for varies.

    Args:
        ask: Leads to the agent.
        request: But for ``first`` and ``count``.
        count: Images in its ``inputs``.
        clock: Seconds that only rise.
    """
    done, size = 0, request["batch_size"]
    while done < count:
        wanted = min(size, count - done)
        began = clock()
        yield ask({**request, "first": done, "count": wanted})
        done += wanted
        if clock() - began < LONG_S / 2:
            size *= 2


def _written(split: Split, folder: Path) -> Iterator[tuple[Path, int]]:
    """Writes the images of a split ``[n, C, H, W]`` as bytes, a file at a time.

    Yields:
        A file that is gone when the next one is asked for, and how many images it holds.
    """
    count, shape = len(split), split.images.shape[-3:]
    most = max(1, min(FILE_IMAGES, FILE_BYTES // math.prod(shape)))
    for first in range(0, count, most):
        path = folder / f"{first}.npy"
        np.save(path, split.read(np.arange(first, min(first + most, count))))
        yield path, min(most, count - first)
        path.unlink()
