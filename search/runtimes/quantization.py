"""Stores float ONNX models in fewer bits."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from search.networks.layers import WEIGHTED
from search.records.steps.exporting import Quantize

Array = NDArray[np.float32]
CLIP_CANDIDATES = np.linspace(0.5, 1.0, 21, dtype=np.float32)
INT4 = helper.tensor_dtype_to_np_dtype(TensorProto.INT4)
INT4_OPSET = 21  # the first with four-bit integers
# For four-bit weights: folded back to float once at load, or every run would unpack them.
FOLDED = (("session.disable_quant_qdq", "1"),)


def convert(
    step: Quantize, content: bytes, calibration: Callable[[], Iterable[Array]]
) -> tuple[bytes, tuple[tuple[str, str], ...]]:
    """Stores a float ONNX model in the step's format; see ``Runtime.converter``."""
    match step.format.bits:
        case 16:
            return half_precision_weights(content), ()
        case 8:
            return static_int8(content, calibration(), step.int8_format), ()
        case 4:
            return four_bit_weights(content), FOLDED
    return content, ()


def half_precision_weights(content: bytes) -> bytes:
    """Stores weights as float16; the runtime casts them to float32 when it loads the model."""

    def store(name: str, weights: Array, _axis: int) -> list[onnx.NodeProto | onnx.TensorProto]:
        limit = np.finfo(np.float16).max
        half = np.clip(weights, -limit, limit).astype(np.float16)
        return [
            numpy_helper.from_array(half, f"{name}_half"),
            helper.make_node("Cast", [f"{name}_half"], [name], to=TensorProto.FLOAT),
        ]

    return _store_weights(content, store)


def four_bit_weights(content: bytes) -> bytes:
    """Stores weights as 4-bit integers with one scale per output channel; activations stay float.

    Every channel's range is clipped where the squared rounding error is least.

    Source: ONNX operator DequantizeLinear 21; Banner et al. 2019 (arXiv 1810.05723) for clipping.
    """

    def store(name: str, weights: Array, axis: int) -> list[onnx.NodeProto | onnx.TensorProto]:
        rows = np.moveaxis(weights, axis, 0).reshape(weights.shape[axis], -1)
        scale = best_scale(rows)
        shape = [-1 if dim == axis else 1 for dim in range(weights.ndim)]
        levels = np.clip(np.round(weights / scale.reshape(shape)), -8, 7).astype(INT4)
        return [
            numpy_helper.from_array(levels, f"{name}_int4"),  # two to a byte
            numpy_helper.from_array(scale, f"{name}_scale"),
            helper.make_node(
                "DequantizeLinear", [f"{name}_int4", f"{name}_scale"], [name], axis=axis
            ),
        ]

    return _store_weights(content, store)


def best_scale(rows: Array) -> Array:
    """Returns the 4-bit step size of each row that loses least; ``[n, m]`` to ``[n]``."""
    largest = np.maximum(np.abs(rows).max(axis=1), np.float32(1e-8))
    best = largest / 7
    least = np.full(len(rows), np.inf, np.float32)
    for share in CLIP_CANDIDATES:
        scale = largest * share / 7
        rounded = np.clip(np.round(rows / scale[:, None]), -8, 7) * scale[:, None]
        error = np.square(rows - rounded).sum(axis=1)
        best = np.where(error < least, scale, best)
        least = np.minimum(error, least)
    return np.asarray(best, np.float32)


def _store_weights(
    content: bytes,
    store: Callable[[str, Array, int], list[onnx.NodeProto | onnx.TensorProto]],
) -> bytes:
    """Replaces every weight initializer by what ``store`` makes of it, under the same name."""
    model = onnx.load_from_string(content)
    for opset in model.opset_import:
        if opset.domain == "":
            opset.version = max(opset.version, INT4_OPSET)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    front: list[onnx.NodeProto] = []
    for name, axis in _weight_axes(model):
        made = store(name, numpy_helper.to_array(weights[name]), axis)
        model.graph.initializer.remove(weights[name])
        model.graph.initializer.extend(m for m in made if isinstance(m, onnx.TensorProto))
        front.extend(m for m in made if isinstance(m, onnx.NodeProto))
    nodes = [*front, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    stored: bytes = model.SerializeToString(deterministic=True)
    return stored


def _weight_axes(model: onnx.ModelProto) -> Iterator[tuple[str, int]]:
    """Yields each weight initializer once with the axis of its output channels."""
    initializers = {tensor.name for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type not in WEIGHTED or node.input[1] not in initializers:
            continue
        name = node.input[1]
        initializers.remove(name)
        transposed = any(a.name == "transB" and a.i for a in node.attribute)
        yield name, 0 if node.op_type == "Conv" or transposed else 1


def static_int8(content: bytes, batches: Iterable[Array], int8_format: str) -> bytes:
    """Quantizes weights per channel and activations statically, as QDQ pairs.

    What reads nothing but pixels stays float, the first convolution included: where images have a
    background of one colour, its rounding error is the same everywhere and the layers behind make
    it large (docs/decisions/029).

    Args:
        content: Float ONNX model.
        batches: Calibration pixels in 0..1, ``[b, channels, height, width]`` each.
        int8_format: ``u8s8`` (x86), ``u8s8_reduced`` (x86 without VNNI, whose instructions
            saturate on full-range weights), ``s8s8`` (ARM).

    Source: onnxruntime documentation, Quantize ONNX Models.
    """
    activations = QuantType.QInt8 if int8_format == "s8s8" else QuantType.QUInt8
    model = onnx.load_from_string(content)
    for number, node in enumerate(model.graph.node):
        node.name = node.name or f"node_{number}"  # by which it can be left out
    with tempfile.TemporaryDirectory() as folder, _without_advice():
        target = Path(folder) / "int8.onnx"
        quantize_static(
            model,
            target,
            _Reader(batches),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=int8_format == "u8s8_reduced",
            activation_type=activations,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=_float_nodes(model.graph),
        )
        return target.read_bytes()


def _float_nodes(graph: onnx.GraphProto) -> list[str]:
    """Returns the names of nodes that 8 bits leave in float.

    Those are batch normalisations, for which the runtime has no integers, and what reads nothing
    but pixels up to the first convolution or matrix product. A convolution stays float itself: it
    has few weights and channels, and is slow in integers. A matrix product may be most of a
    network.
    """
    pixels = {given.name for given in graph.input}
    known = {tensor.name for tensor in graph.initializer} | {""}
    names = []
    for node in graph.node:  # in the order of computation
        read = set(node.input) - known
        reads_pixels = bool(read) and read <= pixels
        if reads_pixels and node.op_type not in WEIGHTED:
            pixels.update(node.output)
        is_float = reads_pixels and node.op_type not in ("Gemm", "MatMul")
        if is_float or node.op_type == "BatchNormalization":
            names.append(node.name)
    return names


@contextmanager
def _without_advice() -> Iterator[None]:
    """Silences the quantizer's advice to optimise the model first: it is optimised already.

    And its notes that the parameters of a normalisation have no channels of their own.
    """

    def is_news(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        return "pre-processing" not in text and "out-of-range for weight" not in text

    logging.root.addFilter(is_news)
    try:
        yield
    finally:
        logging.root.removeFilter(is_news)


class _Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    """Hands calibration batches to onnxruntime, the way its CalibrationDataReader asks for."""

    def __init__(self, batches: Iterable[Array]) -> None:
        self._batches = iter(batches)

    def get_next(self) -> dict[str, Array] | None:
        batch = next(self._batches, None)
        return None if batch is None else {"images": batch}
