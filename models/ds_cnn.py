"""The depthwise-separable network."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

BLOCKS = 4
# Below this many pixels a stride of 2 would leave the blocks too little to look at.
SMALLEST_STRIDED = 24


class DsCnn(nn.Module):
    """A 3x3 convolution, then four depthwise-separable blocks of equal width.

    Takes normalised images ``[N, channels, height, width]`` and gives logits ``[N, classes]``.
    The reference hears spectrograms: its first kernel is 10x4 and it drops out activations. Here
    the kernel is square and has stride 2 only where both sides have at least 24 pixels.

    Source: Banbury et al., "MLPerf Tiny Benchmark", NeurIPS 2021 (keyword spotting); Zhang et
    al., "Hello Edge: keyword spotting on microcontrollers", 2017.

    Args:
        image_shape: ``(channels, height, width)`` of an image in pixels.
        classes: Number of logits.
        width: Channels of every layer.

    Raises:
        ValueError: If an image is smaller than a kernel.
    """

    def __init__(self, image_shape: tuple[int, int, int], classes: int, width: int) -> None:
        super().__init__()
        channels, rows, columns = image_shape
        if min(rows, columns) < 3:
            raise ValueError(f"ds_cnn needs images of at least 3x3 pixels, got {rows}x{columns}")
        stride = 2 if min(rows, columns) >= SMALLEST_STRIDED else 1
        self.conv = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.blocks = nn.Sequential(*(SeparableBlock(width) for _ in range(BLOCKS)))
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits ``[N, classes]`` of images ``[N, channels, height, width]``."""
        x = self.blocks(F.relu(self.norm(self.conv(images))))
        # Adaptive pooling is exported as ReduceMean, which the runtime does not do in integers.
        logits: Tensor = self.head(F.avg_pool2d(x, x.shape[2:]).flatten(1))
        return logits


class SeparableBlock(nn.Module):
    """A 3x3 convolution of each channel by itself, then a 1x1 convolution across them.

    Args:
        width: Channels that come in and go out.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.pointwise = nn.Conv2d(width, width, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[N, width, H, W]`` to the same shape."""
        y = F.relu(self.norm1(self.depthwise(x)))
        return F.relu(self.norm2(self.pointwise(y)))
