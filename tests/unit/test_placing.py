"""Faster layers of this project that fail: the network's own do the work."""

from __future__ import annotations

import importlib
import math
from dataclasses import replace
from typing import Any

import pytest
from torch import nn

from search import batch_norm, training
from search.stages import placement
from search.steps import ChoosePlacement, Step
from search.training import trying_own_layers
from tests.workbench import Workbench


@pytest.fixture
def tries(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """Breaks faster layers, which are wanted here; counts how often they are tried."""
    counted: list[None] = []

    def fail(*_: Any) -> None:
        counted.append(None)
        raise RuntimeError("our layer fails")

    monkeypatch.setattr(training, "torch_is_slow", lambda: True)
    monkeypatch.setattr(batch_norm, "SMALLEST", 0)
    monkeypatch.setattr(batch_norm._Normalise, "forward", staticmethod(fail))
    return counted


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves every layer as it is."""
    monkeypatch.setattr(training, "torch_is_slow", lambda: False)


def step_of(bench: Workbench, kind: str) -> Step[Any]:
    match kind:
        case "teacher":
            return replace(bench.teach_step("resnet8"), epochs=1)
        case "reestimate":
            return bench.reestimate_step(bench.prune("resnet8", 0.5).network)
        case "rate":
            return bench.rate_step("resnet8")
    return bench.finetune_step("resnet8")


@pytest.mark.parametrize("kind", ["teacher", "reestimate", "rate", "finetune"])
def test_a_stage_does_without_layers_that_fail(
    bench: Workbench,
    kind: str,
    plain: None,
    request: pytest.FixtureRequest,
    caplog: pytest.LogCaptureFixture,
) -> None:
    step = step_of(bench, kind)
    stage = importlib.import_module(f"search.stages.{kind}")
    wanted = stage.run(step, bench.store)
    tries = request.getfixturevalue("tries")
    assert stage.run(step, bench.store) == wanted
    assert len(tries) == 1
    assert "our layer fails; trying again" in caplog.text


def test_a_layout_is_not_given_up_for_layers_that_fail(
    bench: Workbench, tries: list[None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placement, "BUDGET_S", 0.0)
    monkeypatch.setattr(placement, "HOPELESS", math.inf)
    step = ChoosePlacement(bench.spec("resnet8"), 8, "cpu", "float32", "this machine")
    found = placement.run(step, bench.store)
    ways = {f"float32 {found.layout}", *found.others_s}
    assert ways == {"float32 channels_last", "float32 contiguous"}
    assert len(tries) == 1


@pytest.mark.usefixtures("tries")
@pytest.mark.parametrize("module", [nn.BatchNorm2d(8), nn.BatchNorm2d(16), nn.Linear(1, 1)])
def test_what_fails_with_the_network_s_own_layers_fails_at_once(module: nn.Module) -> None:
    uses = []

    def use(used: nn.Module) -> None:
        uses.append(used)
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        trying_own_layers(lambda own_layers: module, use)
    assert uses == [module]
