"""Stage ``profile``: finds out what a model's time goes into, beside the uncompressed network's."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from search.benchmark.plan import Side
from search.benchmark.plans import make_plan
from search.benchmark.profiling import EMPTY, Profiled, profile_together
from search.data import read_samples
from search.devices.device import Device
from search.devices.reaching import on_device
from search.networks.layers import find_layers, find_owners, place_kernels
from search.records.deployable import Deployable
from search.records.profile import Comparison, Kernel, ModelProfile, TypedShapes
from search.records.steps.measuring import Profile
from search.records.steps.step import ArtifactStore


def run(step: Profile, artifacts: ArtifactStore) -> Comparison:
    """Does the step; one to three seconds for small models.

    Raises:
        StageFailed: If a model does not load or crashes, or the device's time-out runs out.
        DeviceLost: If the connection to the device breaks again and again.
    """
    pair = step.comparison
    images = read_samples(pair.data, artifacts.images)
    with tempfile.TemporaryDirectory(prefix="profile-") as folder:
        inputs, empty = Path(folder) / "inputs.npy", Path(folder) / "empty.onnx"
        np.save(inputs, images)
        empty.write_bytes(empty_model(images.shape[1:]))

        def profile(device: Device) -> dict[str, Profiled]:
            plan = make_plan(pair, artifacts, inputs, device)
            nothing = Side(device.deliver(empty), 1, ())
            counts = scale(pair.device.usable_cores, pair.threads, pair.reference_threads)
            return profile_together(device, plan, nothing, counts)

        models = (pair.deployable.model, pair.reference.model)
        told = on_device(pair.connection, profile, sum(model.size_bytes for model in models))
    return Comparison(
        candidate=_describe(pair.deployable, pair.threads, told["candidate"], artifacts),
        original=_describe(pair.reference, pair.reference_threads, told["reference"], artifacts),
        call_ms=told[EMPTY].latency_ms[1],
        looking_us=sum(float(kernel["microseconds"]) for kernel in told[EMPTY].kernels),
    )


def scale(cores: int, *own: int) -> list[int]:
    """Returns the numbers of threads to try: doubled each time, all cores, and the models' own.

    Both models are timed at each, so that each can be compared at the other's.
    """
    return sorted({1 << power for power in range(cores.bit_length())} | {cores, *own})


def empty_model(image_shape: tuple[int, ...]) -> bytes:
    """Returns an ONNX model that does not look at its images ``[N, *image_shape]``."""
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", *image_shape])
    rank = helper.make_tensor_value_info("shape", TensorProto.INT64, [1 + len(image_shape)])
    node = helper.make_node("Shape", ["images"], ["shape"])
    graph = helper.make_graph([node], "empty", [images], [rank])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def _describe(
    deployable: Deployable, threads: int, told: Profiled, artifacts: ArtifactStore
) -> ModelProfile:
    graph = onnx.load(artifacts.path(deployable.model)).graph
    names = [str(kernel["name"]) for kernel in told.kernels]
    kernels = tuple(
        Kernel(
            operator=kernel["operator"],
            layer=layer,
            microseconds=float(kernel["microseconds"]),
            inputs=_typed(kernel["inputs"]),
            outputs=_typed(kernel["outputs"]),
        )
        for kernel, layer in zip(
            told.kernels, place_kernels(names, find_owners(graph)), strict=True
        )
    )
    return ModelProfile(
        format=deployable.format,
        threads=threads,
        layers=find_layers(graph),
        kernels=kernels,
        latency_ms=told.latency_ms,
        cold_start_ms=told.cold_start_ms,
    )


def _typed(shapes: list[dict[str, list[int]]]) -> TypedShapes:
    return tuple((kind, tuple(shape)) for one in shapes for kind, shape in one.items())
