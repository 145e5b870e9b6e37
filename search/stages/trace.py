"""Traces a network's structure into an ONNX graph."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings

import numpy as np
import onnx
import torch
from onnx import numpy_helper

from search.errors import StageFailed, one_line
from search.networks import networks
from search.networks.networks import Preprocessed
from search.records.network import Edit, NetworkSpec, Shapes
from search.records.steps.exporting import Graph, Trace
from search.records.steps.step import ArtifactStore

# Two images, because a batch of one would be taken for a fixed size.
TRACER = "torch.fx.experimental.symbolic_shapes"
EXAMPLE_BATCH = 2


def run(step: Trace, artifacts: ArtifactStore) -> Graph:
    """Does the step."""
    return Graph(
        artifacts.put(trace(step.spec, step.edits, step.shapes, step.mean, step.std), ".onnx")
    )


def trace(
    spec: NetworkSpec,
    edits: tuple[Edit, ...],
    shapes: Shapes | None,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> bytes:
    """Traces raw pixels to logits with dynamic batch; initializers keep their torch names.

    The graph also holds for other widths of the same network: no channel count is left in it.

    The graph is not optimised: optimising folds weights into new ones under new names, which
    could not be refreshed later.

    Returns:
        The serialised ONNX model, weights included, in one piece.

    Raises:
        StageFailed: When the network's code cannot be traced.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if shapes is None:
            network = networks.build(spec, edits)
        else:
            network = networks.with_shapes(spec, edits, shapes)
    module = Preprocessed(network, mean, std).eval()
    example = torch.zeros(EXAMPLE_BATCH, *spec.image_shape)
    # The exporter logs about packages it looks for in vain (torchvision) and warns about itself;
    # what it cannot trace is told below.
    chatty = [logging.getLogger(name) for name in ("torch.onnx", TRACER)]
    levels = [logger.level for logger in chatty]
    for logger in chatty:
        logger.setLevel(logging.ERROR)
    try:
        # Failing, it also prints the network's whole code.
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                module,
                (example,),
                dynamo=True,
                dynamic_shapes=({0: "batch"},),
                external_data=False,
                input_names=["images"],
                output_names=["logits"],
                optimize=False,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        raise StageFailed(
            "trace",
            f"PyTorch cannot export the network to ONNX ({one_line(error.__cause__ or error)}); "
            "its code must not depend on the values of images",
        ) from error
    finally:
        for logger, level in zip(chatty, levels, strict=True):
            logger.setLevel(level)
    model: onnx.ModelProto = program.model_proto  # type: ignore[union-attr]
    free_flattening(model.graph)
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def free_flattening(graph: onnx.GraphProto) -> None:
    """Takes the channel count out of every reshape that only merges all axes but the batch.

    The exporter computes ``[batch, channels * height * width]``; ``[0, -1]`` says the same for any
    number of channels.
    """
    dims = {v.name: v.type.tensor_type.shape.dim for v in (*graph.value_info, *graph.output)}
    target = numpy_helper.from_array(np.array([0, -1], np.int64), "flattened")
    for node in graph.node:
        if node.op_type != "Reshape":
            continue
        before, after = dims.get(node.input[0], ()), dims.get(node.output[0], ())
        merges = len(before) > 2 and len(after) == 2
        if merges and before[0].dim_param == after[0].dim_param == "batch":
            node.input[1] = target.name
            del node.attribute[:]  # allowzero would take the 0 for an empty axis
    if any(target.name in node.input for node in graph.node):
        graph.initializer.append(target)
