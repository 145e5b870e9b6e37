"""Statistics of batch normalisation are those of the weights, and the user's frozen ones stay."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from search.batch_statistics import IMAGES, reestimate
from search.benchmark.stillness import working
from search.data.splits import Split
from search.networks import load
from search.stages import finetune
from search.steps import FindRate
from search.training import Feed, Placement
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
    teacher, pruned = bench.teacher("slow"), bench.prune("slow", 0.5)
    start = bench.do(bench.reestimate_step(pruned.network))
    step = bench.finetune_step("slow", epochs=6.0, learning_rate=0.05)
    student = bench.do(step)
    assert student.val_accuracy > max(teacher.val_accuracy - 0.15, start.val_accuracy)
    # What is scored is what is kept, and what would be exported.
    kept = load(student.network, bench.store)
    assert all(m == 0.01 for m in _momenta(kept))
    variances = [
        bench.weights(network)["branch.1.running_var"]
        for network in (pruned.network, start.network, student.network)
    ]
    assert not torch.equal(variances[0], variances[1])
    assert not torch.equal(variances[1], variances[2])
    # The same training without it is worth little.
    monkeypatch.setattr(finetune, "reestimate", lambda *args, **kwargs: None)
    stale = finetune.run(replace(step, start=pruned.network), bench.store)
    assert stale.val_accuracy < student.val_accuracy - 0.1


def _momenta(module: nn.Module) -> list[float | None]:
    return [layer.momentum for layer in module.modules() if isinstance(layer, nn.BatchNorm2d)]


def test_networks_whose_statistics_were_right_hardly_change(bench: Workbench) -> None:
    for name in ("resnet8", "ds_cnn"):
        teacher = bench.teacher(name)
        again = bench.do(bench.reestimate_step(teacher.network))
        assert abs(again.val_accuracy - teacher.val_accuracy) < 0.02


def test_a_found_rate_is_a_sound_one(bench: Workbench) -> None:
    start = bench.do(bench.reestimate_step(bench.prune("resnet8", 0.5).network))
    found = bench.do(
        FindRate(
            start.network, bench.teacher("resnet8").logits, bench.data, 0.0001, 64, "float32",
            "channels_last", "cpu", seed=0,
        )
    )  # fmt: skip
    rates = [rate for rate, _ in found.tried]
    assert rates == sorted(rates)
    assert rates[0] < found.learning_rate < rates[-1]
    common = {"optimizer": "adamw", "schedule": "one_cycle", "epochs": 2.0, "start": start.network}
    by_rate = {
        factor: bench.do(
            bench.finetune_step("resnet8", learning_rate=factor * found.learning_rate, **common)
        ).val_accuracy
        for factor in (0.03, 1.0)
    }
    assert by_rate[1.0] > by_rate[0.03]
