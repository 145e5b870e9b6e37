"""What every stage promises, for every network: inputs untouched, same seed same result.

And what the store relies on: results that survive JSON, and keys that change with every input.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from search.config.data import DigitsConfig
from search.config.device import LocalDeviceConfig
from search.devices.device import Device
from search.devices.local import LocalTransport
from search.engine.store import Store
from search.records.files import File
from search.records.placement import ChosenPlacement
from search.records.steps.exporting import Export, Graph, Trace
from search.records.steps.measuring import Measure, Profile
from search.records.steps.pruning import Prune, Sweep
from search.records.steps.scoring import Evaluate, EvaluateOnDevice
from search.records.steps.step import Step
from search.records.steps.training import (
    ChoosePlacement,
    FindRate,
    Finetune,
    Reestimate,
    Teach,
)
from search.stages import measure, placement
from search.stages.placement import LAYOUTS, PRECISIONS, Way
from tests.deployables import make_deployable, make_quantize
from tests.fakes import DATA, LOCAL, NETWORK, PROFILE, file, measure_step
from tests.workbench import NETWORKS, Workbench, here

KINDS = (
    *("teacher", "sweep", "prune", "reestimate", "rate", "finetune"),
    *("trace", "export", "16", "8", "4", "evaluate"),
)


def step_of(bench: Workbench, name: str, kind: str) -> Step[Any]:
    """A step of that kind for the network of that name."""
    network, mean, std = bench.prune(name, 0.5).network, bench.data.mean, bench.data.std
    match kind:
        case "teacher":
            return replace(bench.teach_step(name), epochs=1)
        case "prune":
            return Prune(bench.teacher(name).network, 0.5, 8)
        case "sweep":
            return Sweep(bench.teacher(name).network, (0.5, 0.2), 8)
        case "reestimate":
            return bench.reestimate_step(network)
        case "rate":
            return bench.rate_step(name)
        case "finetune":
            return bench.finetune_step(name, optimizer="adamw", schedule="plateau", end=0.5)
        case "trace":
            return Trace(network.spec, None, mean, std)
        case "export":
            graph = bench.do(Trace(network.spec, None, mean, std))
            return Export(graph, network, mean, std)
        case "evaluate":
            deployable = bench.do(bench.quantize_step(bench.export(network), 8))
            return Evaluate(deployable, bench.data, "validation", here())
    return bench.quantize_step(bench.export(network), int(kind))


def files_in(value: Any) -> Iterator[File]:
    """Yields every file that a step or a result names."""
    if isinstance(value, File):
        yield value
    elif is_dataclass(value):
        for field in fields(value):
            yield from files_in(getattr(value, field.name))


def random_states() -> tuple[Any, ...]:
    numbers = np.random.get_state(legacy=True)
    return torch.get_rng_state().tolist(), random.getstate(), str(numbers)


# What takes long is done for one built-in network and the user's own; teachers of all are trained,
# pruned and exported for the other kinds.
LONG = ("teacher", "finetune", "trace")
LONG_FOR = ("resnet8", "custom")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (name, kind)
        for name, kind in itertools.product(NETWORKS, KINDS)
        if kind not in LONG or name in LONG_FOR
    ],
)
def test_a_stage_is_a_function_of_its_step(
    bench: Workbench, tmp_path: Path, name: str, kind: str
) -> None:
    step = step_of(bench, name, kind)
    first = bench.do(step)

    # Nothing but the files that the step names is there the second time.
    second = Store(tmp_path)
    inputs = {given: bench.content(given) for given in files_in(step)}
    for given, content in inputs.items():
        assert second.put(content, given.suffix) == given
        second.path(given).chmod(0o400)
    key, states = step.key, random_states()
    result = importlib.import_module(f"search.stages.{step.kind}").run(step, second)

    assert result == first
    assert step.key == key
    assert random_states() == states
    for given, content in inputs.items():
        assert second.path(given).read_bytes() == content
    for made in files_in(result):
        assert second.path(made).read_bytes() == bench.content(made)
        assert second.path(made).stat().st_size == made.size_bytes

    second.save(step, result, 1.0)
    entry = second.load(step)
    assert entry is not None
    assert entry.result == result
    assert type(entry.result) is type(result)


def test_a_placement_that_is_given_is_taken(bench: Workbench) -> None:
    step = ChoosePlacement(bench.spec("cnn"), 8, "cpu", "bfloat16", "this machine")
    chosen = bench.do(step)
    assert (chosen.device, chosen.precision) == ("cpu", "bfloat16")
    assert chosen.step_s > 0
    assert {way.split()[0] for way in chosen.others_s} <= {"bfloat16"}


def test_a_placement_that_is_not_given_is_measured(bench: Workbench) -> None:
    step = ChoosePlacement(bench.spec("custom"), 8, "cpu", "auto", "this machine")
    chosen = bench.do(step)
    assert chosen.device == "cpu"
    assert f"{chosen.precision} {chosen.layout}" not in chosen.others_s
    assert len(chosen.others_s) >= 1, "the other layout is not hopeless"
    ways = {str(way) for way in itertools.starmap(Way, itertools.product(PRECISIONS, LAYOUTS))}
    assert chosen.others_s.keys() < ways
    assert min(chosen.step_s, *chosen.others_s.values()) > 0
    entry = bench.store.load(step)
    assert entry is not None
    assert entry.result == chosen


def test_the_fastest_way_to_train_is_taken(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = {
        Way("float32", "channels_last"): 0.3,
        Way("bfloat16", "contiguous"): 0.1,
        Way("float32", "contiguous"): 0.2,
    }
    monkeypatch.setattr(placement, "compare", lambda *_: measured)
    step = ChoosePlacement(bench.spec("cnn"), 8, "cpu", "auto", "another machine")
    others_s = {"float32 channels_last": 0.3, "float32 contiguous": 0.2}
    wanted = ChosenPlacement("cpu", "bfloat16", "contiguous", 0.1, others_s)
    assert bench.do(step) == wanted


# ---- measuring


def own_measure_step(bench: Workbench, threads: int) -> Measure:
    deployable = bench.do(bench.quantize_step(bench.export(bench.prune("cnn", 0.5).network), 32))
    return measure_step(deployable, threads=threads, data=bench.data, budget_s=0.3)


class WatchedDevice(Device):
    """Counts the threads of the sessions that the agent has opened."""

    counts: ClassVar[list[int]] = []

    def ask(self, request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        reply = super().ask(request, timeout_s)
        if request["request"] == "open" and request["role"] == "candidate":
            # Some threads live for a moment only, while a session starts.
            self.counts.append(min(self._most_threads() for _ in range(10)))
        return reply

    def _most_threads(self) -> int:
        most = 0
        for status in Path("/proc").glob("[0-9]*/status"):
            with contextlib.suppress(OSError):  # of processes that end while they are looked at
                facts = dict(line.split(":", 1) for line in status.read_text().splitlines())
                if int(facts["PPid"]) == self.process_group:
                    most = max(most, int(facts["Threads"]))
        return most


@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc")
def test_threads_reach_the_session_that_is_measured(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = lambda _, timeout_s: WatchedDevice(LocalTransport(), timeout_s)  # noqa: E731
    monkeypatch.setattr("search.devices.reaching.open_device", watched)
    most = []
    for threads in (1, 2):
        WatchedDevice.counts.clear()
        step = own_measure_step(bench, threads)
        result = measure.run(step, bench.store)
        most.append(WatchedDevice.counts[0])
        assert sum(result.operators.values()) > 0
        assert 0 < result.ratio_low <= result.ratio <= result.ratio_high
        bench.store.save(step, result, 1.0)
        entry = bench.store.load(step)
        assert entry is not None
        assert (entry.result, entry.result.raw) == (result, result.raw)
    # The session's own thread counts as one of them.
    assert [count - most[0] for count in most] == [0, 1]


# ---- keys

DEPLOYABLE = make_deployable(file("model"), 8, (("key", "value"),))
STEPS: list[Step[Any]] = [
    ChoosePlacement(NETWORK.spec, 8, "cpu", "float32", "this machine"),
    Teach(NETWORK.spec, DATA, file("given"), 3, 8, 0.1, 0.01, "float32", "contiguous", "cpu", 0),
    Sweep(NETWORK, (0.5, 0.2), 8),
    Prune(NETWORK, 0.5, 8),
    Reestimate(NETWORK, DATA, 8, "float32", "contiguous", "cpu", 0),
    FindRate(
        *(NETWORK, file("logits"), DATA, 0.01, 8, "float32", "contiguous", "cpu"),
        seed=0,
    ),
    Finetune(
        start=NETWORK,
        state=file("state"),
        begin=0.5,
        end=1.0,
        teacher_logits=file("logits"),
        data=DATA,
        distill_temperature=2.0,
        distill_weight=0.5,
        optimizer="sgd",
        learning_rate=0.1,
        schedule="cosine",
        weight_decay=0.0,
        epochs=1.5,
        batch_size=8,
        precision="float32",
        layout="channels_last",
        device="cpu",
        seed=0,
    ),
    Trace(NETWORK.spec, NETWORK.shapes, (0.5,), (0.25,)),
    Export(Graph(file("graph")), NETWORK, (0.5,), (0.25,)),
    make_quantize(file("model"), 8, "u8s8", DATA, 16, 0),
    Evaluate(DEPLOYABLE, DATA, "validation", PROFILE),
    EvaluateOnDevice(DEPLOYABLE, DATA, "validation", PROFILE, LOCAL),
    measure_step(DEPLOYABLE, reference_threads=2),
    Profile(measure_step(DEPLOYABLE, reference_threads=2)),
]


def variants(value: Any) -> Iterator[tuple[str, bool, Any]]:
    """Yields, for every field at any depth, its path, whether it compares, and a changed copy."""
    for field in fields(value):
        old = getattr(value, field.name)
        if is_dataclass(old) and not isinstance(old, DigitsConfig | LocalDeviceConfig):
            for path, compares, new in variants(old):
                changed = replace(value, **{field.name: new})
                yield f"{field.name}.{path}", field.compare and compares, changed
        else:
            yield field.name, field.compare, replace(value, **{field.name: other_than(old)})


def other_than(value: Any) -> Any:
    match value:
        case DigitsConfig():
            return replace(value, memory_limit_bytes=value.memory_limit_bytes + 1)
        case LocalDeviceConfig():
            return replace(value, timeout_s=value.timeout_s + 1)
        case str() if re.fullmatch("[0-9a-f]{64}", value):
            return value[::-1]  # a digest stays one
        case str():
            return value + "x"
        case int() | float():
            return value + 1
        case dict():
            return {**value, "x": 1}
        case None:
            return 1
        case tuple():
            return (*value[:-1], other_than(value[-1])) if value else ("x",)
    raise AssertionError(value)


def kind_of(step: Step[Any]) -> str:
    return step.kind


@pytest.mark.parametrize("step", STEPS, ids=kind_of)
def test_a_key_changes_with_every_field_that_compares_and_no_other(step: Step[Any]) -> None:
    keys = {step.key}
    for path, compares, changed in variants(step):
        assert (changed.key != step.key) == compares, path
        assert (changed != step) == compares, path
        if compares:
            assert changed.key not in keys, path
            keys.add(changed.key)
    assert len(keys) > len(fields(step)) / 2


def test_how_a_file_was_obtained_does_not_count() -> None:
    paths = {path for step in STEPS for path, compares, _ in variants(step) if not compares}
    assert "network.weights.size_bytes" in paths
    assert "data.config" in paths
    assert "data.fingerprint" not in paths


def test_a_new_version_is_a_new_key() -> None:
    class Newer(Prune):
        version: ClassVar[int] = Prune.version + 1

    step = Prune(NETWORK, 0.5, 8)
    newer = Newer(NETWORK, 0.5, 8)
    assert newer.key != step.key
    assert Prune(NETWORK, 0.5, 8).key == step.key


def test_keys_are_the_same_in_every_process() -> None:
    script = "from tests.fakes import NETWORK, Prune; print(Prune(NETWORK, 0.5, 8).key)"
    printed = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert printed.stdout.strip() == Prune(NETWORK, 0.5, 8).key


@pytest.mark.parametrize("step", STEPS, ids=kind_of)
def test_a_kind_names_its_module_and_result(step: Step[Any]) -> None:
    module = importlib.import_module(f"search.stages.{step.kind}")
    assert callable(module.run)
    assert is_dataclass(step.result)
    assert step.resource in ("train", "device", "light")
