"""Scores the ONNX model that would be deployed."""

from __future__ import annotations

import os

import numpy as np
import onnxruntime

from search import data
from search.data import Split, batch_of
from search.devices.agent.processor import describe_processor
from search.devices.arithmetic import check_arithmetic
from search.front.scores import score_of
from search.process import activity
from search.records.deployable import Deployable
from search.records.score import Score
from search.records.steps.scoring import Evaluate
from search.records.steps.step import ArtifactStore

BATCH = 250  # at most


def run(step: Evaluate, artifacts: ArtifactStore) -> Score:
    """Does the step.

    Raises:
        StageFailed: If this machine's arithmetic is not the one that the score is to hold for.
    """
    check_arithmetic(step.device, describe_processor(), onnxruntime.__version__)
    splits = data.load(step.data, artifacts.images)
    split = splits.validation if step.split == "validation" else splits.test
    return evaluate(artifacts.path(step.deployable.model).read_bytes(), step.deployable, split)


def evaluate(content: bytes, deployable: Deployable, split: Split) -> Score:
    """Returns the top-1 accuracy of an ONNX model over a split, in its own runtime options."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    options.log_severity_level = 3
    for key, value in deployable.options:
        options.add_session_config_entry(key, value)
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    right = np.zeros(len(split.labels), dtype=bool)
    batch = batch_of(split.images.shape[-3:], BATCH)
    for start in range(0, len(split.labels), batch):
        activity.tell("image", start, len(split.labels))
        index = np.arange(start, min(start + batch, len(split.labels)))
        images = split.read(index).astype(np.float32) / np.float32(255)
        logits = session.run(None, {"images": images})[0]
        right[index] = logits.argmax(1) == split.labels[index]
    return score_of(right)
