"""Where a model is scored, and that a device is asked for no more than it can answer in time."""

from __future__ import annotations

import platform
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import helper

from search.config.study import FinalistsConfig, RandomConfig, StudyConfig
from search.data import Split
from search.devices.arithmetic import check_arithmetic
from search.errors import StageFailed
from search.recipes.closing import close
from search.records.steps.scoring import Evaluate, EvaluateOnDevice
from search.space.parsing import parse_space
from search.stages import evaluate
from search.stages.evaluate_on_device import LONG_S, predictions
from search.storage.journal import Journal
from search.study.study import Study
from tests.deployables import make_deployable
from tests.fakes import DATA, PROFILE, FakeEngine, file, lab, trials_of
from tests.onnx_files import save
from tests.unit.test_study import SPACE
from tests.workbench import Workbench, here

OBJECTIVES = ("accuracy", "latency")


@pytest.mark.parametrize("is_here", [True, False])
def test_trials_and_finalists_are_scored_on_their_device(tmp_path: Path, is_here: bool) -> None:
    where = lab()
    where = replace(where, bench=replace(where.bench, is_here=is_here))
    engine = FakeEngine()
    with Journal(tmp_path, "s") as journal:
        config = StudyConfig(name="s", n_trials=6, timeout_s=None, warm_start=(), seed=1)
        study = Study(journal, config, parse_space(SPACE, usable_cores=2), OBJECTIVES, {})
        trials = list(trials_of(study, where, engine, sampler=RandomConfig(name="random")))
    finalists = close(trials, where, FinalistsConfig(count=3, epochs=1.0, budget_s=1.0), engine)
    scored = [s for s in engine.computed if isinstance(s, Evaluate | EvaluateOnDevice)]
    assert {type(step) for step in scored} == {Evaluate if is_here else EvaluateOnDevice}
    assert {step.device for step in scored} == {PROFILE}
    tested = {step.deployable for step in scored if step.split == "test"}
    assert {finalist.deployable for finalist in finalists} <= tested
    assert len(finalists) > 1


@pytest.mark.parametrize(
    ("there", "what"),
    [
        (replace(here(), runtime="onnxruntime 1.0"), "runtime was 'onnxruntime 1.0'"),
        (replace(here(), arch="riscv64"), "architecture was 'riscv64'"),
        (replace(here(), flags=("i8mm",)), "instruction sets was 'i8mm'"),
    ],
)
def test_no_score_is_for_another_arithmetic_than_it_was_made_in(
    bench: Workbench, there: Any, what: str
) -> None:
    step = Evaluate(replace(lab().reference, model=file("none")), DATA, "test", there)
    with pytest.raises(StageFailed, match=f"scores are for local, whose {what}, and is "):
        evaluate.run(step, bench.store)


def has_denormals() -> bool:
    return bool((np.full(4, 1e-38, np.float32) * np.float32(0.01)).all())


@pytest.mark.skipif(platform.machine() != "x86_64", reason="onnxruntime can flush on x86 alone")
def test_it_is_scored_in_the_session_that_a_device_opens(tmp_path: Path) -> None:
    """Denormals are zero there, and are as before for what this process does then."""
    nodes = [
        helper.make_node("GlobalMaxPool", ["x"], ["most"]),
        helper.make_node("Flatten", ["most"], ["flat"]),
        helper.make_node("Mul", ["flat", "tiny"], ["y"]),
    ]
    path = save(tmp_path / "model.onnx", nodes, {"tiny": np.array([0, 1e-39], np.float32)})
    # The first session of a process would decide for all others.
    onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    split = Split(np.full((4, 1, 28, 28), 255, np.uint8), np.zeros(4, np.int64))
    assert evaluate.evaluate(path, make_deployable(file("model"), 32), split).accuracy == 1
    assert has_denormals()


def test_the_same_arithmetic_is_recognised() -> None:
    processor = {"arch": "x86_64", "flags": ["avx2"]}
    check_arithmetic(PROFILE, processor, "1")
    check_arithmetic(replace(PROFILE, name="board", cpu="other"), processor, "1")


@pytest.mark.parametrize("image_s", [0.0001, 0.01, 20.0])
def test_no_request_takes_much_longer_than_one_batch(image_s: float) -> None:
    now, asked = 0.0, list[tuple[int, int]]()

    def ask(request: dict[str, Any]) -> dict[str, Any]:
        nonlocal now
        now += request["count"] * image_s
        asked.append((request["first"], request["count"]))
        return {"classes": range(request["first"], request["first"] + request["count"])}

    request = {"request": "predict", "batch_size": 32}
    replies = predictions(ask, request, 10_000, clock=lambda: now)
    assert [image for reply in replies for image in reply["classes"]] == list(range(10_000))
    assert max(count for _, count in asked) * image_s <= max(LONG_S, 32 * image_s)
    # Few round trips where the device is quick.
    assert len(asked) <= 10_000 * image_s / (LONG_S / 4) + 10
