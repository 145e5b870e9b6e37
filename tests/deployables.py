"""Models in the formats of onnxruntime, as tests write them down."""

from __future__ import annotations

from search.records.data import Dataset
from search.records.deployable import Deployable
from search.records.files import File
from search.records.steps.exporting import Quantize
from search.runtimes.onnxruntime import FORMATS, RUNTIME


def make_deployable(
    model: File, bits: int, options: tuple[tuple[str, str], ...] = ()
) -> Deployable:
    """A model stored in ``bits``."""
    return Deployable(model, RUNTIME.name, FORMATS[bits], options)


def make_quantize(
    model: File,
    bits: int,
    int8_format: str,
    data: Dataset,
    calibration_images: int = 8,
    seed: int = 0,
) -> Quantize:
    """The step that stores a model in ``bits``."""
    return Quantize(model, RUNTIME.name, FORMATS[bits], int8_format, data, calibration_images, seed)
