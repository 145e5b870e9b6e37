"""Stage ``probe``: finds out what is fast on a device.

It times one small convolutional network in several formats and widths. What the instruction sets
promise holds unless the device clearly says otherwise, so that chance does not decide.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from search.benchmark.plan import Plan, Side
from search.benchmark.protocol import compare
from search.devices.agent.options import SPINNING
from search.devices.device import Device
from search.devices.reaching import on_device
from search.records.deployable import Int8Format
from search.records.device import DeviceProfile
from search.records.measurement import Interval, Measurement
from search.records.steps.measuring import Probe
from search.records.steps.step import ArtifactStore
from search.runtimes.quantization import (
    FOLDED,
    four_bit_weights,
    half_precision_weights,
    static_int8,
)

CHANNELS, LAYERS, PIXELS = 64, 3, 16
IMAGES = 8
BUDGET_S = 2.0
# Widths that differ by half of a rounding. The narrower one must save more than in proportion to
# the channels: a layer between two such widths has their product to compute.
ROUNDINGS = ((16, 40, 48), (8, 36, 40))
FINEST = 4
Array = NDArray[np.float32]
Compare = Callable[[bytes, bytes, tuple[tuple[str, str], ...]], Measurement]


def run(step: Probe, artifacts: ArtifactStore) -> DeviceProfile:
    """Does the step; about a quarter of a minute.

    Raises:
        StageFailed: If the device's agent fails.
        DeviceLost: If the connection breaks.
    """
    images = np.random.default_rng(0).random((IMAGES, 3, PIXELS, PIXELS), np.float32)
    with tempfile.TemporaryDirectory(prefix="probe-") as name:
        inputs = Path(name) / "inputs.npy"
        np.save(inputs, images)

        def probe(device: Device) -> DeviceProfile:
            def compared(
                candidate: bytes, reference: bytes, entries: tuple[tuple[str, str], ...] = ()
            ) -> Measurement:
                paths = [_deliver(device, Path(name), model) for model in (candidate, reference)]
                plan = _plan(paths[0], paths[1], entries, device.deliver(inputs), step)
                return compare(device, plan)

            return draw_conclusions(step.device, compared, images)

        return on_device(step.connection, probe)


def draw_conclusions(device: DeviceProfile, compared: Compare, images: Array) -> DeviceProfile:
    """Measures formats and widths, and changes what the processor's description promised.

    Args:
        device: As described.
        compared: Measures one model against another, with session entries for the first.
        images: For the calibration of 8-bit activations, ``[n, 3, h, w]``.
    """
    float_model = conv_net(CHANNELS)
    itself = compared(float_model, float_model, ())
    formats: tuple[Int8Format, ...] = tuple(dict.fromkeys((device.int8_format, "u8s8", "s8s8")))
    models = {name: static_int8(float_model, [images], name) for name in formats}
    speeds = {
        "float against itself": itself.interval,
        "16-bit weights": compared(half_precision_weights(float_model), float_model, ()).interval,
        "4-bit weights": compared(four_bit_weights(float_model), float_model, FOLDED).interval,
        **{f"8 bits {n}": compared(m, float_model, ()).interval for n, m in models.items()},
    }
    round_to, widths = _find_rounding(compared, device.round_to)
    return replace(
        device,
        int8_format=choose_format(device.int8_format, formats, speeds),
        round_to=round_to,
        speeds={**speeds, **widths},
        probe_ms=itself.reference_p50_ms,
    )


def choose_format(
    promised: Int8Format, formats: tuple[Int8Format, ...], speeds: Mapping[str, Interval]
) -> Int8Format:
    """Returns the 8-bit format that is faster than the promised one beyond doubt, else that.

    Full-range weights where the instructions saturate are fast and wrong: they are never chosen.
    """
    sound = [n for n in formats if not (n == "u8s8" and promised == "u8s8_reduced")]
    best = min(sound, key=lambda name: speeds[f"8 bits {name}"].ratio)
    clearly = speeds[f"8 bits {best}"].high < speeds[f"8 bits {promised}"].low
    return best if clearly else promised


def _find_rounding(compared: Compare, promised: int) -> tuple[int, dict[str, Interval]]:
    """Returns the coarsest rounding below which narrower layers save too little.

    Where the interval leaves that open, the promised rounding decides.
    """
    speeds = {}
    for rounding, narrow, wide in ROUNDINGS:
        interval = compared(conv_net(narrow), conv_net(wide), ()).interval
        speeds[f"{narrow} for {wide} channels"] = interval
        threshold = (narrow / wide) ** 1.5
        open_question = interval.low <= threshold <= interval.high
        if interval.low > threshold or (open_question and promised >= rounding):
            return rounding, speeds
    return min(promised, FINEST), speeds


def conv_net(channels: int) -> bytes:
    """Returns an ONNX model of three convolutions 3x3 and a mean, for images ``[N, 3, h, w]``."""
    rng = np.random.default_rng(0)
    nodes, weights, last, width = [], [], "images", 3
    for layer in range(LAYERS):
        values = rng.normal(0, (2 / (9 * width)) ** 0.5, (channels, width, 3, 3))
        weights.append(numpy_helper.from_array(values.astype(np.float32), f"weights{layer}"))
        nodes.append(
            helper.make_node("Conv", [last, f"weights{layer}"], [f"conv{layer}"], pads=[1] * 4)
        )
        nodes.append(helper.make_node("Relu", [f"conv{layer}"], [f"relu{layer}"]))
        last, width = f"relu{layer}", channels
    nodes.append(helper.make_node("GlobalAveragePool", [last], ["mean"]))
    nodes.append(helper.make_node("Flatten", ["mean"], ["logits"]))
    images = helper.make_tensor_value_info(
        "images", TensorProto.FLOAT, ["batch", 3, PIXELS, PIXELS]
    )
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", channels])
    graph = helper.make_graph(nodes, "probe", [images], [logits], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def _deliver(device: Device, folder: Path, content: bytes) -> str:
    with tempfile.NamedTemporaryFile(dir=folder, suffix=".onnx", delete=False) as file:
        file.write(content)
    return device.deliver(Path(file.name))


def _plan(
    candidate: str,
    reference: str,
    entries: tuple[tuple[str, str], ...],
    inputs: str,
    step: Probe,
) -> Plan:
    spinning = ((SPINNING, "1"),) if step.connection.spinning else ()
    return Plan(
        candidate=Side(candidate, 1, (*entries, *spinning)),
        reference=Side(reference, 1, spinning),
        inputs=inputs,
        batch_size=1,
        throughput_batch_size=1,
        memory_limit_bytes=None,
        launches=2,
        retry=False,
        budget_s=BUDGET_S,
        timeout_s=step.connection.timeout_s,
        seed=0,
    )
