"""Statistics of batch normalisation are those of the weights, and the user's frozen ones stay."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from search.data.splits import Split
from search.devices.stillness import working
from search.networks.batch_statistics import IMAGES, reestimate
from search.networks.networks import load
from search.networks.training import Feed, Placement
from search.stages import finetune, teacher
from tests.workbench import Workbench

CPU = Placement(torch.device("cpu"), "float32", "channels_last")


@pytest.fixture
def feed() -> Iterator[Feed]:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (300, 3, 4, 4), dtype=np.uint8)
    images[:, 1] //= 4
    with torch.random.fork_rng():
        yield Feed(Split(images, np.zeros(300, dtype=np.int64)), CPU.device)


def test_statistics_become_the_mean_over_batches(feed: Feed) -> None:
    layer = nn.BatchNorm2d(3)
    reestimate(layer, feed, CPU, batch_size=100, seed=5, frozen_too=True)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(5))
    with working():
        batches = [images for images, _, _ in feed.batches(order, 100)]
    means = torch.stack([batch.mean((0, 2, 3)) for batch in batches])
    variances = torch.stack([batch.var((0, 2, 3)) for batch in batches])
    torch.testing.assert_close(layer.running_mean, means.mean(0))
    torch.testing.assert_close(layer.running_var, variances.mean(0))
    assert (layer.momentum, layer.training) == (0.1, False)


def test_all_batches_have_one_size_and_are_enough(feed: Feed) -> None:
    sizes: list[int] = []

    class Listening(nn.BatchNorm2d):
        def forward(self, images: Tensor) -> Tensor:
            sizes.append(len(images))
            return super().forward(images)

    reestimate(Listening(3), feed, CPU, batch_size=128, seed=0, frozen_too=True)
    assert sizes == [128, 128]
    sizes.clear()
    reestimate(Listening(3), feed, CPU, batch_size=1, seed=0, frozen_too=True)
    assert sizes == [64] * 4
    sizes.clear()
    reestimate(Listening(3), feed, CPU, batch_size=500, seed=0, frozen_too=True)
    assert sizes == [300]
    assert IMAGES >= 1000
    # Of large images as many as are evaluated at a time, unless more are trained with.
    large = Feed(Split(np.zeros((12, 3, 512, 512), np.uint8), np.zeros(12, np.int64)), CPU.device)
    for batch_size, wanted in ((2, [5, 5]), (6, [6, 6])):
        sizes.clear()
        reestimate(Listening(3), large, CPU, batch_size, seed=0, frozen_too=True)
        assert sizes == wanted


class Frozen(nn.Module):
    """Keeps the statistics of its first layer fixed, as detection networks do."""

    def __init__(self) -> None:
        super().__init__()
        self.fixed, self.free = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.drop = nn.Dropout(0.99)

    def train(self, mode: bool = True) -> Frozen:
        super().train(mode)
        self.fixed.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        scaled: Tensor = self.drop(self.free(self.fixed(images)))
        return scaled


@pytest.mark.parametrize("frozen_too", [True, False])
def test_frozen_layers_change_only_with_the_structure(feed: Feed, frozen_too: bool) -> None:
    module = Frozen()
    reestimate(module, feed, CPU, batch_size=100, seed=0, frozen_too=frozen_too)
    assert bool(module.fixed.running_mean.any()) is frozen_too  # type: ignore[union-attr]
    assert bool(module.free.running_mean.ne(0).all())  # type: ignore[union-attr]
    # Dropout would have multiplied what the variance is of.
    assert not any(layer.training for layer in module.modules())


class FrozenByItself(nn.BatchNorm2d):
    """Another way to freeze a layer."""

    def train(self, mode: bool = True) -> FrozenByItself:
        super().train(mode)
        self.training = False
        return self


def statistics(layer: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Its running mean and variance, ``[channels]`` each."""
    assert layer.running_mean is not None
    assert layer.running_var is not None
    return layer.running_mean, layer.running_var


@pytest.mark.parametrize("frozen_too", [True, False])
def test_a_layer_that_freezes_itself_is_frozen(feed: Feed, frozen_too: bool) -> None:
    fixed, free = FrozenByItself(3), nn.BatchNorm2d(3)
    reestimate(nn.Sequential(fixed, free), feed, CPU, 100, seed=0, frozen_too=frozen_too)
    plain = nn.BatchNorm2d(3)
    reestimate(plain, feed, CPU, 100, seed=0, frozen_too=True)
    wanted = plain if frozen_too else nn.BatchNorm2d(3)
    torch.testing.assert_close(statistics(fixed), statistics(wanted))


class Constant(nn.BatchNorm2d):
    """Normalises by its statistics in training too, and learns none."""

    def forward(self, images: Tensor) -> Tensor:
        return F.batch_norm(images, self.running_mean, self.running_var, eps=self.eps)


@pytest.mark.parametrize("frozen_too", [True, False])
def test_a_layer_that_learns_no_statistics_keeps_and_uses_them(
    feed: Feed, frozen_too: bool
) -> None:
    fixed, after, plain = Constant(3), nn.BatchNorm2d(3), nn.BatchNorm2d(3)
    for value, constant in zip(statistics(fixed), (0.25, 4.0), strict=True):
        nn.init.constant_(value, constant)
    reestimate(nn.Sequential(fixed, after), feed, CPU, 100, seed=0, frozen_too=frozen_too)
    assert [value.tolist() for value in statistics(fixed)] == [[0.25] * 3, [4.0] * 3]
    reestimate(plain, feed, CPU, 100, seed=0, frozen_too=True)
    seen = (statistics(plain)[0] - 0.25) / 2
    torch.testing.assert_close(statistics(after)[0], seen, rtol=1e-4, atol=1e-4)


class Ghost(nn.BatchNorm2d):
    """Normalises halves of a batch by themselves, and counts no batches."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.num_batches_tracked = None

    def forward(self, images: Tensor) -> Tensor:
        assert self.momentum is not None
        halves = [
            F.batch_norm(
                half, self.running_mean, self.running_var, None, None, self.training, self.momentum
            )
            for half in images.chunk(2)
        ]
        return torch.cat(halves)


class Twice(nn.Module):
    """Calls one layer for the images and for their negative."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, images: Tensor) -> Tensor:
        both: Tensor = self.norm(images) + self.norm(-images)
        return both


def test_layers_of_other_kinds_learn_the_mean_too(feed: Feed) -> None:
    plain, ghost, twice = nn.BatchNorm2d(3), Ghost(3), Twice()
    for module in (plain, ghost, twice):
        reestimate(module, feed, CPU, 100, seed=0, frozen_too=True)
    torch.testing.assert_close(statistics(ghost), statistics(plain), rtol=0.05, atol=0.05)
    assert ghost.momentum == 0.1
    # All calls count alike.
    torch.testing.assert_close(twice.norm.running_mean, torch.zeros(3), rtol=0, atol=1e-6)


def test_statistics_that_were_infinite_are_forgotten(feed: Feed) -> None:
    layer = nn.BatchNorm2d(3)
    for value, spoilt in zip(statistics(layer), (torch.nan, torch.inf), strict=True):
        nn.init.constant_(value, spoilt)
    reestimate(layer, feed, CPU, 100, seed=0, frozen_too=True)
    assert all(value.isfinite().all() for value in statistics(layer))


@pytest.mark.parametrize(
    "module",
    [nn.Conv2d(3, 2, 1), nn.BatchNorm2d(3, track_running_stats=False), nn.GroupNorm(1, 3)],
)
def test_networks_without_statistics_stay_as_they_are(feed: Feed, module: nn.Module) -> None:
    before = {name: value.clone() for name, value in module.state_dict().items()}
    reestimate(module, feed, CPU, batch_size=100, seed=0, frozen_too=True)
    assert {n: v.tolist() for n, v in module.state_dict().items()} == {
        n: v.tolist() for n, v in before.items()
    }


def test_a_network_whose_statistics_move_slowly_recovers(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A momentum of 0.01 is TensorFlow's habit: a few dozen steps do not move the statistics.
    taught, pruned = bench.teacher("slow"), bench.prune("slow", 0.5)
    start = bench.do(bench.reestimate_step(pruned.network))
    step = bench.finetune_step("slow", epochs=6.0, learning_rate=0.05)
    student = bench.do(step)
    assert student.val_accuracy > max(taught.val_accuracy - 0.15, start.val_accuracy)
    # What is scored is what is kept, and what would be exported.
    kept = load(student.network, bench.store)
    assert all(m == 0.01 for m in _momenta(kept))
    variances = [
        bench.weights(network)["branch.1.running_var"]
        for network in (pruned.network, start.network, student.network)
    ]
    assert not torch.equal(variances[0], variances[1])
    assert not torch.equal(variances[1], variances[2])
    # The same training without it ends with others, and begun without it is worth little.
    monkeypatch.setattr(finetune, "reestimate", lambda *args, **kwargs: None)
    unmoved = finetune.run(step, bench.store)
    running = bench.weights(unmoved.network)["branch.1.running_var"]
    own = bench.weights(student.network)["branch.1.running_var"]
    again = bench.do(bench.reestimate_step(unmoved.network)).network
    assert not torch.allclose(running, own, rtol=0.01)
    assert torch.allclose(bench.weights(again)["branch.1.running_var"], own, rtol=0.01)
    stale = finetune.run(replace(step, start=pruned.network), bench.store)
    assert stale.val_accuracy < student.val_accuracy - 0.1


def _momenta(module: nn.Module) -> list[float | None]:
    return [layer.momentum for layer in module.modules() if isinstance(layer, nn.BatchNorm2d)]


def test_networks_whose_statistics_were_right_hardly_change(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teacher, "reestimate", lambda *args, **kwargs: None)
    for name in ("resnet8", "ds_cnn"):
        running = teacher.run(bench.teach_step(name), bench.store)
        again = bench.do(bench.reestimate_step(running.network))
        assert again.network.weights != running.network.weights
        assert abs(again.val_accuracy - running.val_accuracy) < 0.02
