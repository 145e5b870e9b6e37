"""Scores the ONNX model that would be deployed."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from search import data
from search.data import Split, batch_of
from search.devices.agent.drivers import onnxruntime as driver
from search.devices.agent.options import session_options
from search.devices.agent.processor import describe_processor
from search.devices.arithmetic import check_arithmetic
from search.front.scores import score_of
from search.process import activity
from search.records.deployable import Deployable
from search.records.score import Score
from search.records.steps.scoring import Evaluate
from search.records.steps.step import ArtifactStore

BATCH = 250  # at most
FLUSHING = ("x86_64", "AMD64")  # where onnxruntime can take denormals for zero


def run(step: Evaluate, artifacts: ArtifactStore) -> Score:
    """Does the step.

    Raises:
        StageFailed: If this machine's arithmetic is not the one that the score is to hold for.
    """
    check_arithmetic(step.device, describe_processor(), driver.version())
    splits = data.load(step.data, artifacts.images)
    split = splits.validation if step.split == "validation" else splits.test
    return evaluate(artifacts.path(step.deployable.model), step.deployable, split)


def evaluate(path: Path, deployable: Deployable, split: Split) -> Score:
    """Returns the top-1 accuracy of an ONNX model over a split, opened as a device opens it."""
    options = session_options(len(os.sched_getaffinity(0)), dict(deployable.options))
    right = np.zeros(len(split.labels), dtype=bool)
    batch = batch_of(split.images.shape[-3:], BATCH)
    with _denormals_flushed():
        model = driver.Model(str(path), options)
        for start in range(0, len(split.labels), batch):
            activity.tell("image", start, len(split.labels))
            index = np.arange(start, min(start + batch, len(split.labels)))
            images = split.read(index).astype(np.float32) / np.float32(255)
            right[index] = model.predict(images).argmax(1) == split.labels[index]
    return score_of(right)


@contextmanager
def _denormals_flushed() -> Iterator[None]:
    """Has this thread take denormals for zero, as a session on the device does.

    The first session of a process decides that for its thread, and for good: later ones would not
    do it, and trainings after it would.
    """
    torch.set_flush_denormal(platform.machine() in FLUSHING)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
