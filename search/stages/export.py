"""Puts trained weights into a traced graph and checks it."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import numpy as np
import onnx
import onnxruntime
import onnxscript.optimizer
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument, RuntimeException
from safetensors.torch import load_file

from search.networks import networks
from search.networks.networks import Preprocessed
from search.records.network import Network
from search.records.steps.exporting import Export, Exported
from search.records.steps.step import ArtifactStore

log = logging.getLogger(__name__)

PARITY_BATCHES = (1, 5)


def run(step: Export, artifacts: ArtifactStore) -> Exported:
    """Does the step."""
    state = {
        f"network.{name}": value.numpy()
        for name, value in load_file(artifacts.path(step.network.weights)).items()
    }
    traced = onnx.load_from_string(artifacts.path(step.graph.model).read_bytes())
    content = assemble(traced, state)
    module = Preprocessed(networks.load(step.network, artifacts), step.mean, step.std).eval()
    error = parity_error(content, module, step.network)
    return Exported(model=artifacts.put(content, ".onnx"), parity_error=error)


def assemble(traced: onnx.ModelProto, state: Mapping[str, NDArray[np.generic]]) -> bytes:
    """Returns an optimised ONNX model of ``traced`` with the weights of ``state``, by name."""
    model = onnx.ModelProto()
    model.CopyFrom(traced)
    _renew_groups(model.graph, state)
    for initializer in model.graph.initializer:
        value = state.get(initializer.name)
        if value is not None:
            initializer.CopyFrom(numpy_helper.from_array(value, initializer.name))
    strip(model)
    content: bytes = onnxscript.optimizer.optimize(model).SerializeToString(deterministic=True)
    return content


def _renew_groups(graph: onnx.GraphProto, state: Mapping[str, NDArray[np.generic]]) -> None:
    """Gives depthwise convolutions one group per channel, however many are left of them."""
    traced_outputs = {tensor.name: tensor.dims[0] for tensor in graph.initializer if tensor.dims}
    for node in graph.node:
        if node.op_type != "Conv" or node.input[1] not in state:
            continue
        for attribute in node.attribute:
            # With several outputs a group the convolution is never pruned.
            if attribute.name == "group" and attribute.i == traced_outputs[node.input[1]]:
                attribute.i = len(state[node.input[1]])


def strip(model: onnx.ModelProto) -> None:
    """Removes the exporter's notes in place: source lines and paths of this machine, and shapes.

    The shapes are those of the traced network; with other widths they would be wrong.
    """
    del model.metadata_props[:], model.graph.metadata_props[:], model.graph.value_info[:]
    for part in (*model.graph.node, *model.graph.input, *model.graph.output):
        del part.metadata_props[:]
        part.doc_string = ""


def parity_error(content: bytes, module: torch.nn.Module, network: Network) -> float | None:
    """Returns the largest difference of logits from PyTorch's, relative to the largest logit.

    Compared on random pixels at two batch sizes, so that a batch fixed by the export shows. None
    when onnxruntime cannot run the model: its graph was traced with widths that it insists on.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # a graph that does not fit is an answer here, not an error
    try:
        session = onnxruntime.InferenceSession(content, options, ["CPUExecutionProvider"])
        return _largest_error(session, module, network)
    except (Fail, InvalidArgument, RuntimeException) as error:
        log.debug("the graph does not run with these weights: %s", error)
        return None


def _largest_error(
    session: onnxruntime.InferenceSession, module: torch.nn.Module, network: Network
) -> float:
    generator = torch.Generator().manual_seed(0)
    errors = []
    for batch in PARITY_BATCHES:
        images = torch.rand(batch, *network.spec.image_shape, generator=generator)
        with torch.inference_mode():
            wanted = module(images).numpy()
        got = session.run(None, {"images": images.numpy()})[0]
        errors.append(float(np.abs(got - wanted).max() / max(np.abs(wanted).max(), 1e-6)))
    return max(errors)
