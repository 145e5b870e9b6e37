"""The plain convolutional network."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Cnn(nn.Module):
    """Convolution 3x3, ReLU, max-pool 2x2, dense, ReLU, dense.

    Takes normalised images ``[N, channels, height, width]`` and gives logits ``[N, classes]``.
    Nearly all weights stand in the first dense layer.

    Source: LeCun et al., "Gradient-based learning applied to document recognition", 1998, for the
    form: convolution and pooling, then dense layers.

    Args:
        image_shape: ``(channels, height, width)`` of an image in pixels.
        classes: Number of logits.
        width: Channels of the convolution; the hidden dense layer has twice as many.

    Raises:
        ValueError: If pooling would leave nothing of the image.
    """

    def __init__(self, image_shape: tuple[int, int, int], classes: int, width: int) -> None:
        super().__init__()
        channels, rows, columns = image_shape
        if min(rows, columns) < 2:
            raise ValueError(f"cnn needs images of at least 2x2 pixels, got {rows}x{columns}")
        self.conv = nn.Conv2d(channels, width, 3, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.hidden = nn.Linear(width * (rows // 2) * (columns // 2), 2 * width)
        self.head = nn.Linear(2 * width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits ``[N, classes]`` of images ``[N, channels, height, width]``."""
        x = self.pool(F.relu(self.conv(images)))
        logits: Tensor = self.head(F.relu(self.hidden(x.flatten(1))))
        return logits
