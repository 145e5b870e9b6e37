"""Networks that users might bring, each with something that the built-in ones lack."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH, CLASSES = 32, 10


class Zoo(nn.Module):
    """A first convolution, a body, a mean over the image, and a head.

    Args:
        body: ``[N, WIDTH, H, W]`` to ``[N, features, H', W']``.
        features: Channels that come out of the body.
    """

    def __init__(self, body: nn.Module, features: int = WIDTH) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, WIDTH, 3, 4, padding=1)
        self.body = body
        self.head = nn.Linear(features, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits ``[N, CLASSES]`` of images ``[N, 1, H, W]``."""
        logits: Tensor = self.head(self.body(F.relu(self.stem(images))).mean((2, 3)))
        return logits


class ChannelsLast(nn.Module):
    """A layer that wants channels last, as ConvNeXt's."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[N, C, H, W]`` to ``[N, C', H, W]``."""
        y: Tensor = self.layer(x.permute(0, 2, 3, 1))
        return y.permute(0, 3, 1, 2)


class Twice(nn.Module):
    """The same layer two times over."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[N, C, H, W]`` to the same shape."""
        y: Tensor = self.layer(self.layer(x))
        return y


class Fire(nn.Module):
    """Two branches side by side, as in SqueezeNet."""

    def __init__(self) -> None:
        super().__init__()
        self.narrow = conv(16)
        self.left = nn.Conv2d(16, 16, 1)
        self.right = nn.Conv2d(16, 24, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[N, WIDTH, H, W]`` to ``[N, 40, H, W]``."""
        y = F.relu(self.narrow(x))
        return torch.cat([F.relu(self.left(y)), F.relu(self.right(y))], 1)


class FixedWidth(nn.Module):
    """Code that writes the channel count down instead of asking for it."""

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[N, WIDTH, H, W]`` to the same shape."""
        return x.reshape(-1, WIDTH, x.shape[2] * x.shape[3]).reshape(-1, WIDTH, *x.shape[2:])


class Viewed(nn.Module):
    """Views a convolution's output as a vector, which channels-last memory does not allow."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, WIDTH, 3, 4, padding=1)
        self.head = nn.Linear(WIDTH * 49, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits ``[N, CLASSES]`` of images ``[N, 1, 28, 28]``."""
        features = F.relu(self.stem(images))
        logits: Tensor = self.head(features.view(features.size(0), -1))
        return logits


class Asserting(nn.Module):
    """Code that insists on its channel count without a word."""

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[N, WIDTH, H, W]`` to the same shape."""
        assert x.shape[1] == WIDTH
        return x


class NeedsTwelve(nn.Module):
    """Code that some widths do not suit."""

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[N, C, H, W]`` to the same shape."""
        assert x.shape[1] >= 12
        return x


class Echo(nn.Module):
    """Logits that are mixed with each other: the outputs are a layer's inputs too."""

    def __init__(self) -> None:
        super().__init__()
        self.features = Zoo(conv(), WIDTH)
        self.mix = nn.Linear(CLASSES, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits ``[N, CLASSES]`` of images ``[N, 1, H, W]``."""
        logits: Tensor = self.features(images)
        mixed: Tensor = logits + self.mix(logits)
        return mixed


def conv(outputs: int = WIDTH, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(WIDTH, outputs, 3, padding=1, groups=groups)


def group_norm() -> nn.Module:
    return Zoo(nn.Sequential(conv(), nn.GroupNorm(4, WIDTH), nn.ReLU()))


def layer_norm() -> nn.Module:
    return Zoo(nn.Sequential(conv(groups=WIDTH), ChannelsLast(nn.LayerNorm(WIDTH)), conv()))


def instance_norm() -> nn.Module:
    return Zoo(nn.Sequential(conv(), nn.InstanceNorm2d(WIDTH, affine=True), nn.ReLU()))


def bare_batch_norm() -> nn.Module:
    norm = nn.BatchNorm2d(WIDTH, affine=False, track_running_stats=False)
    return Zoo(nn.Sequential(conv(), norm, nn.ReLU()))


def dense_batch_norm() -> nn.Module:
    dense = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH))
    return Zoo(nn.Sequential(conv(), ChannelsLast(dense), nn.BatchNorm2d(WIDTH)))


def prelu() -> nn.Module:
    return Zoo(nn.Sequential(conv(), nn.PReLU(WIDTH)))


def transposed() -> nn.Module:
    return Zoo(nn.Sequential(conv(), nn.ConvTranspose2d(WIDTH, WIDTH // 2, 2, 2)), WIDTH // 2)


def multiplied() -> nn.Module:
    """A depthwise convolution that makes two channels of each."""
    return Zoo(nn.Sequential(conv(2 * WIDTH, groups=WIDTH), nn.ReLU()), 2 * WIDTH)


def shared() -> nn.Module:
    return Zoo(Twice(conv()))


def tied() -> nn.Module:
    first, second = conv(), conv()
    second.weight = first.weight
    return Zoo(nn.Sequential(first, nn.ReLU(), second))


def grouped() -> nn.Module:
    return Zoo(nn.Sequential(conv(groups=4), nn.ReLU(), conv(), nn.ReLU(), conv()))


def frozen() -> nn.Module:
    return Zoo(nn.Sequential(conv(), nn.BatchNorm2d(WIDTH))).requires_grad_(False)


def viewed() -> nn.Module:
    return Viewed()


def asserting() -> nn.Module:
    return Zoo(nn.Sequential(conv(), Asserting()))


def weight_norm() -> nn.Module:
    """Weights that are computed from others."""
    return Zoo(nn.Sequential(conv(), nn.utils.parametrizations.weight_norm(conv()), conv()))


def needs_twelve() -> nn.Module:
    return Zoo(nn.Sequential(conv(), NeedsTwelve()))


def fixed_width() -> nn.Module:
    return Zoo(nn.Sequential(conv(), FixedWidth()))


def dense_only() -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16, CLASSES))


def echo() -> nn.Module:
    return Echo()


def concatenated() -> nn.Module:
    return Zoo(Fire(), 40)


class CountsChannels(nn.Module):
    """Code that computes with its own channel count, which tracing turns into a constant."""

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[N, C, H, W]`` to the same shape."""
        return x / x.shape[1]


class LooksAtBatch(nn.Module):
    """Code that treats a single image in another way: a trace keeps one way only."""

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[N, C, H, W]`` to the same shape."""
        return x if x.shape[0] > 1 else 2 * x


class LooksAtPixels(nn.Module):
    """Code whose way depends on the values, which no trace can follow."""

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[N, C, H, W]`` to the same shape."""
        return x if x.sum().item() > 0 else 2 * x


def counts_channels() -> nn.Module:
    return Zoo(nn.Sequential(conv(), CountsChannels()))


def looks_at_batch() -> nn.Module:
    return Zoo(nn.Sequential(conv(), LooksAtBatch()))


def looks_at_pixels() -> nn.Module:
    return Zoo(nn.Sequential(conv(), LooksAtPixels()))
