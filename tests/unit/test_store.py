"""The store: whole results or none, whatever happens to its files."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from search.engine.base import Event
from search.engine.inline import InlineEngine
from search.engine.store import Entry, Store
from search.records.deployable import Deployable
from search.records.files import File
from search.records.measurement import Measurement
from search.records.score import Score
from search.records.steps.editing import Edited
from search.records.steps.exporting import Export, Exported, Graph, Quantize
from search.records.steps.pruning import Prune
from search.records.steps.scoring import Evaluate
from search.stages import quantize
from tests.deployables import make_deployable, make_quantize
from tests.fakes import DATA, NETWORK, PROFILE, measure_step, measurement

CONTENT = b"what a stage made"
STEP = make_quantize(
    model=File("0" * 64, ".onnx", 4),
    bits=8,
    int8_format="u8s8",
    data=DATA,
    calibration_images=3,
    seed=0,
)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def fill(store: Store) -> Deployable:
    """Stores a result with one file."""
    result = make_deployable(store.put(CONTENT, ".onnx"), 8, (("key", "value"),))
    store.save(STEP, result, 1.5)
    return result


def entry_path(store: Store) -> Path:
    return store.root / "steps" / "quantize" / f"{STEP.key}.json"


def files_below(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file())


# ---- files


def test_a_file_lies_under_its_digest(store: Store) -> None:
    file = store.put(CONTENT, ".onnx")
    digest = hashlib.sha256(CONTENT).hexdigest()
    assert file == File(digest, ".onnx", len(CONTENT))
    assert file.size_bytes == len(CONTENT)
    assert store.path(file) == store.root / "files" / digest[:2] / f"{digest}.onnx"
    assert store.path(file).read_bytes() == CONTENT


def test_putting_twice_writes_once(store: Store) -> None:
    file = store.put(CONTENT, ".onnx")
    before = store.path(file).stat()
    assert store.put(CONTENT, ".onnx") == file
    after = store.path(file).stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert files_below(store.root) == [store.path(file)]


def test_putting_mends_a_damaged_file(store: Store) -> None:
    file = store.put(CONTENT, ".onnx")
    store.path(file).write_bytes(CONTENT[:3])
    assert store.put(CONTENT, ".onnx") == file
    assert store.path(file).read_bytes() == CONTENT


def test_the_same_content_with_another_suffix_is_another_file(store: Store) -> None:
    assert store.path(store.put(b"", ".a")) != store.path(store.put(b"", ".b"))


def test_a_write_that_fails_leaves_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        store.put(CONTENT, ".onnx")
    assert files_below(store.root) == []


def test_a_write_that_is_interrupted_leaves_the_old_entry(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = fill(store)

    def interrupt(_descriptor: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", interrupt)
        with pytest.raises(KeyboardInterrupt):
            store.save(STEP, make_deployable(result.model, 4, ()), 9.0)
    assert store.load(STEP) == Entry(result, 1.5)
    assert list((store.root / "parts").iterdir()) == []


# ---- results


def test_a_result_comes_back_as_it_was(store: Store) -> None:
    result = fill(store)
    assert store.load(STEP) == Entry(result, 1.5)
    assert Store(store.root).load(STEP) == Entry(result, 1.5)


def test_an_unknown_step_is_no_warning(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    assert store.load(STEP) is None
    assert caplog.messages == []


def test_results_of_every_form_come_back(store: Store) -> None:
    weights, model = store.put(b"w", ".safetensors"), store.put(b"m", ".onnx")
    network = replace(NETWORK, weights=weights)
    prune = Prune(network, 0.1 + 0.2, 8)
    store.save(prune, Edited(network, {"channels_removed": 1 / 3}), 0.0)
    assert store.load(prune) == Entry(Edited(network, {"channels_removed": 1 / 3}), 0.0)
    export = Export(Graph(model), network, (0.5,), (0.25,))
    for error in (1e-7, None):
        store.save(export, Exported(model, error), 0.0)
        assert store.load(export) == Entry(Exported(model, error), 0.0)
    evaluate = Evaluate(make_deployable(model, 4, ()), DATA, "test", PROFILE)
    store.save(evaluate, Score(0.1, 30), 0.0)
    assert store.load(evaluate) == Entry(Score(0.1, 30), 0.0)


def test_a_measurement_keeps_what_does_not_count_for_equality(store: Store) -> None:
    model = make_deployable(store.put(b"m", ".onnx"), 32, ())
    step = measure_step(model, reference_threads=2)
    raw = ((7, ((0.1, 0.2), (0.3, 0.4)), (False, True)), (8, (), ()))
    given: Measurement = replace(measurement(0.5), raw=raw)
    store.save(step, given, 2.0)
    entry = store.load(step)
    assert entry is not None
    assert entry.result == given
    assert entry.result.raw == raw
    assert entry.result.operators == {"Conv": 1, "FusedGemm": 2}


# ---- damage


def tear(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def scramble(path: Path) -> None:
    path.write_bytes(os.urandom(200))


def lose_a_field(path: Path) -> None:
    saved = json.loads(path.read_text())
    del saved["result"]["format"]
    path.write_text(json.dumps(saved))


def wrong_type(path: Path) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), "result": 5}))


def no_object(path: Path) -> None:
    path.write_text("[1, 2]")


def odd_file(path: Path) -> None:
    saved = json.loads(path.read_text())
    saved["files"] = [{"sha256": "x"}]
    path.write_text(json.dumps(saved))


def odd_seconds(path: Path) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), "seconds": None}))


@pytest.mark.parametrize(
    "harm",
    [tear, empty, scramble, lose_a_field, wrong_type, no_object, odd_file, odd_seconds],
)
def test_a_damaged_entry_is_computed_again(
    store: Store, caplog: pytest.LogCaptureFixture, harm: Callable[[Path], None]
) -> None:
    result = fill(store)
    harm(entry_path(store))
    with caplog.at_level(logging.WARNING):
        assert store.load(STEP) is None
    assert len(caplog.messages) == 1
    assert "is damaged" in caplog.messages[0]
    assert "computing it again" in caplog.messages[0]
    store.save(STEP, result, 2.5)
    assert store.load(STEP) == Entry(result, 2.5)


@pytest.mark.parametrize("harm", [tear, empty, scramble, Path.unlink])
def test_a_result_whose_file_is_damaged_is_computed_again(
    store: Store, caplog: pytest.LogCaptureFixture, harm: Callable[[Path], None]
) -> None:
    result = fill(store)
    harm(store.path(result.model))
    with caplog.at_level(logging.WARNING):
        assert store.load(STEP) is None
    assert [str(store.path(result.model)) in message for message in caplog.messages] == [True]
    fill(store)
    assert store.load(STEP) == Entry(result, 1.5)


def test_files_deep_inside_a_result_are_looked_after(store: Store) -> None:
    weights = store.put(b"w", ".safetensors")
    network = replace(NETWORK, weights=weights)
    step = Prune(network, 0.5, 8)
    store.save(step, Edited(network, {"channels_removed": 0.5}), 0.0)
    store.path(weights).unlink()
    assert store.load(step) is None


def test_leftovers_of_a_killed_process_are_cleared_but_not_what_is_being_written(
    store: Store,
) -> None:
    result = fill(store)
    old, young = store.root / "parts" / "old", store.root / "parts" / "young"
    for part in (old, young):
        part.write_bytes(b'{"half')
    two_days_ago = time.time() - 2 * 24 * 3600
    os.utime(old, (two_days_ago, two_days_ago))
    store.clear_leftovers()
    assert list((store.root / "parts").iterdir()) == [young]
    assert store.load(STEP) == Entry(result, 1.5)


def test_a_new_store_has_no_leftovers(tmp_path: Path) -> None:
    Store(tmp_path / "none").clear_leftovers()
    assert not (tmp_path / "none").exists()


# ---- the engine on top


def test_the_engine_computes_once_and_again_after_damage(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stage(step: Quantize, artifacts: Store) -> Deployable:
        return make_deployable(artifacts.put(CONTENT, ".onnx"), step.format.bits, ())

    monkeypatch.setattr(quantize, "run", stage)
    begun: list[Any] = []

    def note(event: Event) -> None:
        if event.state == "began":
            begun.append(event.step)

    engine = InlineEngine(store, note)
    first, second = engine.run(STEP), engine.run(STEP)
    assert (first.reused, second.reused) == (False, True)
    assert (first.result, first.seconds) == (second.result, second.seconds)
    tear(entry_path(store))
    third = engine.run(STEP)
    assert not third.reused
    assert third.result == first.result
    store.path(first.result.model).unlink()
    assert not engine.run(STEP).reused
    assert begun == [STEP] * 3
