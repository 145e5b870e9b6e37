"""Small networks, each with one way in which the channels of its layers hang together."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.zoo import WIDTH, Zoo, conv

HALF = WIDTH // 2


class FrozenNorm(nn.BatchNorm2d):
    """Stays in evaluation mode and learns nothing, as when a detector is trained on few images."""

    def __init__(self, features: int) -> None:
        super().__init__(features)
        self.requires_grad_(False)

    def train(self, mode: bool = True) -> FrozenNorm:
        """Stays as it is."""
        super().train(False)
        return self


class BufferNorm(nn.Module):
    """Batch normalisation made of buffers alone, as torchvision's ``FrozenBatchNorm2d``."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        for name in ("weight", "running_var"):
            self.register_buffer(name, torch.ones(features))
        for name in ("bias", "running_mean"):
            self.register_buffer(name, torch.zeros(features))

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[N, C, H, W]`` to the same shape."""
        scale = self.weight * (self.running_var + 1e-5).rsqrt()
        shift = self.bias - self.running_mean * scale
        return x * scale.reshape(1, -1, 1, 1) + shift.reshape(1, -1, 1, 1)


class Gain(nn.Module):
    """A layer of the user's own with a number for every channel."""

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[N, C, H, W]`` to the same shape."""
        return x * self.weight.view(-1, 1, 1)


class Added(nn.Module):
    """A residual sum."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.inner = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[N, C, H, W]`` to the same shape."""
        return torch.relu(x + self.inner(x))


class Shuffle(nn.Module):
    """Takes one channel of every group in turn (ShuffleNet, arXiv 1707.01083)."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[N, C, H, W]`` to the same shape."""
        n, channels, height, width = x.shape
        grouped = x.view(n, self.groups, channels // self.groups, height, width)
        return grouped.transpose(1, 2).reshape(n, channels, height, width)


class Halves(nn.Module):
    """Computes with half of the channels and shuffles (ShuffleNetV2, arXiv 1807.11164)."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(HALF, HALF, 1), nn.BatchNorm2d(HALF), nn.ReLU(),
            nn.Conv2d(HALF, HALF, 3, padding=1, groups=HALF), nn.BatchNorm2d(HALF),
            nn.Conv2d(HALF, HALF, 1), nn.BatchNorm2d(HALF), nn.ReLU(),
        )  # fmt: skip
        self.shuffle = Shuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[N, WIDTH, H, W]`` to the same shape."""
        left, right = x.chunk(2, dim=1)
        mixed: Tensor = self.shuffle(torch.cat([left, self.branch(right)], 1))
        return mixed


class PartialStage(nn.Module):
    """Computes with some channels and hands the rest on (CSPNet, arXiv 1911.11929)."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(WIDTH, WIDTH, 1)
        self.inner = nn.Sequential(
            nn.Conv2d(HALF, HALF, 3, padding=1), nn.BatchNorm2d(HALF), nn.ReLU(),
            nn.Conv2d(HALF, HALF, 3, padding=1), nn.ReLU(),
        )  # fmt: skip
        self.last = nn.Conv2d(3 * HALF, WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[N, WIDTH, H, W]`` to the same shape."""
        left, right = torch.split(self.first(x), [HALF, HALF], dim=1)
        joined: Tensor = self.last(torch.cat([left, right, self.inner(right)], 1))
        return joined


class Excited(nn.Module):
    """A gate for every channel, from the means of all (SENet, arXiv 1709.01507)."""

    def __init__(self) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(WIDTH, 8, 1), nn.Conv2d(8, WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[N, WIDTH, H, W]`` to the same shape."""
        gates: Tensor = self.expand(torch.relu(self.reduce(x.mean((2, 3), keepdim=True))))
        return x * gates.sigmoid()


class Attended(nn.Module):
    """Gates for channels, then for pixels, by means and maxima (CBAM, arXiv 1807.06521)."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Sequential(nn.Linear(WIDTH, 8), nn.ReLU(), nn.Linear(8, WIDTH))
        self.spatial = nn.Conv2d(2, 1, 7, padding=3)

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[N, WIDTH, H, W]`` to the same shape."""
        gates = self.shared(x.mean((2, 3))) + self.shared(x.amax((2, 3)))
        x = x * gates.sigmoid().unsqueeze(-1).unsqueeze(-1)
        maps = torch.cat([x.mean(1, keepdim=True), x.max(1, keepdim=True).values], 1)
        weights: Tensor = self.spatial(maps)
        return x * weights.sigmoid()


def normed(norm: nn.Module) -> nn.Module:
    return Zoo(nn.Sequential(conv(), norm, nn.ReLU(), conv()))


def bare_norm() -> nn.Module:
    return normed(nn.BatchNorm2d(WIDTH, affine=False))


def frozen_norm() -> nn.Module:
    return normed(FrozenNorm(WIDTH))


def buffer_norm() -> nn.Module:
    return normed(BufferNorm(WIDTH))


def shared_norm() -> nn.Module:
    norm = nn.BatchNorm2d(WIDTH)
    return Zoo(nn.Sequential(conv(), norm, nn.ReLU(), conv(), norm))


def two_names() -> nn.Module:
    """One convolution in two places."""
    layer = conv()
    return Zoo(nn.Sequential(layer, nn.ReLU(), layer, nn.ReLU(), conv()))


def tied_gains() -> nn.Module:
    """Two layers of the user's own with one parameter."""
    weight = nn.Parameter(torch.rand(WIDTH))
    return Zoo(nn.Sequential(conv(), Gain(weight), nn.ReLU(), conv(), Gain(weight)))


def tied_norms() -> nn.Module:
    """Two normalisations with one weight."""
    first, second = nn.BatchNorm2d(WIDTH), nn.BatchNorm2d(WIDTH)
    second.weight = first.weight
    return Zoo(nn.Sequential(conv(), first, nn.ReLU(), conv(), second))


def nested() -> nn.Module:
    inner = nn.Sequential(nn.BatchNorm2d(WIDTH), nn.Sequential(nn.ReLU()))
    return Zoo(nn.Sequential(nn.Sequential(conv(), inner), nn.Sequential(nn.Sequential(conv()))))


def residual() -> nn.Module:
    norms = nn.BatchNorm2d(WIDTH), nn.BatchNorm2d(WIDTH)
    return Zoo(nn.Sequential(Added(conv(), norms[0], nn.ReLU(), conv(), norms[1])))


def depthwise() -> nn.Module:
    point = nn.Conv2d(WIDTH, WIDTH, 1)
    first, second = nn.BatchNorm2d(WIDTH), nn.BatchNorm2d(WIDTH)
    return Zoo(nn.Sequential(conv(groups=WIDTH), first, nn.ReLU6(), point, second, nn.ReLU6()))


def shuffled() -> nn.Module:
    def pointwise() -> tuple[nn.Module, nn.Module]:
        return nn.Conv2d(WIDTH, WIDTH, 1, groups=4), nn.BatchNorm2d(WIDTH)

    middle = Shuffle(4), conv(groups=WIDTH), nn.BatchNorm2d(WIDTH)
    return Zoo(nn.Sequential(Added(*pointwise(), nn.ReLU(), *middle, *pointwise())))


def halves() -> nn.Module:
    return Zoo(Halves())


def partial_stage() -> nn.Module:
    return Zoo(PartialStage())


def excited() -> nn.Module:
    return Zoo(nn.Sequential(conv(), nn.ReLU(), Excited()))


def attended() -> nn.Module:
    return Zoo(nn.Sequential(conv(), nn.ReLU(), Attended()))


def all_shuffled() -> nn.Module:
    return Zoo(nn.Sequential(Shuffle(2), Shuffle(4)))


def all_split() -> nn.Module:
    class Swapped(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            left, right = x.chunk(2, dim=1)
            return torch.cat([right, left], 1)

    return Zoo(Swapped())
