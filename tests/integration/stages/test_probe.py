"""What is concluded from a probe's measurements, and the models that it measures."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest

from search.benchmark import launches
from search.records.deployable import Int8Format
from search.records.measurement import Interval, Measurement
from search.records.steps.measuring import Probe
from search.runtimes.quantization import static_int8
from search.stages import probe
from tests.fakes import LOCAL, PROFILE, measurement

IMAGES = np.random.default_rng(0).random((8, 3, 16, 16), np.float32)


def interval(ratio: float, spread: float = 0.01) -> Interval:
    return Interval(ratio, ratio - spread, ratio + spread)


@pytest.mark.parametrize(
    ("promised", "u8s8", "s8s8", "reduced", "chosen"),
    [
        ("u8s8", 0.4, 0.9, None, "u8s8"),
        ("u8s8", 0.41, 0.40, None, "u8s8"),  # within the noise
        ("u8s8", 0.9, 0.4, None, "s8s8"),
        ("s8s8", 0.4, 0.9, None, "u8s8"),
        ("u8s8_reduced", 0.3, 0.9, 0.5, "u8s8_reduced"),  # u8s8 would saturate there
        ("u8s8_reduced", 0.3, 0.4, 0.5, "s8s8"),
    ],
)
def test_format_is_the_promised_one_unless_another_is_clearly_faster(
    promised: Int8Format, u8s8: float, s8s8: float, reduced: float | None, chosen: Int8Format
) -> None:
    speeds = {"8 bits u8s8": interval(u8s8), "8 bits s8s8": interval(s8s8)}
    formats: tuple[Int8Format, ...] = ("u8s8", "s8s8")
    if reduced is not None:
        speeds["8 bits u8s8_reduced"] = interval(reduced)
        formats = ("u8s8_reduced", *formats)
    assert probe.choose_format(promised, formats, speeds) == chosen


def width_of(content: bytes) -> int:
    """Channels of a probe network's last layer."""
    last = onnx.load_from_string(content).graph.output[0].type.tensor_type
    return int(last.shape.dim[1].dim_value)


@pytest.mark.parametrize(
    ("power", "round_to"),
    # Time by channels to this power: 0 where the runtime pads, 2 where every channel saves.
    [(0.0, 16), (1.0, 16), (2.0, 4)],
)
def test_rounding_is_the_coarsest_below_which_little_is_saved(power: float, round_to: int) -> None:
    def compared(candidate: bytes, reference: bytes, _: object) -> Measurement:
        return measurement((width_of(candidate) / width_of(reference)) ** power)

    found = probe.draw_conclusions(PROFILE, compared, IMAGES)
    assert found.round_to == round_to
    assert found == replace(PROFILE, round_to=round_to)  # speeds do not tell profiles apart
    assert {"float against itself", "16-bit weights", "4-bit weights", "8 bits u8s8"} <= set(
        found.speeds
    )


def test_padding_to_eight_is_told_from_padding_to_sixteen() -> None:
    def compared(candidate: bytes, reference: bytes, _: object) -> Measurement:
        padded = [-(-width_of(content) // 8) * 8 for content in (candidate, reference)]
        return measurement((padded[0] / padded[1]) ** 2)

    assert probe.draw_conclusions(PROFILE, compared, IMAGES).round_to == 8


def test_probe_network_computes() -> None:
    session = onnxruntime.InferenceSession(probe.conv_net(24), providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"images": IMAGES})
    assert logits.shape == (8, 24)
    assert np.isfinite(logits).all()
    assert logits.std() > 0


def test_all_but_the_first_convolution_are_in_8_bits() -> None:
    model = onnx.load_from_string(static_int8(probe.conv_net(24), [IMAGES], "u8s8"))
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    made = {output: node for node in model.graph.node for output in node.output}
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    assert [node.input[1] in types for node in convolutions] == [True, False, False]
    for node in convolutions[1:]:
        assert types[made[node.input[1]].input[0]] == onnx.TensorProto.INT8


def test_a_real_device_is_probed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "BUDGET_S", 0.1)
    monkeypatch.setattr(launches, "LEAST_ROUNDS_S", 0.05)  # in each of some twenty launches
    found = probe.run(Probe(PROFILE, LOCAL), None)  # type: ignore[arg-type]  # it leaves no files
    assert found.probe_ms is not None
    assert found.probe_ms > 0
    for speed in found.speeds.values():
        assert 0 < speed.low <= speed.ratio <= speed.high
