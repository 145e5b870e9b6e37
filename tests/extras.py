"""What another package might add, one thing of each kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import EntryPoint
from typing import Any, ClassVar

import numpy as np
from optuna.samplers import BaseSampler, RandomSampler
from torch import Tensor, nn

from search.data import Source
from search.devices.local import LocalTransport
from search.devices.transport import Transport
from search.errors import DeviceLost
from search.process import registry
from search.records.deployable import Format
from search.records.steps.editing import Edited
from search.records.steps.exporting import Quantize
from search.records.steps.step import Resource, Step
from search.runtimes import Runtime
from search.runtimes.onnxruntime import BITS
from search.space.dimension import Dimension
from search.space.domains import Choice
from search.techniques import Technique

IMAGES = 30  # of each class, in training and in test


class Tiny(nn.Module):
    """A convolution and a dense layer."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(channels, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU())
        self.head = nn.Linear(4, classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.stem(images).mean((2, 3)))
        return logits


def make_network(channels: int = 1, classes: int = 2) -> nn.Module:
    return Tiny(channels, classes)


def make_source(bright: int = 200) -> Source:
    """Images ``[1, 8, 8]``, dark or bright."""
    generator = np.random.default_rng(0)
    labels = np.arange(4 * IMAGES) % 2
    noise = generator.integers(0, 50, (len(labels), 1, 8, 8))
    images = (noise + bright * labels[:, None, None, None]).astype(np.uint8)
    half = len(labels) // 2
    return Source(images[:half], labels[:half], images[half:], labels[half:], ("dark", "bright"))


def make_sampler(seed: int, step: int = 1) -> BaseSampler:
    return RandomSampler(seed=step * seed)


OUTAGES: list[DeviceLost] = []  # that are still to come


class Rack(LocalTransport):
    """This machine, through a connection that breaks."""

    def open(self) -> None:
        super().open()
        if OUTAGES:
            raise OUTAGES.pop()


def reach(hosts: Mapping[str, int]) -> Transport:
    assert hosts
    return Rack()


def convert(
    step: Quantize, content: bytes, calibration: Callable[[], Any]
) -> tuple[bytes, tuple[tuple[str, str], ...]]:
    """Leaves a model as it is."""
    return content, ()


DUST = Dimension(
    name="dust",
    group="deployment",
    domain=lambda cores: Choice(("fine", "coarse")),
    sound="fine",
    label="dust",
    phrase="{} dust",
    default=["fine", "coarse"],
)
GRAIN = replace(DUST, name="grain", label="grain", phrase="{} grain")
DUSTY = Runtime(
    name="dusty",
    dimensions=(BITS, GRAIN),
    formats={32: Format("float", 32, "float")},
    converter=f"{__name__}:convert",
    integer_operators=frozenset(),
    float_operators=frozenset({"Conv"}),
)
SWEEPING = Technique("sweeping", (DUST,))


@dataclass(frozen=True)
class Polish(Step[Edited]):
    """A step whose function cannot be imported."""

    kind: ClassVar[str] = "polish"
    stage: ClassVar[str] = "tests.polishing:run"
    version: ClassVar[int] = 1
    resource: ClassVar[Resource] = "light"
    result: ClassVar[type] = Edited

    shine: int = 0


TINY: dict[str, Any] = {
    "title": "tiny", "factory": f"{__name__}:make_network", "arguments": {}, "checkpoint": None
}  # fmt: skip
SHADES = {
    "factory": f"{__name__}:make_source", "arguments": {"bright": 150}, "validation_share": 0.2,
    "mean": None, "std": None, "memory_limit_bytes": 0,
}  # fmt: skip
DICE = {"factory": f"{__name__}:make_sampler", "arguments": {"step": 2}}
# The keys of all devices are those of ours.
RACK = {
    "defaults": ["local"], "factory": f"{__name__}:reach", "arguments": {"hosts": {"one": 1}},
    "retry_s": 60.0,
}  # fmt: skip
NAMES: Mapping[registry.Kind, str] = {
    "techniques": "sweeping", "runtimes": "dusty", "devices": "rack", "samplers": "dice",
    "models": "tiny", "data": "shades",
}  # fmt: skip


def point(kind: registry.Kind, name: str = "", value: str = "") -> EntryPoint:
    """The entry point by which that package would add its thing of a kind."""
    name = name or NAMES[kind]
    return EntryPoint(name, value or f"{__name__}:{name.upper()}", registry.GROUP + kind)


POINTS = tuple(map(point, NAMES))
