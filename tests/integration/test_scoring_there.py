"""Scores come from the device: over a real ssh server, with a runtime of other answers there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import asyncssh
import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from search import data
from search.config.device import SshDeviceConfig
from search.devices.agent.locks import DEVICE_LOCK, lock_until, open_lock
from search.devices.device import Device
from search.devices.reaching import describe_device
from search.engine.driving import drive
from search.engine.inline import InlineEngine
from search.engine.store import Store
from search.errors import StageFailed
from search.front.scores import score_of
from search.recipes.deploying import evaluate
from search.records.bench import Bench
from search.records.deployable import Deployable
from search.records.score import Score
from search.stages import evaluate_on_device
from tests.deployables import make_deployable
from tests.differing import write_python
from tests.fakes import lab
from tests.ssh_server import Server, make_config
from tests.workbench import DIGITS, here

CLASSES = 10
DATA = data.describe(DIGITS)
SPLITS = data.load(DATA)
Split = Literal["validation", "test"]


# ---- what a test needs


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("device")
    host, user = (asyncssh.generate_private_key("ssh-ed25519") for _ in range(2))
    user.write_private_key(folder / "key")
    with Server(folder, host, user) as running:
        yield running


@pytest.fixture(scope="module")
def config(server: Server) -> SshDeviceConfig:
    return make_config(server.home, server.port, server.host_key, "somebody")


@pytest.fixture(scope="module")
def there(config: SshDeviceConfig) -> Bench:
    """A bench whose device is behind the server."""
    bench = replace(lab().bench, data=DATA, measuring=config, is_here=False)
    return replace(bench, device=describe_device(config))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def nearest(store: Store, images: int) -> Deployable:
    """Keeps a model that tells a digit by the nearest of the classes' means.

    Args:
        store: To keep it in.
        images: Of the training split that the means are taken of.
    """
    pixels = SPLITS.train.read(np.arange(images)).reshape(images, -1) / 255
    labels = SPLITS.train.labels[:images]
    means = np.stack([pixels[labels == label].mean(0) for label in range(CLASSES)])
    constants = {"weights": means.T, "bias": -0.5 * (means**2).sum(1)}
    nodes = [
        helper.make_node("Flatten", ["images"], ["flat"]),
        helper.make_node("Gemm", ["flat", "weights", "bias"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "nearest",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N", 1, 28, 28])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", CLASSES])],
        [numpy_helper.from_array(np.asarray(v, np.float32), name) for name, v in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return make_deployable(store.put(model.SerializeToString(), ".onnx"), 32, ())


def scored(deployable: Deployable, bench: Bench, store: Store, split: Split) -> Score:
    return drive(evaluate(deployable, split, bench), InlineEngine(store, lambda event: None))


def classes_of(store: Store, deployable: Deployable, split: Split) -> NDArray[np.int64]:
    """What the model says here, by a run of all images at once."""
    images = getattr(SPLITS, split)
    pixels = images.read(np.arange(len(images))).astype(np.float32) / np.float32(255)
    session = onnxruntime.InferenceSession(store.read(deployable.model))
    found: NDArray[np.int64] = session.run(None, {"images": pixels})[0].argmax(1)
    return found


def sent(server: Server) -> list[str]:
    """Names of all files that were sent, in order."""
    return [Path(name).name.partition(".part")[0] for name in server.uploads]


# ---- whose answers count


@pytest.mark.parametrize("split", ["validation", "test"])
def test_the_same_runtime_answers_the_same_there(there: Bench, store: Store, split: Split) -> None:
    model = nearest(store, 600)
    found = scored(model, there, store, split)
    assert found == scored(model, replace(there, is_here=True, device=here()), store, split)
    labels = getattr(SPLITS, split).labels
    assert found == score_of(classes_of(store, model, split) == labels)
    assert 0.8 < found.accuracy < 1


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_runtime_of_other_answers_is_believed(
    there: Bench, store: Store, tmp_path: Path, split: Split
) -> None:
    model, labels = nearest(store, 600), getattr(SPLITS, split).labels
    assert isinstance(there.measuring, SshDeviceConfig)
    other = replace(there.measuring, python=write_python(tmp_path / "other", shift=1))
    found = scored(model, replace(there, measuring=other), store, split)
    shifted = (classes_of(store, model, split) + 1) % CLASSES
    assert found == score_of(shifted == labels)
    assert found.accuracy < 0.2, "what is recognised here is taken for its neighbour there"


def test_a_runtime_that_was_changed_is_refused(there: Bench, store: Store, tmp_path: Path) -> None:
    assert isinstance(there.measuring, SshDeviceConfig)
    python = write_python(tmp_path / "newer", shift=0, version="9.9.9")
    changed = replace(there, measuring=replace(there.measuring, python=python))
    model, was = nearest(store, 600), there.device.runtime
    with pytest.raises(StageFailed, match=rf"runtime was '{was}', and is 'onnxruntime 9\.9\.9'"):
        scored(model, changed, store, "validation")
    # A study that is begun there keeps scores of its own.
    begun = replace(changed, device=describe_device(changed.measuring))
    assert begun.device.runtime == "onnxruntime 9.9.9"
    (mine,), (other,) = (list(evaluate(model, "test", one)) for one in (there, begun))
    assert mine.key != other.key


# ---- what travels


def test_images_travel_once_for_all_models(
    there: Bench, server: Server, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = len(SPLITS.validation)
    monkeypatch.setattr(evaluate_on_device, "FILE_BYTES", 28 * 28 * 100)
    before = len(sent(server))
    first, second = (scored(nearest(store, n), there, store, "validation") for n in (599, 300))
    assert first.images == second.images == images
    assert first != second
    new = sent(server)[before:]
    assert [Path(name).suffix for name in new].count(".npy") == -(-images // 100)
    assert [Path(name).suffix for name in new].count(".onnx") == 2
    assert len(set(new)) == len(new)
    files = [file for file in server.home.rglob("*.npy") if file.name in new]
    assert {np.load(file).dtype for file in files} == {np.dtype(np.uint8)}
    assert sum(len(np.load(file)) for file in files) == images
    # In one file the images are others' neighbours, and the answers the same.
    monkeypatch.undo()
    another = Store(store.root.parent / "another")
    assert scored(nearest(another, 599), there, another, "validation") == first


def test_the_device_is_held_meanwhile(
    there: Bench, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, set[bool]] = {}
    ask = Device.ask

    def watched(device: Device, request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        descriptor = open_lock(DEVICE_LOCK)
        is_free = lock_until(descriptor, 0.0)
        os.close(descriptor)
        asked.setdefault(request["request"], set()).add(is_free)
        assert timeout_s > 0
        return ask(device, request, timeout_s)

    monkeypatch.setattr(Device, "ask", watched)
    scored(nearest(store, 600), there, store, "validation")
    assert asked["predict"] == {False}
