"""Scores the ONNX model that would be deployed; knows nothing of PyTorch's opinion."""

from __future__ import annotations

import os

import numpy as np
import onnxruntime

from search import activity, data
from search.data import Split, batch_of
from search.records import Deployable
from search.steps import Evaluate, Score, Shelf

BATCH = 250  # at most


def run(step: Evaluate, shelf: Shelf) -> Score:
    """Does the step."""
    splits = data.load(step.data, shelf.images)
    split = splits.validation if step.split == "validation" else splits.test
    return evaluate(shelf.path(step.deployable.model).read_bytes(), step.deployable, split)


def evaluate(content: bytes, deployable: Deployable, split: Split) -> Score:
    """Returns the top-1 accuracy of an ONNX model over a split, in its own runtime options."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    options.log_severity_level = 3
    for key, value in deployable.session_entries:
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
    bits = np.packbits(right).tobytes().hex()
    return Score(accuracy=float(right.mean()), images=len(right), right=bits)
