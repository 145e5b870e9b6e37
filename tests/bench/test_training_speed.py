"""Seconds of an optimizer step: ours against a plain DataLoader loop in float32.

Run alone, on an idle machine:
    pytest tests/bench/test_training_speed.py -m bench -s
EfficientNet-Lite0 takes part where its package is importable (PYTHONPATH).
"""

from __future__ import annotations

import importlib.util
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from models import build
from search.data.kept import keep
from search.data.splits import Split, Subset
from search.devices.stillness import working
from search.networks import networks
from search.networks.training import Feed, Placement, training_batches
from search.records.network import NetworkSpec
from search.records.steps.training import ChoosePlacement
from search.stages import placement as stage

STEPS, WARM_UP = 8, 2
CLASSES = 10


class Block(nn.Module):
    """An inverted residual of MobileNetV2 (Sandler et al. 2018, arXiv 1801.04381)."""

    def __init__(self, inputs: int, outputs: int, stride: int, expand: int) -> None:
        super().__init__()
        wide = inputs * expand
        self.adds = stride == 1 and inputs == outputs
        self.body = nn.Sequential(
            *conv(inputs, wide, 1),
            *conv(wide, wide, 3, stride, wide),
            nn.Conv2d(wide, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[n, inputs, h, w]`` to ``[n, outputs, h', w']``."""
        y: Tensor = self.body(x)
        return x + y if self.adds else y


def conv(inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    layer = nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)
    return [layer, nn.BatchNorm2d(outputs), nn.ReLU6(inplace=True)]


def mobilenet_v2() -> nn.Module:
    """MobileNetV2 of width 1 for ten classes."""
    plan = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1)]
    layers, width = conv(3, 32, 3, 2), 32
    for expand, outputs, count, stride in [*plan, (6, 160, 3, 2), (6, 320, 1, 1)]:
        for number in range(count):
            layers.append(Block(width, outputs, stride if number == 0 else 1, expand))
            width = outputs
    head = [*conv(width, 1280, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1280, CLASSES)]
    return nn.Sequential(*layers, *head)


def efficientnet_lite0() -> nn.Module:
    """EfficientNet-Lite0, of a package of its own."""
    from efficientnet_lite_pytorch import EfficientNet  # type: ignore[import-not-found]

    network: nn.Module = EfficientNet.from_name("efficientnet-lite0")
    return network


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int], int]] = {
    "cnn": (lambda: build("cnn", (1, 28, 28), CLASSES, 32), (1, 28, 28), 128),
    "resnet8": (lambda: build("resnet8", (1, 28, 28), CLASSES, 16), (1, 28, 28), 128),
    "mobilenet_v2": (mobilenet_v2, (3, 96, 96), 64),
    "efficientnet_lite0": (efficientnet_lite0, (3, 96, 96), 64),
}


class Drawn(TorchDataset[tuple[Tensor, int]]):
    """Images one by one, as in a tutorial's loop."""

    def __init__(self, pixels: NDArray[np.uint8]) -> None:
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.from_numpy(self.pixels[index]).float() / 255, index % CLASSES


def plain_steps(network: nn.Module, pixels: NDArray[np.uint8], batch: int) -> Iterator[float]:
    """Trains as one would without a thought, and yields the seconds of each step."""
    loader = DataLoader(Drawn(pixels), batch, shuffle=True, num_workers=2, drop_last=True)
    optimizer = torch.optim.AdamW(network.train().parameters())
    while True:
        began = time.perf_counter()
        for images, labels in loader:
            loss = F.cross_entropy(network(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            yield time.perf_counter() - began
            began = time.perf_counter()


def our_steps(
    network: nn.Module, split: Split, batch: int, placement: Placement, shape: tuple[int, int, int]
) -> Iterator[float]:
    """Trains as this project does, and yields the seconds of each step."""
    module = placement.place(network, shape).train()
    optimizer = torch.optim.AdamW(module.parameters(), fused=True)
    feed = Feed(split, placement.device)
    with working():
        began = time.perf_counter()
        for images, labels, _ in training_batches(feed, 0, 10**9, batch, 0):
            with placement.autocast():
                loss = F.cross_entropy(module(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            yield time.perf_counter() - began
            began = time.perf_counter()


@pytest.mark.bench
@pytest.mark.parametrize("name", NETWORKS)
def test_a_step_against_a_plain_loop(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "efficientnet_lite0" and not importlib.util.find_spec("efficientnet_lite_pytorch"):
        pytest.skip("efficientnet_lite_pytorch is not installed")
    make, shape, batch = NETWORKS[name]
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (4 * batch, *shape), np.uint8)
    labels = np.arange(len(pixels)) % CLASSES
    monkeypatch.setattr(networks, "build", lambda spec: make())
    spec = NetworkSpec(name, None, None, (), None, shape, CLASSES)
    step = ChoosePlacement(spec, batch, "cpu", "auto", "bench")
    chosen = stage.run(step, None)  # type: ignore[arg-type]  # it makes no files
    kept: Any = keep(Images(pixels), "bench", shape, tmp_path / "images", "bench")[0]
    split = Split(Subset(kept, np.arange(len(pixels)), shape, "bench"), labels)
    placement = Placement(torch.device("cpu"), chosen.precision, chosen.layout)
    ours = our_steps(make(), split, batch, placement, shape)
    plain = plain_steps(make(), pixels, batch)
    seconds = [(next(ours), next(plain)) for _ in range(WARM_UP + STEPS)][WARM_UP:]
    ratios = [slow / quick for quick, slow in seconds]
    print(
        f"\n{name} {shape} x{batch}: ours {statistics.median(s for s, _ in seconds):.3f} s "
        f"({chosen.precision} {chosen.layout}), plain "
        f"{statistics.median(s for _, s in seconds):.3f} s, {statistics.median(ratios):.2f}x; "
        f"tried: {chosen.step_s:.3f} {dict(chosen.others_s)}"
    )


class Images:
    """An array that pretends to be files."""

    def __init__(self, pixels: NDArray[np.uint8]) -> None:
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        return np.array(self.pixels[index])
