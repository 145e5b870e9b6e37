"""The exported ONNX model against PyTorch, in onnxruntime."""

from __future__ import annotations

import getpass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from search import data
from search.errors import StageFailed
from search.networks import networks
from search.networks.networks import Preprocessed
from search.records.network import Network, NetworkSpec
from search.records.steps.exporting import (
    PARITY_TOLERANCE,
    Export,
    Exported,
    Graph,
    Trace,
)
from search.records.steps.pruning import Prune
from tests import zoo
from tests.workbench import NETWORKS, Workbench

Array = NDArray[np.float32]


def run(content: bytes, images: Array) -> Array:
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    logits: Array = session.run(["logits"], {"images": images})[0]
    return logits


def digits(bench: Workbench, count: int) -> Array:
    images = data.load(bench.data).validation.read(np.arange(count))
    return images.astype(np.float32) / np.float32(255)


def expected(bench: Workbench, network: Network, images: Array) -> Array:
    """PyTorch's logits, normalised by hand."""
    mean, std = (
        np.reshape(v, (1, -1, 1, 1)).astype(np.float32) for v in (bench.data.mean, bench.data.std)
    )
    module = networks.load(network, bench.store)
    with torch.no_grad():
        logits: Array = module(torch.from_numpy((images - mean) / std)).numpy()
    return logits


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("ratio", [0.0, 0.5, 0.9])
def test_gives_pytorch_s_logits_at_every_batch_size(
    bench: Workbench, name: str, ratio: float
) -> None:
    network = bench.prune(name, ratio).network
    exported = bench.export(network)
    assert exported.is_faithful
    assert exported.parity_error is not None
    assert exported.parity_error < 1e-4
    for batch in (1, 2, 3, 8, 64):
        images = digits(bench, batch)
        got = run(bench.content(exported.model), images)
        assert got.shape == (batch, 10)
        np.testing.assert_allclose(got, expected(bench, network, images), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", NETWORKS)
def test_is_one_valid_model_with_named_ends_and_free_batch(bench: Workbench, name: str) -> None:
    content = bench.content(bench.export(bench.prune(name, 0.5).network).model)
    model = onnx.load_from_string(content)
    onnx.checker.check_model(model, full_check=True)
    ends = {}
    for value in (*model.graph.input, *model.graph.output):
        dims = value.type.tensor_type.shape.dim
        ends[value.name] = [d.dim_param or d.dim_value for d in dims]
    assert ends == {"images": ["batch", 1, 28, 28], "logits": ["batch", 10]}
    assert not any(t.HasField("data_location") and t.data_location for t in model.graph.initializer)


@pytest.mark.parametrize("name", NETWORKS)
def test_says_nothing_of_the_machine_that_made_it(bench: Workbench, name: str) -> None:
    content = bench.content(bench.export(bench.teacher(name).network).model)
    for secret in (
        str(Path.cwd()),
        str(Path.home()),
        str(Path(torch.__file__).parents[2]),
        getpass.getuser(),
        ".py",
        "site-packages",
        "forward(",
        "return ",
        "self.",
        "stack_trace",
    ):
        assert secret.encode() not in content, secret


def trace_anew(network: Network, bench: Workbench) -> bytes:
    """Exports the network itself with PyTorch's exporter, weights and all."""
    module = Preprocessed(networks.load(network, bench.store), bench.data.mean, bench.data.std)
    program = torch.onnx.export(
        module.eval(),
        (torch.zeros(2, 1, 28, 28),),
        dynamo=True,
        dynamic_shapes=({0: "batch"},),
        external_data=False,
        input_names=["images"],
        output_names=["logits"],
        verbose=False,
    )
    assert program is not None
    content: bytes = program.model_proto.SerializeToString()
    return content


@pytest.mark.filterwarnings("ignore")  # of the exporter, about itself
@pytest.mark.parametrize("name", ["resnet8"])
def test_new_weights_in_an_old_graph_are_a_new_export(bench: Workbench, name: str) -> None:
    first = bench.prune(name, 0.5).network
    second = bench.do(bench.finetune_step(name, learning_rate=0.02)).network
    assert first.shapes == second.shapes
    images = digits(bench, 16)
    before, after = (run(bench.content(bench.export(n).model), images) for n in (first, second))
    assert np.abs(before - after).max() > 0.1
    np.testing.assert_allclose(after, run(trace_anew(second, bench), images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["cnn", "ds_cnn"])
def test_a_trace_serves_all_widths_like_one_of_its_own(bench: Workbench, name: str) -> None:
    network = bench.prune(name, 0.5).network
    mean, std = bench.data.mean, bench.data.std
    shared, own = (
        bench.do(Export(bench.do(Trace(network.spec, shapes, mean, std)), network, mean, std))
        for shapes in (None, network.shapes)
    )
    assert shared.is_faithful
    assert own.is_faithful
    images = digits(bench, 4)
    got = [run(bench.content(exported.model), images) for exported in (shared, own)]
    np.testing.assert_allclose(got[0], got[1], rtol=1e-5, atol=1e-5)
    assert shared.model.size_bytes == pytest.approx(own.model.size_bytes, abs=100)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_traced_once_for_all_weights_and_widths(bench: Workbench, name: str) -> None:
    for ratio in (0.0, 0.3, 0.5, 0.9):
        bench.export(bench.prune(name, ratio).network)
    bench.export(bench.do(bench.finetune_step(name)).network)
    spec = bench.teacher(name).network.spec
    recipes = [s for s in bench.started if isinstance(s, Trace) and s.spec == spec]
    whole = [s.shapes for s in recipes if s.shapes is None]
    assert whole in ([None], []), "tests beside this one may have traced it"
    begun = len(bench.started)
    bench.export(bench.prune(name, 0.7).network)
    assert "trace" not in [step.kind for step in bench.started[begun:]]


# ---- networks that users might bring


def user_network(bench: Workbench, name: str) -> Network:
    spec = NetworkSpec("custom", None, f"tests.zoo:{name}", (), None, (1, 28, 28), zoo.CLASSES)
    torch.manual_seed(0)
    return networks.save(networks.build(spec), spec, bench.store)


@pytest.mark.parametrize("name", ["multiplied", "concatenated"])
def test_users_networks(bench: Workbench, name: str) -> None:
    network = user_network(bench, name)
    begun = len(bench.started)
    assert bench.export(network).is_faithful
    if name != "multiplied":
        assert bench.export(bench.do(Prune(network, 0.5, 8)).network).is_faithful
    assert [step.kind for step in bench.started[begun:]].count("trace") == 1


def test_code_that_counts_channels_is_traced_at_its_own_width(bench: Workbench) -> None:
    network = bench.do(Prune(user_network(bench, "counts_channels"), 0.5, 8)).network
    mean, std = bench.data.mean, bench.data.std
    graph = bench.do(Trace(network.spec, None, mean, std))
    assert not bench.do(Export(graph, network, mean, std)).is_faithful
    exported = bench.export(network)
    assert exported.is_faithful
    images = digits(bench, 3)
    np.testing.assert_allclose(
        run(bench.content(exported.model), images),
        expected(bench, network, images),
        rtol=1e-4,
        atol=1e-5,
    )


def test_an_export_that_computes_something_else_fails(bench: Workbench) -> None:
    network = user_network(bench, "looks_at_batch")
    with pytest.raises(StageFailed) as caught:
        bench.export(network)
    assert str(caught.value).startswith("export: the ONNX model's logits are not the network's")
    assert f"at most {PARITY_TOLERANCE:g} is allowed" in str(caught.value)


def test_a_network_that_cannot_be_exported_fails_in_one_line(
    bench: Workbench, capfd: pytest.CaptureFixture[str]
) -> None:
    network = user_network(bench, "looks_at_pixels")
    with pytest.raises(StageFailed) as caught:
        bench.export(network)
    assert str(caught.value).startswith(
        "trace: PyTorch cannot export the network to ONNX (GuardOnDataDependentSymNode: Could not "
    )
    assert str(caught.value).endswith("; its code must not depend on the values of images")
    assert str(caught.value).isprintable()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("error", "faithful"),
    [(0.0, True), (PARITY_TOLERANCE, True), (1.1e-3, False), (float("nan"), False), (None, False)],
)
def test_what_counts_as_faithful(bench: Workbench, error: Any, faithful: bool) -> None:
    model = bench.export(bench.teacher("cnn").network).model
    assert Exported(model, error).is_faithful == faithful


def test_weights_that_are_not_numbers_are_not_faithful(bench: Workbench) -> None:
    network = bench.teacher("cnn").network
    module = networks.load(network, bench.store)
    module.get_parameter("head.bias").data[0] = float("nan")
    broken = networks.save(module, network.spec, bench.store)
    mean, std = bench.data.mean, bench.data.std
    graph: Graph = bench.do(Trace(network.spec, None, mean, std))
    assert not bench.do(Export(graph, broken, mean, std)).is_faithful
