"""Traces a network's structure into an ONNX graph; knows nothing of trained weights."""

from __future__ import annotations

import logging
import warnings

import torch

from search import networks
from search.networks import Preprocessed
from search.records import NetworkSpec, Shapes
from search.steps import Graph, Shelf, Trace

# Two images, because a batch of one would be taken for a fixed size.
EXAMPLE_BATCH = 2


def run(step: Trace, shelf: Shelf) -> Graph:
    """Does the step."""
    return Graph(shelf.put(trace(step.spec, step.shapes, step.mean, step.std), ".onnx"))


def trace(
    spec: NetworkSpec, shapes: Shapes, mean: tuple[float, ...], std: tuple[float, ...]
) -> bytes:
    """Traces raw pixels to logits with dynamic batch; initializers keep their torch names.

    The graph is not optimised: optimising folds weights into new ones under new names, which
    could not be refreshed later.

    Returns:
        The serialised ONNX model, weights included, in one piece.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = Preprocessed(networks.with_shapes(spec, shapes), mean, std).eval()
    example = torch.zeros(EXAMPLE_BATCH, *spec.image_shape)
    # The exporter logs about packages it looks for in vain (torchvision) and warns about itself.
    exporter = logging.getLogger("torch.onnx")
    level = exporter.level
    exporter.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
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
    finally:
        exporter.setLevel(level)
    content: bytes = program.model_proto.SerializeToString()  # type: ignore[union-attr]
    return content
