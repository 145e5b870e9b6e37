"""Quantization: what the files hold, how large they are, and what they still know."""

from __future__ import annotations

import gc
import logging
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from search import data
from search.config.data import ImageFolderConfig
from search.data import describe
from search.devices.agent.session import Session
from search.devices.reaching import describe_device
from search.engine.store import Store
from search.records.deployable import Deployable
from search.records.files import File
from search.records.steps.scoring import Evaluate
from search.runtimes.onnxruntime import RUNTIME
from search.runtimes.quantization import (
    best_scale,
    four_bit_weights,
    half_precision_weights,
    static_int8,
)
from search.stages import quantize
from tests.deployables import make_deployable, make_quantize
from tests.fakes import LOCAL
from tests.workbench import NETWORKS, Workbench, here

Array = NDArray[np.float32]
# Bytes that the names of a weight's parts and the nodes between them may cost.
NAMES = 250


def model_of(bench: Workbench, deployable: Deployable) -> onnx.ModelProto:
    return onnx.load_from_string(bench.content(deployable.model))


def stored(bench: Workbench, name: str, bits: int, **changes: Any) -> Deployable:
    """The half-pruned network of that name in ``bits``."""
    exported = bench.export(bench.prune(name, 0.5).network)
    return bench.do(bench.quantize_step(exported, bits, **changes))


def arrays(model: onnx.ModelProto) -> dict[str, NDArray[Any]]:
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}


def values_by_type(model: onnx.ModelProto) -> Counter[str]:
    """Number of stored values by their type."""
    counts: Counter[str] = Counter()
    for tensor in model.graph.initializer:
        counts[TensorProto.DataType.Name(tensor.data_type)] += int(np.prod(tensor.dims))
    return counts


def weights(model: onnx.ModelProto) -> dict[str, tuple[NDArray[Any], int]]:
    """Weights of convolutions and dense layers with the axis of their output channels."""
    known, found = arrays(model), {}
    for node in model.graph.node:
        if node.op_type in ("Conv", "Gemm", "MatMul") and node.input[1] in known:
            turned = any(a.name == "transB" and a.i for a in node.attribute)
            axis = 0 if node.op_type == "Conv" or turned else 1
            found[node.input[1]] = (known[node.input[1]], axis)
    return found


def session(deployable: Deployable, content: bytes, **entries: str) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    for key, value in {**dict(deployable.options), **entries}.items():
        options.add_session_config_entry(key, value)
    return onnxruntime.InferenceSession(content, options, ["CPUExecutionProvider"])


def digits(bench: Workbench, count: int) -> Array:
    images = data.load(bench.data).validation.read(np.arange(count))
    return images.astype(np.float32) / np.float32(255)


# ---- what files hold


@pytest.mark.parametrize("name", NETWORKS)
def test_32_bits_are_the_exported_file(bench: Workbench, name: str) -> None:
    exported = bench.export(bench.prune(name, 0.5).network)
    assert stored(bench, name, 32) == make_deployable(exported.model, 32, ())


@pytest.mark.parametrize("name", NETWORKS)
def test_16_bits_halve_the_weights(bench: Workbench, name: str) -> None:
    whole, half = stored(bench, name, 32), stored(bench, name, 16)
    known = weights(model_of(bench, whole))
    count = sum(value.size for value, _ in known.values())
    before, after = values_by_type(model_of(bench, whole)), values_by_type(model_of(bench, half))
    assert after["FLOAT16"] == count
    assert after["FLOAT"] == before["FLOAT"] - count
    saved = whole.model.size_bytes - half.model.size_bytes
    assert 2 * count - NAMES * len(known) <= saved <= 2 * count
    halves = arrays(model_of(bench, half))
    for key, (value, _) in known.items():
        assert np.array_equal(halves[f"{key}_half"], value.astype(np.float16))


@pytest.mark.parametrize("name", NETWORKS)
def test_4_bits_store_two_weights_in_a_byte(bench: Workbench, name: str) -> None:
    whole, four = stored(bench, name, 32), stored(bench, name, 4)
    known = weights(model_of(bench, whole))
    count = sum(value.size for value, _ in known.values())
    channels = sum(value.shape[axis] for value, axis in known.values())
    before, after = values_by_type(model_of(bench, whole)), values_by_type(model_of(bench, four))
    assert after["INT4"] == count
    assert after["FLOAT"] == before["FLOAT"] - count + channels
    saved = whole.model.size_bytes - four.model.size_bytes
    expected = 3.5 * count - 4 * channels
    assert expected - NAMES * len(known) <= saved <= expected


@pytest.mark.parametrize("name", NETWORKS)
def test_8_bits_store_a_weight_in_a_byte(bench: Workbench, name: str) -> None:
    whole, eight = stored(bench, name, 32), stored(bench, name, 8)
    known = weights(model_of(bench, whole))
    count = sum(value.size for value, _ in known.values())
    channels = sum(value.shape[axis] for value, axis in known.values())
    after = values_by_type(model_of(bench, eight))
    first = next(value for value, _ in known.values())
    # And a zero point for each channel.
    assert after["INT8"] == count + channels - first.size - len(first)
    # Biases are stored as whole numbers, too; scales, the first normalisation and convolution
    # stay float.
    assert after["FLOAT"] < 4 * channels + 50 + first.size
    assert whole.model.size_bytes - eight.model.size_bytes < 3 * count


def test_8_bits_are_a_quarter_of_a_large_network(bench: Workbench) -> None:
    exported = bench.export(bench.teacher("cnn").network)
    eight = bench.do(bench.quantize_step(exported, 8))
    four = bench.do(bench.quantize_step(exported, 4))
    assert eight.model.size_bytes < 0.32 * exported.model.size_bytes
    assert four.model.size_bytes < 0.17 * exported.model.size_bytes


@pytest.mark.parametrize("bits", [16, 8, 4])
@pytest.mark.parametrize("name", NETWORKS)
def test_ends_and_free_batch_stay(bench: Workbench, name: str, bits: int) -> None:
    deployable = stored(bench, name, bits)
    content = bench.content(deployable.model)
    onnx.checker.check_model(onnx.load_from_string(content), full_check=True)
    opened = session(deployable, content)
    assert [(i.name, i.shape) for i in opened.get_inputs()] == [("images", ["batch", 1, 28, 28])]
    assert [(o.name, o.shape) for o in opened.get_outputs()] == [("logits", ["batch", 10])]
    for batch in (1, 7):
        assert opened.run(None, {"images": digits(bench, batch)})[0].shape == (batch, 10)


def test_session_entries(bench: Workbench) -> None:
    for bits in (32, 16, 8):
        assert stored(bench, "cnn", bits).options == ()
    assert stored(bench, "cnn", 4).options == (("session.disable_quant_qdq", "1"),)
    assert [stored(bench, "cnn", bits).bits for bits in (32, 16, 8, 4)] == [32, 16, 8, 4]


@pytest.mark.parametrize("name", ["resnet8", "custom"])
def test_the_entry_of_4_bits_changes_the_speed_only(bench: Workbench, name: str) -> None:
    deployable = stored(bench, name, 4)
    content = bench.content(deployable.model)
    folded, unfolded = (
        session(deployable, content, **{"session.disable_quant_qdq": value}).run(
            None, {"images": digits(bench, 5)}
        )[0]
        for value in ("1", "0")
    )
    np.testing.assert_allclose(folded, unfolded, rtol=1e-3, atol=1e-3)


def test_every_number_of_bits_acts(bench: Workbench) -> None:
    assert len({stored(bench, "cnn", bits).model for bits in (32, 16, 8, 4)}) == 4


def test_large_weights_stay_finite_in_16_bits() -> None:
    content = dense(np.array([[1e6, -7e4], [1.0, 2.0]], np.float32))
    model = onnx.load_from_string(half_precision_weights(content))
    assert arrays(model)["w_half"].tolist() == [[65504.0, -65504.0], [1.0, 2.0]]


# ---- four bits


def dense(values: Array, transposed: bool = False) -> bytes:
    """A model of one dense layer with these weights."""
    wide = values.shape[1] if transposed else values.shape[0]
    x = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", wide])
    y = helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)
    node = helper.make_node("Gemm", ["images", "w"], ["logits"], transB=int(transposed))
    graph = helper.make_graph([node], "g", [x], [y], [numpy_helper.from_array(values, "w")])
    opset = [helper.make_opsetid("", 20)]
    content: bytes = helper.make_model(graph, opset_imports=opset).SerializeToString()
    return content


@pytest.mark.parametrize("name", NETWORKS)
def test_4_bit_values_lie_on_the_grid_of_their_scales(bench: Workbench, name: str) -> None:
    known = weights(model_of(bench, stored(bench, name, 32)))
    four = arrays(model_of(bench, stored(bench, name, 4)))
    for key, (value, axis) in known.items():
        levels = np.moveaxis(four[f"{key}_int4"].astype(np.float32), axis, 0)
        rows, scale = np.moveaxis(value, axis, 0), four[f"{key}_scale"]
        wide = scale.reshape(-1, *[1] * (rows.ndim - 1))
        assert scale.shape == (rows.shape[0],)
        assert (scale > 0).all()
        assert levels.min() >= -8
        assert levels.max() <= 7
        assert np.array_equal(levels, np.clip(np.round(rows / wide), -8, 7))


@pytest.mark.parametrize("transposed", [False, True])
def test_4_bit_scales_belong_to_output_channels(transposed: bool) -> None:
    # Input channels of very different size: only one scale per output channel keeps all.
    values = np.diag([1.0, 100.0, 10000.0]).astype(np.float32)[:, :2]
    values[2] = [0.5, 50.0]
    content = dense(values.T if transposed else values, transposed)
    model = onnx.load_from_string(four_bit_weights(content))
    restored = onnxruntime.InferenceSession(model.SerializeToString()).run(
        None, {"images": np.eye(3, dtype=np.float32)}
    )[0]
    np.testing.assert_allclose(restored, values, rtol=0.15)


def rounding_error(rows: Array, scale: Array) -> Array:
    rounded = np.clip(np.round(rows / scale[:, None]), -8, 7) * scale[:, None]
    return np.asarray(np.square(rows - rounded).sum(axis=1), np.float32)


@settings(deadline=None)
@given(
    st.integers(0, 10_000),
    st.integers(1, 40),
    st.sampled_from([1, 2, 9, 144, 1000]),
    st.sampled_from([1.0, 3.0, 9.0]),
    st.floats(-6, 4),
)
def test_the_best_scale_never_loses_to_the_largest_value_s(
    seed: int, channels: int, size: int, power: float, magnitude: float
) -> None:
    rng = np.random.default_rng(seed)
    drawn = rng.normal(size=(channels, size)) ** power * 10**magnitude
    rows = drawn.astype(np.float32)
    scale = best_scale(rows)
    largest = np.maximum(np.abs(rows).max(axis=1), np.float32(1e-8)) / 7
    assert (rounding_error(rows, scale) <= rounding_error(rows, largest) * (1 + 1e-5)).all()
    assert (scale > 0).all()
    assert (scale <= largest * 1.000001).all()


def test_the_best_scale_clips_an_outlier() -> None:
    rows = np.ones((2, 400), np.float32) * np.float32(0.5)
    rows[:, 0] = 1.0
    rows[1] *= -1
    scale = best_scale(rows)
    # 0.5 is 3.5 steps of 1/7, the worst place; 0.5/4 and the like hit it.
    assert (
        rounding_error(rows, scale) < 0.1 * rounding_error(rows, np.full(2, 1 / 7, np.float32))
    ).all()


def test_channels_of_zeros_survive_4_bits() -> None:
    assert (best_scale(np.zeros((3, 5), np.float32)) > 0).all()


# ---- eight bits


@pytest.mark.parametrize(
    ("int8_format", "activations", "low", "high"),
    [("u8s8", "UINT8", -127, 127), ("s8s8", "INT8", -127, 127), ("u8s8_reduced", "UINT8", -64, 64)],
)
@pytest.mark.parametrize("name", ["cnn", "resnet8"])
def test_8_bit_formats(
    bench: Workbench, name: str, int8_format: str, activations: str, low: int, high: int
) -> None:
    deployable = stored(bench, name, 8, int8_format=int8_format)
    model = model_of(bench, deployable)
    known = arrays(model)
    types = {t.name: TensorProto.DataType.Name(t.data_type) for t in model.graph.initializer}
    made = {output: node for node in model.graph.node for output in node.output}
    quantizers = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    assert {types[node.input[2]] for node in quantizers} == {activations}
    convolutions = [node for node in model.graph.node if node.op_type in ("Conv", "Gemm")]
    assert len(convolutions) == len(weights(model_of(bench, stored(bench, name, 32))))
    largest = 0
    for node in convolutions[1:]:
        activation, weight = (made[key] for key in node.input[:2])
        assert activation.op_type == weight.op_type == "DequantizeLinear"
        levels, scale, zero = (known[key] for key in weight.input)
        assert types[weight.input[0]] == "INT8"
        assert not zero.any()
        assert len(scale) == levels.shape[0]  # one for each channel
        assert low <= levels.min()
        assert levels.max() <= high
        largest = max(largest, int(np.abs(levels.astype(int)).max()))
    assert largest >= high - 1


@pytest.mark.parametrize("name", NETWORKS)
def test_the_pixels_normalisation_and_convolution_stay_float(bench: Workbench, name: str) -> None:
    model = model_of(bench, stored(bench, name, 8))
    normalisation = next(node for node in model.graph.node if "images" in node.input)
    assert normalisation.op_type == "BatchNormalization"
    (convolution,) = [n for n in model.graph.node if normalisation.output[0] in n.input]
    assert convolution.op_type == "Conv"
    whole = arrays(model_of(bench, stored(bench, name, 32)))
    assert np.array_equal(arrays(model)[convolution.input[1]], whole[convolution.input[1]])


def contrasting() -> bytes:
    """A model that shows what is a little brighter than a background of one colour, and it alone.

    Its first layer adds up to nothing there, and the second one makes the rest large.
    """
    rng = np.random.default_rng(0)
    known = {
        "one": np.ones(3, np.float32),
        "none": np.zeros(3, np.float32),
        "mean": np.array([0.485, 0.456, 0.406], np.float32),
        "variance": np.array([0.229, 0.224, 0.225], np.float32) ** 2,
        "dark": rng.normal(size=(8, 3, 1, 1)).astype(np.float32),
        "large": 60 * rng.normal(size=(4, 8, 1, 1)).astype(np.float32),
    }
    background = -known["mean"] / np.sqrt(known["variance"])
    known["nothing"] = -(known["dark"].reshape(8, 3) @ background)
    nodes = [
        ("BatchNormalization", ["images", "one", "none", "mean", "variance"], "normal"),
        ("Conv", ["normal", "dark", "nothing"], "first"),
        ("Relu", ["first"], "ink"),
        ("Conv", ["ink", "large"], "second"),
        ("GlobalAveragePool", ["second"], "pooled"),
        ("Flatten", ["pooled"], "logits"),
    ]
    graph = helper.make_graph(
        [helper.make_node(kind, given, [made], f"n_{made}") for kind, given, made in nodes],
        "g",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, 16, 16])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(value, name) for name, value in known.items()],
    )
    opset = [helper.make_opsetid("", 20)]
    content: bytes = helper.make_model(graph, opset_imports=opset).SerializeToString()
    return content


def test_a_background_of_one_colour_is_not_rounded(bench: Workbench) -> None:
    rng = np.random.default_rng(1)
    images = np.zeros((32, 3, 16, 16), np.float32)
    images[:, :, 7:9, 7:9] = rng.uniform(0.2, 1, (32, 3, 2, 2))
    content = contrasting()
    found = [
        session(stored(bench, "cnn", 32), given).run(None, {"images": images})[0]
        for given in (content, static_int8(content, [images], "u8s8_reduced"))
    ]
    assert np.abs(found[1] - found[0]).max() < 0.03 * np.abs(found[0]).max()


def test_calibration_reads_images_by_seed(bench: Workbench) -> None:
    same, other = (stored(bench, "cnn", 8, seed=seed, calibration_images=5) for seed in (0, 1))
    assert same.model != other.model
    fewer = stored(bench, "cnn", 8, calibration_images=1)
    assert fewer.model not in (same.model, other.model)


def test_calibration_takes_what_there_is(bench: Workbench) -> None:
    count = bench.data.sizes[0]
    all_of_them, more = (
        stored(bench, "custom", 8, calibration_images=n) for n in (count, count + 1000)
    )
    assert all_of_them == more


def test_the_parts_in_which_images_are_calibrated_do_not_matter(bench: Workbench) -> None:
    content = bench.content(bench.export(bench.prune("cnn", 0.5).network).model)
    images = np.random.default_rng(0).random((64, *bench.data.image_shape), np.float32)
    made = {
        static_int8(content, np.split(images, range(size, len(images), size)), "u8s8")
        for size in (3, 32, 64)
    }
    assert len(made) == 1


def test_large_images_are_calibrated_few_at_a_time(tmp_path: Path) -> None:
    """The runtime holds all that a network computes of them: 8.8 GiB for a ResNet-50 and 32."""
    for number in range(20):
        path = tmp_path / ("train", "test")[number % 2] / "ab"[number // 2 % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (224, 224), (number, 9 * number, 255 - number)).save(path)
    config = ImageFolderConfig(
        name="image_folder",
        root=str(tmp_path),
        channels=3,
        image_size=(224, 224),
        validation_share=0.2,
        mean=None,
        std=None,
        memory_limit_bytes=10**9,
    )
    folder = describe(config)
    step = make_quantize(
        File("0" * 64, ".onnx", 0), 8, "u8s8", folder, calibration_images=8, seed=0
    )
    parts = list(quantize._calibration_batches(step, Store(tmp_path / "store")))
    assert sum(map(len, parts)) == 8
    assert max(part.nbytes for part in parts) <= quantize.CALIBRATION_BYTES


def test_the_quantizer_is_quiet(
    bench: Workbench, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    content = bench.content(bench.export(bench.prune("resnet8", 0.5).network).model)
    with caplog.at_level(logging.WARNING):
        static_int8(content, [digits(bench, 4)], "u8s8")
        logging.getLogger().warning("other news come through")
    assert caplog.messages == ["other news come through"]
    assert "processing" not in "".join(capfd.readouterr())


# ---- accuracy


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(
    ("bits", "int8_format", "points"),
    [(16, "u8s8", 0.5), (8, "u8s8", 3), (8, "s8s8", 3), (8, "u8s8_reduced", 4), (4, "u8s8", 20)],
)
def test_accuracy_stays_near_the_float_model_s(
    bench: Workbench, name: str, bits: int, int8_format: str, points: float
) -> None:
    if (name, bits) == ("custom", 4):
        points = 40  # lost 36 with the first weights that its factory has now
    exported = bench.export(bench.teacher(name).network)
    scores = []
    for b in (32, bits):
        step = replace(bench.quantize_step(exported, b), int8_format=int8_format)
        scores.append(accuracy_as_specified(bench, bench.do(step)))
    assert scores[1] >= scores[0] - points / 100


def accuracy_as_specified(bench: Workbench, deployable: Deployable) -> float:
    """Validation accuracy by the operators' specification, whatever this processor saturates at.

    Without optimisation the runtime computes in float between the quantized tensors.
    """
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    path = bench.store.path(deployable.model)
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    split = data.load(bench.data).validation
    images = split.read(np.arange(len(split))).astype(np.float32) / 255
    (logits,) = session.run(None, {session.get_inputs()[0].name: images})
    return float((logits.argmax(1) == split.labels).mean())


@pytest.mark.parametrize("name", NETWORKS)
def test_the_format_of_this_processor_keeps_the_accuracy_on_it(bench: Workbench, name: str) -> None:
    exported = bench.export(bench.teacher(name).network)
    own = describe_device(LOCAL).int8_format
    scores = []
    for bits in (32, 8):
        step = replace(bench.quantize_step(exported, bits), int8_format=own)
        scores.append(bench.do(Evaluate(bench.do(step), bench.data, "validation", here())))
    assert scores[0].images == scores[1].images == bench.data.sizes[1]
    assert scores[1].accuracy >= scores[0].accuracy - 0.04


@pytest.mark.parametrize("name", NETWORKS)
def test_the_float_model_scores_what_pytorch_scores(bench: Workbench, name: str) -> None:
    teacher = bench.teacher(name)
    deployable = bench.do(bench.quantize_step(bench.export(teacher.network), 32))
    score = bench.do(Evaluate(deployable, bench.data, "validation", here()))
    assert teacher.val_accuracy > 0.8
    assert score.accuracy == pytest.approx(teacher.val_accuracy, abs=1 / bench.data.sizes[1])


def test_the_test_split_is_another(bench: Workbench) -> None:
    deployable = stored(bench, "cnn", 32)
    score = bench.do(Evaluate(deployable, bench.data, "test", here()))
    assert score.images == bench.data.sizes[2]


# ---- what the runtime makes of them


def computing(bench: Workbench, deployable: Deployable, folder: Path) -> tuple[int, int]:
    """How many convolutions and matrix products run in integers, and how many in float."""
    np.save(folder / "inputs.npy", digits(bench, 2))
    session = Session()
    session.open(
        {
            "model": str(bench.store.path(deployable.model)),
            "inputs": str(folder / "inputs.npy"),
            "batch_size": 1,
            "threads": 1,
            "session_entries": dict(deployable.options),
            "memory_limit_bytes": None,
            "seed": 0,
        }
    )
    gc.enable()  # a session's process would go on without
    executed = session.operators({})["operators"]
    integer = sum(count for name, count in executed.items() if name in RUNTIME.integer_operators)
    floating = sum(count for name, count in executed.items() if name in RUNTIME.float_operators)
    return integer, floating


@pytest.mark.parametrize(("name", "operators"), [("cnn", 2), ("resnet8", 9), ("ds_cnn", 9)])
def test_8_bits_are_computed_in_integers_and_others_in_float(
    bench: Workbench, name: str, operators: int, tmp_path: Path
) -> None:
    assert computing(bench, stored(bench, name, 8), tmp_path) == (operators, 1)
    for bits in (32, 16, 4):
        assert computing(bench, stored(bench, name, bits), tmp_path) == (0, operators + 1)
