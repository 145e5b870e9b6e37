"""Faster layers of this project that fail: the network's own do the work."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from search.errors import ConfigError
from search.networks import batch_norm, training
from search.networks.strided import SkippingConv2d
from search.networks.training import Placement, trying_own_layers
from search.records.steps.training import (
    ChoosePlacement,
    FindRate,
    Finetune,
    Reestimate,
    Teach,
)
from search.stages import placement
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


def step_of(bench: Workbench, kind: str) -> Teach | Reestimate | FindRate | Finetune:
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
    # Narrow strided convolutions are at risk in the other layout, if they stay torch's.
    wanted = stage.run(replace(step, layout="contiguous"), bench.store)
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


class Strict(nn.Module):
    """Insists on the classes of its layers, one of which is at risk in channels-last memory."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.kind = layer, type(layer)

    def forward(self, images: Tensor) -> Tensor:
        """Maps ``[n, 8, h, w]`` to ``[n, 8, h', w']``."""
        if type(self.layer) is not self.kind:
            raise TypeError(type(self.layer).__name__)
        answer: Tensor = self.layer(images)
        return answer


@pytest.mark.parametrize(
    "make", [lambda: nn.Conv2d(8, 8, 1, 2), lambda: nn.BatchNorm2d(8)], ids=["skips", "normalises"]
)
def test_a_network_that_insists_on_its_layers_gets_them(
    make: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(training, "torch_is_slow", lambda: True)
    place = Placement(torch.device("cpu"), "float32", "channels_last")
    given: list[bool] = []

    def look(_: nn.Module, images: tuple[Tensor]) -> None:
        given.append(images[0].is_contiguous(memory_format=torch.channels_last))

    def use(module: nn.Module) -> nn.Module:
        module.get_submodule("layer").register_forward_pre_hook(look)
        module(torch.rand(4, 8, 6, 6)).sum().backward()
        return module

    network = trying_own_layers(
        lambda own_layers: place.place(Strict(make()), (8, 6, 6), own_layers), use
    )
    layer = network.get_submodule("layer")
    assert type(layer) in (nn.Conv2d, nn.BatchNorm2d)
    # The kernel that corrupts memory is never reached.
    assert given == [type(layer) is nn.BatchNorm2d]
    assert caplog.text.count("trying again") == 1


def test_what_a_verdict_of_the_search_ends_is_not_tried_again() -> None:
    uses = []

    def use(used: nn.Module) -> None:
        uses.append(used)
        raise ConfigError("the images cannot be read")

    with pytest.raises(ConfigError):
        trying_own_layers(lambda own_layers: SkippingConv2d(8, 8, 1, 2), use)
    assert len(uses) == 1
