"""A whole study, really measured, in which some models crash, do not load or need too much."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from search.config.study import RandomConfig, StudyConfig
from search.data import describe
from search.engine.store import Store
from search.records.deployable import Deployable, Format
from search.records.steps.exporting import Quantize
from search.records.steps.measuring import Measure
from search.records.steps.step import Step
from search.space.parsing import parse_space
from search.stages import measure
from search.storage.journal import Journal
from search.study.study import Study
from tests.deployables import make_deployable, make_quantize
from tests.fakes import DATA, LOCAL, PLAIN, FakeEngine, lab, trials_of
from tests.onnx_files import save_conv_net, save_endless, save_huge, save_unknown

SPACE: dict[str, Any] = {
    "prune_ratio": [0.0, 0.5],
    "bits": [32, 16, 8, 4],
    "distill_temperature": 2.0,
    "distill_weight": 0.5,
    "optimizer": "sgd",
    "learning_rate": 0.1,
    "schedule": "constant",
    "threads": 1,
}
LOADING_S = 1.5  # of processor time; what takes more is the endless run
ALLOWED_BYTES = 64 << 20
REASONS = {
    16: "died with signal 11",
    8: "Nonsense",
    4: f"more memory than device.memory_limit_bytes={ALLOWED_BYTES}",
}


class MeasuringEngine(FakeEngine):
    """Answers by formula, but measures really what it hands out for a number of bits."""

    def __init__(self, store: Store, models: dict[int, Deployable]) -> None:
        super().__init__()
        self._store = store
        self._models = models

    def _answer(self, step: Step[Any]) -> Any:
        match step:
            case Quantize(format=Format(bits=bits)):
                return self._models[bits]
            case Measure(deployable=Deployable(format=Format(bits=16))):
                with crashing():
                    return measure.run(step, self._store)
            case Measure():
                return measure.run(step, self._store)
        return super()._answer(step)


@contextmanager
def crashing() -> Iterator[None]:
    """Lets a process that runs for ever die as by a fault in its code.

    onnxruntime guards its kernels too well for a model to do that by itself.
    """
    over = threading.Event()

    def strike() -> None:
        while not over.wait(0.05):
            for agent in children(os.getpid()):
                for pid in children(agent):
                    if processor_s(pid) > LOADING_S:
                        os.kill(pid, signal.SIGSEGV)

    thread = threading.Thread(target=strike)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def children(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for listed in found for child in listed.read_text().split()]


def processor_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.fixture
def engine(tmp_path: Path) -> MeasuringEngine:
    store, made = Store(tmp_path / "store"), tmp_path / "model.onnx"
    makers = {
        32: lambda path: save_conv_net(path, width=16, layers=2),
        16: save_endless,
        8: save_unknown,
        4: save_huge,
    }
    models = {
        bits: make_deployable(store.put(make(made).read_bytes(), ".onnx"), bits, ())
        for bits, make in makers.items()
    }
    return MeasuringEngine(store, models)


def test_bad_models_fail_their_trials_and_nothing_else(
    engine: MeasuringEngine, tmp_path: Path
) -> None:
    given = lab()
    measuring = replace(LOCAL, budget_s=0.3, memory_limit_bytes=ALLOWED_BYTES)
    bench = replace(given.bench, measuring=measuring, data=describe(DATA.config))
    given = replace(given, bench=bench, reference=engine.run(_quantize(32)).result)
    with Journal(tmp_path, "s") as journal:
        config = StudyConfig(name="s", n_trials=12, timeout_s=None, warm_start=(), seed=1)
        space = parse_space(SPACE, usable_cores=1)
        study = Study(journal, config, space, ("accuracy", "latency"), {})
        records = list(trials_of(study, given, engine, PLAIN, RandomConfig(name="random")))
    assert len(records) == 12
    assert {record.point.whole("bits") for record in records} == {32, 16, 8, 4}
    for record in records:
        if record.point.whole("bits") == 32:
            assert (record.outcome, record.reason) == ("complete", "")
        else:
            assert record.outcome == "failed"
            assert REASONS[record.point.whole("bits")] in record.reason
            assert "\n" not in record.reason


def _quantize(bits: int) -> Quantize:
    return make_quantize(lab().reference.model, bits, "u8s8", DATA, 8, 0)
