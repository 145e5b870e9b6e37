"""The residual network of MLPerf Tiny."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Resnet8(nn.Module):
    """Three residual blocks of ``width``, ``2 * width`` and ``4 * width`` channels.

    Takes normalised images ``[N, channels, height, width]`` and gives logits ``[N, classes]``.
    Against the reference, convolutions before a BatchNorm have no bias of their own (it would
    have no effect) and shortcut convolutions have a BatchNorm too, so a network of width 16 for
    3x32x32 images and 10 classes has 78 042 trainable values.

    Source: Banbury et al., "MLPerf Tiny Benchmark", NeurIPS 2021 (image classification); He et
    al., "Deep residual learning for image recognition", CVPR 2016.

    Args:
        image_shape: ``(channels, height, width)`` of an image in pixels.
        classes: Number of logits.
        width: Channels of the first stage.

    Raises:
        ValueError: If an image is smaller than the two strides of 2 reduce.
    """

    def __init__(self, image_shape: tuple[int, int, int], classes: int, width: int) -> None:
        super().__init__()
        channels, rows, columns = image_shape
        if min(rows, columns) < 4:
            raise ValueError(f"resnet8 needs images of at least 4x4 pixels, got {rows}x{columns}")
        self.conv = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.stages = nn.Sequential(
            Block(width, width, stride=1),
            Block(width, 2 * width, stride=2),
            Block(2 * width, 4 * width, stride=2),
        )
        self.head = nn.Linear(4 * width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits ``[N, classes]`` of images ``[N, channels, height, width]``."""
        x = self.stages(F.relu(self.norm(self.conv(images))))
        # Adaptive pooling is exported as ReduceMean, which the runtime does not do in integers.
        logits: Tensor = self.head(F.avg_pool2d(x, x.shape[2:]).flatten(1))
        return logits


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut, which is a 1x1 convolution where the shape changes.

    Args:
        inputs: Channels that come in.
        outputs: Channels that go out.
        stride: Of the first convolution and of the shortcut.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[N, inputs, H, W]`` to ``[N, outputs, ceil(H / stride), ceil(W / stride)]``."""
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))
