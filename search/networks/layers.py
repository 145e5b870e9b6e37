"""Finds the layers of a network in its ONNX model.

The exporter names weights as PyTorch does, ``network.<layer>.weight``; quantizing adds an ending.
A node that convolves or multiplies with such weights is its layer's; any other one belongs to the
layer that feeds it, which it may be fused into. The runtime's optimisation fuses nodes and renames
them, but what it makes keeps the name of a node or of a tensor inside its own: ``relu_1_nchwc``,
``fused node_linear``, ``node_Conv_36_token_1``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import onnx

from search.records.profile import Layer

WEIGHTED = ("Conv", "Gemm", "MatMul")
LAYERS = (*WEIGHTED, "ConvTranspose")
PREFIX = "network."
BEFORE = ""  # the layer of what comes before the first one: the pixels' normalisation
STORED = re.compile(r"_(quantized|half|int4)$")
REPEATED = re.compile(r"_token_\d+$")  # the runtime's ending for a name that was taken
Words = tuple[str, ...]


def find_layers(graph: onnx.GraphProto) -> tuple[Layer, ...]:
    """Returns the layers that convolve or multiply matrices, in order, each once."""
    dims = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    constants = _find_constants(graph)
    found: dict[str, Layer] = {}
    for node in graph.node:
        name = _own_layer(node, constants)
        weights = constants.get(node.input[1]) if name is not None else None
        if name is not None and weights in dims:
            found.setdefault(name, _describe(name, node, dims[weights]))
    return tuple(found.values())


def _describe(name: str, node: onnx.NodeProto, dims: tuple[int, ...]) -> Layer:
    attributes = {attribute.name: attribute.i for attribute in node.attribute}
    if node.op_type == "Conv":
        groups = attributes.get("group", 1)
        return Layer(name, inputs=dims[1] * groups, outputs=dims[0], groups=groups)
    if node.op_type == "ConvTranspose":
        groups = attributes.get("group", 1)
        return Layer(name, inputs=dims[0], outputs=dims[1] * groups, groups=groups)
    *_, inputs, outputs = dims[::-1] if attributes.get("transB") else dims
    return Layer(name, inputs, outputs, groups=1)


def find_owners(graph: onnx.GraphProto) -> Mapping[Words, str]:
    """Returns the layer that each node and each tensor belongs to, by the words of its name."""
    constants = _find_constants(graph)
    of_tensor: dict[str, str] = {}
    owners: dict[Words, str] = {}
    for node in graph.node:
        if node.output[0] in constants:
            continue
        feeds = (of_tensor[name] for name in node.input if name in of_tensor)
        layer = _own_layer(node, constants) or next(feeds, BEFORE)
        of_tensor.update(dict.fromkeys(node.output, layer))
        owners.update((_words(name), layer) for name in (node.name, *node.output) if name)
    return owners


def place_kernels(names: Sequence[str], owners: Mapping[Words, str]) -> list[str]:
    """Returns the layer of every kernel, given in the order of execution.

    One that the runtime has put in, such as ``ReorderOutput``, belongs to the kernel before it.
    """
    layers: list[str] = []
    for name in names:
        owner = _find_owner(_words(REPEATED.sub("", name)), owners)
        layers.append(owner if owner is not None else (layers or [BEFORE])[-1])
    return layers


def _find_owner(words: Words, owners: Mapping[Words, str]) -> str | None:
    """Returns the owner of the longest known name inside a name."""
    for length in range(len(words), 0, -1):
        for start in range(len(words) - length + 1):
            owner = owners.get(words[start : start + length])
            if owner is not None:
                return owner
    return None


def _find_constants(graph: onnx.GraphProto) -> dict[str, str]:
    """Returns the initializer that each tensor is made from which depends on no input."""
    constants = {tensor.name: tensor.name for tensor in graph.initializer}
    for node in graph.node:
        given = [name for name in node.input if name]
        if all(name in constants for name in given):
            made_from = constants[given[0]] if given else node.output[0]
            constants.update(dict.fromkeys(node.output, made_from))
    return constants


def _own_layer(node: onnx.NodeProto, constants: Mapping[str, str]) -> str | None:
    """Returns the layer that a node convolves or multiplies for; None for other nodes."""
    weights = [constants[name] for name in node.input if name in constants]
    if node.op_type not in LAYERS or not weights:
        return None
    named = next((name for name in weights if name.startswith(PREFIX)), None)
    if named is None:  # folded into something else
        return str(node.name)
    inside = STORED.sub("", named.removeprefix(PREFIX))
    # A parameter of the network itself stands for a layer.
    return inside.rpartition(".")[0] or inside


def _words(name: str) -> Words:
    return tuple(re.findall(r"[A-Za-z0-9.]+", name))
