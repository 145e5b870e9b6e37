"""Stage ``quantize``: stores a float ONNX model in fewer bits; knows nothing of training."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from search import data
from search.data import batch_of
from search.errors import StageFailed
from search.quantization import (
    FOLDED,
    Array,
    four_bit_weights,
    half_precision_weights,
    static_int8,
)
from search.records import Deployable
from search.steps import Quantize, Shelf

CALIBRATION_BATCH = 32
# onnxruntime holds every value in the network at once, for a ResNet-50 350 times the images.
CALIBRATION_BYTES = 1 << 21


def run(step: Quantize, shelf: Shelf) -> Deployable:
    """Does the step."""
    content = shelf.path(step.model).read_bytes()
    entries: tuple[tuple[str, str], ...] = ()
    match step.bits:
        case 32:
            return Deployable(step.model, 32, entries)
        case 16:
            content = half_precision_weights(content)
        case 8:
            content = static_int8(content, _calibration_batches(step, shelf), step.int8_format)
        case 4:
            content = four_bit_weights(content)
            entries = FOLDED
        case _:
            raise StageFailed("quantize", f"bits {step.bits} is none of 32, 16, 8, 4")
    return Deployable(shelf.put(content, ".onnx"), step.bits, entries)


def _calibration_batches(step: Quantize, shelf: Shelf) -> Iterator[Array]:
    train = data.load(step.data, shelf.images).train
    count = min(step.calibration_images, len(train.labels))
    index = np.random.default_rng(step.seed).choice(len(train.labels), count, replace=False)
    size = batch_of(step.data.image_shape, CALIBRATION_BATCH, CALIBRATION_BYTES)
    for chunk in np.split(np.sort(index), range(size, count, size)):
        yield train.read(chunk).astype(np.float32) / np.float32(255)
