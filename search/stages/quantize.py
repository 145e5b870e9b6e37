"""Stage ``quantize``: stores a float ONNX model in a format of a runtime."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from search import data
from search.data import batch_of
from search.process import registry
from search.records.deployable import Deployable
from search.records.steps.exporting import Quantize
from search.records.steps.step import ArtifactStore
from search.runtimes import runtimes

CALIBRATION_BATCH = 32
# onnxruntime holds every value in the network at once, for a ResNet-50 350 times the images.
CALIBRATION_BYTES = 1 << 21

Images = NDArray[np.float32]
Converter = Callable[
    [Quantize, bytes, Callable[[], Iterator[Images]]], tuple[bytes, tuple[tuple[str, str], ...]]
]


def run(step: Quantize, artifacts: ArtifactStore) -> Deployable:
    """Does the step."""
    convert: Converter = registry.load(runtimes()[step.runtime].converter)
    content = artifacts.path(step.model).read_bytes()
    converted, options = convert(step, content, lambda: _calibration_batches(step, artifacts))
    file = step.model if converted is content else artifacts.put(converted, step.model.suffix)
    return Deployable(file, step.runtime, step.format, options)


def _calibration_batches(step: Quantize, artifacts: ArtifactStore) -> Iterator[Images]:
    train = data.load(step.data, artifacts.images).train
    count = min(step.calibration_images, len(train.labels))
    index = np.random.default_rng(step.seed).choice(len(train.labels), count, replace=False)
    size = batch_of(step.data.image_shape, CALIBRATION_BATCH, CALIBRATION_BYTES)
    for chunk in np.split(np.sort(index), range(size, count, size)):
        yield train.read(chunk).astype(np.float32) / np.float32(255)
