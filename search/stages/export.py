"""Puts trained weights into a traced graph and checks it; knows nothing of quantization."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnxruntime
import onnxscript.optimizer
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from safetensors.torch import load_file

from search import networks
from search.errors import StageFailed
from search.networks import Preprocessed
from search.records import Network
from search.steps import Export, Exported, Shelf

PARITY_BATCHES = (1, 5)
PARITY_TOLERANCE = (
    1e-3  # of the largest logit; float kernels that sum in another order stay far below
)


def run(step: Export, shelf: Shelf) -> Exported:
    """Does the step."""
    state = {
        f"network.{name}": value.numpy()
        for name, value in load_file(shelf.path(step.network.weights)).items()
    }
    traced = onnx.load_from_string(shelf.path(step.graph.model).read_bytes())
    model = strip(onnxscript.optimizer.optimize(refresh(traced, state)))
    content = model.SerializeToString(deterministic=True)
    module = Preprocessed(networks.load(step.network, shelf), step.mean, step.std).eval()
    error = parity_error(content, module, step.network)
    if not error <= PARITY_TOLERANCE:
        raise StageFailed(
            "export",
            f"the ONNX model's logits differ from PyTorch's by {error:.2g} of their range; at most "
            f"{PARITY_TOLERANCE:g} is allowed, so the network does not export faithfully",
        )
    return Exported(model=shelf.put(content, ".onnx"), parity_error=error)


def refresh(traced: onnx.ModelProto, state: Mapping[str, NDArray[np.generic]]) -> onnx.ModelProto:
    """Returns a copy of ``traced`` whose initializers hold the values of ``state``, by name."""
    model = onnx.ModelProto()
    model.CopyFrom(traced)
    for initializer in model.graph.initializer:
        value = state.get(initializer.name)
        if value is not None:
            initializer.CopyFrom(numpy_helper.from_array(value, initializer.name))
    return model


def strip(model: onnx.ModelProto) -> onnx.ModelProto:
    """Removes the exporter's notes in place: source lines and paths of this machine, and shapes."""
    del model.metadata_props[:], model.graph.metadata_props[:], model.graph.value_info[:]
    del model.functions[:]
    for part in (*model.graph.node, *model.graph.input, *model.graph.output):
        del part.metadata_props[:]
        part.doc_string = ""
    return model


def parity_error(content: bytes, module: torch.nn.Module, network: Network) -> float:
    """Returns the largest difference of logits from PyTorch's, relative to the largest logit.

    Compared on random pixels at two batch sizes, so that a batch fixed by the export shows.
    """
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    generator = torch.Generator().manual_seed(0)
    errors = []
    for batch in PARITY_BATCHES:
        images = torch.rand(batch, *network.spec.image_shape, generator=generator)
        with torch.inference_mode():
            wanted = module(images).numpy()
        got = session.run(None, {"images": images.numpy()})[0]
        errors.append(float(np.abs(got - wanted).max() / max(np.abs(wanted).max(), 1e-6)))
    return max(errors)
