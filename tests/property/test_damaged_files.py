"""A file that was cut off or had bits flipped is refused in one line, or used; nothing else.

Flips that leave sound content of another value (a digit of an accuracy) cannot be told: what may
not happen is a traceback, a hang, or the loss of what was whole.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save as to_safetensors

import models
from search.bundle.predict import Refused, read_images
from search.config.data import ImageFolderConfig
from search.data import describe
from search.engine.store import Entry, Store
from search.errors import ConfigError, SearchError
from search.front.importance import importances
from search.networks.checkpoints import load_checkpoint
from search.records.closing import Closing
from search.records.files import File
from search.records.measurement import Canary, Interval
from search.storage.journal import Journal, Journals
from search.study.archive import read_archive
from tests.deployables import make_deployable, make_quantize
from tests.fakes import DATA, FakeEngine, lab, trials_of
from tests.journals import without_sums
from tests.unit.test_study import open_study

SHAPE = (1, 8, 8)
STEP = make_quantize(File("0" * 64, ".onnx", 4), 8, "u8s8", DATA, 3, 0)
ONE_FOLDER = [HealthCheck.function_scoped_fixture]


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Without the warnings that damage is met with."""
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


@st.composite
def damage(draw: st.DrawFn, content: bytes) -> bytes:
    """Cuts ``content`` off, flips a few of its bits, or both."""
    harmed = bytearray(content)
    places = st.integers(0, len(content) - 1)
    for place in draw(st.lists(places, max_size=4)):
        harmed[place] ^= 1 << draw(st.integers(0, 7))
    return bytes(harmed[: draw(st.just(len(content)) | places)])


def said_of(error: Exception) -> str:
    said = str(error)
    assert said
    assert "\n" not in said
    return said


def content_of(network: torch.nn.Module, suffix: str) -> bytes:
    if suffix == ".safetensors":
        return to_safetensors(network.state_dict())
    stream = io.BytesIO()
    torch.save(network.state_dict(), stream, _use_new_zipfile_serialization=suffix == ".pt")
    return stream.getvalue()


@pytest.fixture(scope="module")
def checkpoints() -> dict[str, bytes]:
    network = models.build("cnn", SHAPE, 10, 2)
    return {suffix: content_of(network, suffix) for suffix in (".safetensors", ".pt", ".old")}


@settings(max_examples=60, suppress_health_check=ONE_FOLDER)
@given(st.sampled_from([".safetensors", ".pt", ".old"]), st.data())
def test_checkpoints(
    checkpoints: dict[str, bytes], tmp_path: Path, suffix: str, data: st.DataObject
) -> None:
    network = models.build("cnn", SHAPE, 10, 2)
    path = tmp_path / f"weights{suffix.replace('old', 'pt')}"
    path.write_bytes(data.draw(damage(checkpoints[suffix])))
    try:
        load_checkpoint(network, path, "model.checkpoint='weights'")
    except ConfigError as error:
        assert said_of(error).startswith("model.checkpoint='weights': ")  # noqa: PT017
    assert all(value.isfinite().all() for value in network.state_dict().values())


@settings(max_examples=80, suppress_health_check=ONE_FOLDER)
@given(st.data())
def test_store_entries(tmp_path: Path, data: st.DataObject) -> None:
    store = Store(tmp_path / "store")
    result = make_deployable(store.put(b"model", ".onnx"), 8, (("key", "value"),))
    store.save(STEP, result, 1.5)
    (entry,) = (store.root / "steps").rglob("*.json")
    harmed = entry if data.draw(st.booleans()) else store.path(result.model)
    harmed.write_bytes(data.draw(damage(harmed.read_bytes())))
    # Nothing but what was written comes back.
    assert store.load(STEP) in (None, Entry(result, 1.5))
    # Whatever it was, the step can be computed again.
    result = make_deployable(store.put(b"model", ".onnx"), 8, (("key", "value"),))
    store.save(STEP, result, 2.5)
    assert store.load(STEP) == Entry(result, 2.5)


@pytest.fixture(scope="module")
def journal(summed: bytes, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The same as an earlier version wrote it."""
    path = tmp_path_factory.mktemp("plain") / "s.journal"
    path.write_bytes(summed)
    return without_sums(path).encode()


@pytest.fixture(scope="module")
def summed(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A study of four trials with a closing round, as its file holds it."""
    folder = tmp_path_factory.mktemp("study")
    with Journal(folder, "s") as opened:
        study = open_study(opened, 4)
        study.keep_lab(lab(), "seed: 0\n")
        study.keep_tags({"device": "local"})
        study.keep_ending("KILLED")
        list(trials_of(study, lab(), FakeEngine()))
        canary = Canary(3, Interval(1.0, 0.99, 1.02), "resolved")
        study.keep_closing(Closing(4, (), (canary,)))
    return (folder / "s.journal").read_bytes()


@settings(max_examples=40, suppress_health_check=ONE_FOLDER)
@given(st.data())
def test_journals(journal: bytes, tmp_path: Path, data: st.DataObject) -> None:
    """Of an earlier version: what was changed is found by nothing but what it says."""
    harmed = data.draw(damage(journal))
    check_journal(harmed, tmp_path)


@settings(max_examples=20, suppress_health_check=ONE_FOLDER)
@given(st.data())
def test_journals_with_sums(summed: bytes, tmp_path: Path, data: st.DataObject) -> None:
    harmed = data.draw(damage(summed))
    check_journal(harmed, tmp_path)


# Found by many more flips than a test can try.
NAMES = [
    b'"starting"', b'"samples_deployments"', b'"learning_rate"', b'"val_accuracy"',
    b'"latency_ms"', b'"canaries"', b'"quality"', b'"threads":1', b'"directions"', b'"op_code"',
    b'"number":1', b'"trial_id"', b'"study_name"', b'"distribution"', b'"against_base"',
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("which", ["all", "first", "last"])
def test_journals_with_a_damaged_name(
    journal: bytes, tmp_path: Path, name: bytes, which: str
) -> None:
    other = name[:-1] + b"0" if name[-1:].isdigit() else name[:1] + b"~" + name[2:]
    plain, escaped = journal, name.replace(b'"', b'\\"')
    for old, new in ((name, other), (escaped, other.replace(b'"', b'\\"'))):
        if which == "all":
            plain = plain.replace(old, new)
        elif old in plain:
            at = plain.find(old) if which == "first" else plain.rfind(old)
            plain = plain[:at] + new + plain[at + len(old) :]
    check_journal(plain, tmp_path)


def check_journal(content: bytes, folder: Path) -> None:
    """The study goes on, or is refused and its file kept."""
    path = folder / "s.journal"
    path.write_bytes(content)
    try:
        with Journal(folder, "s") as opened:
            study = open_study(opened, 6)
            study.keep_lab(lab(), "seed: 0\n")
            assert list(trials_of(study, lab(), FakeEngine())) or study.records
            importances(study.records, ("accuracy", "latency"))
        read_archive(Journals(folder), "s", "study")
    except SearchError as error:
        said_of(error)
    whole = content[: content.rfind(b"\n") + 1]  # a half-written line is dropped
    assert path.read_bytes().startswith(whole)


@pytest.fixture(scope="module")
def pets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pets")
    noise = np.random.default_rng(0)
    for split in ("train", "test"):
        for label in ("cat", "dog"):
            for number in range(4):
                path = root / split / label / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(noise.integers(0, 256, (8, 8), np.uint8)).save(path)
    return root


@settings(max_examples=60, suppress_health_check=ONE_FOLDER)
@given(st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM"]), st.data())
def test_images(pets: Path, kind: str, data: st.DataObject) -> None:
    stream = io.BytesIO()
    Image.new("L", (8, 8), 99).save(stream, kind)
    (pets / "train" / "cat" / "0.png").write_bytes(data.draw(damage(stream.getvalue())))
    try:
        describe(ImageFolderConfig(0.5, None, None, 1 << 30, "image_folder", str(pets), 1, (8, 8)))
    except ConfigError as error:
        said_of(error)


@settings(max_examples=80, suppress_health_check=ONE_FOLDER)
@given(st.data())
def test_arrays(tmp_path: Path, data: st.DataObject) -> None:
    stream = io.BytesIO()
    np.save(stream, np.zeros((2, *SHAPE), np.float32))
    path = tmp_path / "images.npy"
    path.write_bytes(data.draw(damage(stream.getvalue())))
    try:
        assert read_images(path, SHAPE).shape[1:] == SHAPE
    except Refused as error:
        assert str(error).startswith(str(path))  # noqa: PT017
