"""Layers are found by their weights' names, whatever the runtime calls what it makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from onnx import GraphProto, NodeProto, helper, numpy_helper

from search.networks.layers import find_layers, find_owners, place_kernels
from search.records.profile import Layer

PIXELS = helper.make_node("BatchNormalization", ["images", "pixel_mean"], ["getitem"], "node_norm")


def conv(name: str, given: str, weights: str, made: str, **attributes: Any) -> NodeProto:
    return helper.make_node("Conv", [given, weights, f"{weights}_bias"], [made], name, **attributes)


def simple(kind: str, name: str, *given: str, made: str) -> NodeProto:
    return helper.make_node(kind, list(given), [made], name)


def graph(nodes: Sequence[NodeProto], weights: dict[str, tuple[int, ...]]) -> GraphProto:
    kept = [numpy_helper.from_array(np.zeros(dims, np.float32), n) for n, dims in weights.items()]
    return helper.make_graph(nodes, "graph", [], [], kept)


# A residual block of a float model, as the exporter leaves it.
RESIDUAL = graph(
    [
        PIXELS,
        conv("node_Conv_1", "getitem", "network.stem.weight", "getitem_3"),
        simple("Relu", "node_relu", "getitem_3", made="relu"),
        conv("node_Conv_2", "relu", "network.block.0.weight", "getitem_6", group=8),
        simple("Add", "node_add", "getitem_6", "relu", made="add"),
        simple("Relu", "node_relu_1", "add", made="relu_1"),
        simple("Mul", "node_mul", "relu_1", "network.gain", made="mul"),
        simple("Reshape", "node_view", "mul", "flattened", made="view"),
        helper.make_node(
            "Gemm", ["view", "network.head.weight"], ["logits"], "node_linear", transB=1
        ),
    ],
    {
        "pixel_mean": (1,),
        "network.stem.weight": (8, 1, 3, 3),
        "network.stem.weight_bias": (8,),
        "network.block.0.weight": (8, 1, 3, 3),
        "network.block.0.weight_bias": (8,),
        "network.gain": (1,),
        "flattened": (2,),
        "network.head.weight": (10, 72),
    },
)
# The same first layer in 8 bits.
QUANTIZED = graph(
    [
        simple("DequantizeLinear", "", "network.stem.weight_quantized", "scale", made="w"),
        simple(
            "DequantizeLinear", "", "network.stem.weight_bias_quantized", "scale", made="w_bias"
        ),
        PIXELS,
        simple("QuantizeLinear", "getitem_QuantizeLinear", "getitem", "scale", made="q"),
        simple("DequantizeLinear", "getitem_DequantizeLinear", "q", "scale", made="d"),
        conv("node_Conv_1", "d", "w", "relu"),
        simple("QuantizeLinear", "relu_QuantizeLinear", "relu", "scale", made="rq"),
        simple("DequantizeLinear", "logits_DequantizeLinear", "rq", "scale", made="logits"),
    ],
    {
        "pixel_mean": (1,),
        "scale": (),
        "network.stem.weight_quantized": (8, 1, 3, 3),
        "network.stem.weight_bias_quantized": (8,),
    },
)


def test_layers_have_their_weights_channels() -> None:
    assert find_layers(RESIDUAL) == (
        Layer("stem", 1, 8, 1),
        Layer("block.0", 8, 8, 8),
        Layer("head", 72, 10, 1),
    )
    assert [layer.is_depthwise for layer in find_layers(RESIDUAL)] == [False, True, False]
    assert find_layers(QUANTIZED) == (Layer("stem", 1, 8, 1),)


@pytest.mark.parametrize(
    ("kernels", "layers"),
    [
        # Blocked convolutions are called after the tensor that they give.
        (["node_norm", "relu_nchwc", "getitem_6_nchwc"], ["", "stem", "block.0"]),
        (["relu_nchwc", "relu_1_nchwc"], ["stem", "block.0"]),
        (["node_Conv_1_token_12", "fused node_linear"], ["stem", "head"]),
        # What has no weights belongs to the layer before it, and so does what the runtime adds.
        (["node_Conv_2", "node_add", "ReorderOutput_token_3", "node_view"], ["block.0"] * 2
         + ["block.0", "block.0"]),
        (["ReorderInput", "node_linear"], ["", "head"]),
        # A longer name is another one.
        (["node_Conv_1/Something", "node_Conv_12"], ["stem", "stem"]),
    ],
)  # fmt: skip
def test_kernels_keep_a_name(kernels: list[str], layers: list[str]) -> None:
    assert place_kernels(kernels, find_owners(RESIDUAL)) == layers


def test_quantized_kernels_keep_a_name() -> None:
    kernels = {
        "node_norm": "",
        "getitem_QuantizeLinear": "",
        "Transpose": "",
        "node_Conv_1_token_1": "stem",
        "Transpose_token_2": "stem",
        "logits_DequantizeLinear": "stem",
    }
    assert place_kernels(list(kernels), find_owners(QUANTIZED)) == list(kernels.values())


def test_weights_under_another_name_stand_for_their_node() -> None:
    product = helper.make_node("MatMul", ["images", "val_3"], ["y"], "node_MatMul_3")
    unnamed = graph([product], {"val_3": (4, 6)})
    assert find_layers(unnamed) == (Layer("node_MatMul_3", 4, 6, 1),)
    assert place_kernels(["node_MatMul_3"], find_owners(unnamed)) == ["node_MatMul_3"]


def test_a_product_of_two_inputs_has_no_layer() -> None:
    product = helper.make_node("MatMul", ["images", "images"], ["y"], "node_MatMul_3")
    assert find_layers(graph([product], {})) == ()
    assert place_kernels(["node_MatMul_3"], find_owners(graph([product], {}))) == [""]


def test_a_transposed_convolution_is_a_layer() -> None:
    node = helper.make_node("ConvTranspose", ["x", "network.up.weight"], ["y"], "node_up", group=2)
    assert find_layers(graph([node], {"network.up.weight": (8, 3, 2, 2)})) == (
        Layer("up", 8, 6, 2),
    )
