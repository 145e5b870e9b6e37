"""Small ONNX models of one input ``x``, the good and the bad, made without PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper


def save(
    path: Path,
    nodes: list[Any],
    constants: dict[str, Any],
    opset: int = 17,
    image: tuple[int, int, int] = (1, 28, 28),
) -> Path:
    """Writes a model from ``x`` ``[N, *image]`` to ``y``."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *image])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    kept = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "model", [x], [y], kept)
    opsets = [helper.make_opsetid("", opset)]
    path.write_bytes(
        helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()
    )
    return path


def save_conv_net(path: Path, width: int, layers: int) -> Path:
    rng = np.random.default_rng(0)
    nodes, constants, last, channels = [], {}, "x", 1
    for i in range(layers):
        weights = rng.normal(0, 0.1, (width, channels, 3, 3)).astype(np.float32)
        constants[f"w{i}"] = weights
        nodes.append(helper.make_node("Conv", [last, f"w{i}"], [f"c{i}"], pads=[1] * 4))
        nodes.append(helper.make_node("Relu", [f"c{i}"], [f"r{i}"]))
        last, channels = f"r{i}", width
    nodes.append(helper.make_node("GlobalAveragePool", [last], ["pooled"]))
    nodes.append(helper.make_node("Flatten", ["pooled"], ["y"]))
    return save(path, nodes, constants)


def save_conv_stack(path: Path, channels: int, layers: int, pixels: int) -> Path:
    """``layers`` times the same kind of block, so that times are proportional to their number."""
    rng = np.random.default_rng(0)
    nodes, constants, last = [], {}, "x"
    for i in range(layers):
        weights = rng.normal(0, (2 / (9 * channels)) ** 0.5, (channels, channels, 3, 3))
        constants[f"w{i}"] = weights.astype(np.float32)
        nodes.append(helper.make_node("Conv", [last, f"w{i}"], [f"c{i}"], pads=[1] * 4))
        nodes.append(helper.make_node("Relu", [f"c{i}"], [f"r{i}"]))
        last = f"r{i}"
    nodes.append(helper.make_node("GlobalAveragePool", [last], ["pooled"]))
    nodes.append(helper.make_node("Flatten", ["pooled"], ["y"]))
    return save(path, nodes, constants, image=(channels, pixels, pixels))


def save_quantised(path: Path) -> Path:
    """One convolution between quantize and dequantize nodes, as static quantization leaves it."""
    constants = {
        "scale": np.float32(1 / 255),
        "zero": np.uint8(0),
        "weights": np.full((16, 1, 3, 3), 5, np.int8),
        "weights_scale": np.float32(0.01),
        "weights_zero": np.int8(0),
        "out_scale": np.float32(0.1),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"]),
        helper.make_node("DequantizeLinear", ["weights", "weights_scale", "weights_zero"], ["w"]),
        helper.make_node("Conv", ["d", "w"], ["c"], pads=[1] * 4),
        helper.make_node("QuantizeLinear", ["c", "out_scale", "zero"], ["cq"]),
        helper.make_node("DequantizeLinear", ["cq", "out_scale", "zero"], ["y"]),
    ]
    return save(path, nodes, constants)


def save_endless(path: Path) -> Path:
    """A loop that would run for centuries."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("Sin", ["value"], ["next"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("value", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, None),
        ],
    )
    nodes = [helper.make_node("Loop", ["times", "go", "x"], ["y"], body=body)]
    return save(path, nodes, {"times": np.int64(2**62), "go": np.bool_(True)})


def save_huge(path: Path) -> Path:
    """A small file whose run takes a gigabyte."""
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"], start=0, end=1),
        helper.make_node("Concat", ["shape", "rest"], ["wanted"], axis=0),
        helper.make_node("ConstantOfShape", ["wanted"], ["y"]),
    ]
    return save(path, nodes, {"rest": np.array([1 << 28], np.int64)})


def save_unknown(path: Path) -> Path:
    """Has an operator that no runtime knows."""
    return save(path, [helper.make_node("Nonsense", ["x"], ["y"])], {})
