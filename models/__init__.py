"""The project's own networks by name.

Imports inside of this folder are relative: the search calls it ``search._models``, because
``models`` is what users call a folder of their own.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from .cnn import Cnn
from .ds_cnn import DsCnn
from .resnet8 import Resnet8

ImageShape = tuple[int, int, int]
# To add a network: write its file, and name its class here.
NETWORKS: dict[str, Callable[[ImageShape, int, int], nn.Module]] = {
    "cnn": Cnn,
    "resnet8": Resnet8,
    "ds_cnn": DsCnn,
}


def build(name: str, image_shape: ImageShape, classes: int, width: int) -> nn.Module:
    """Builds a network with fresh weights, drawn from torch's generator.

    Args:
        name: A key of ``NETWORKS``.
        image_shape: ``(channels, height, width)`` of an image in pixels.
        classes: Number of logits.
        width: Channels of the network's first layer.

    Returns:
        A module from normalised images ``[N, *image_shape]`` to logits ``[N, classes]``.

    Raises:
        ValueError: If the name is unknown or an image is too small for the network.
    """
    if name not in NETWORKS:
        raise ValueError(f"unknown network {name!r}; give one of {', '.join(NETWORKS)}")
    return NETWORKS[name](image_shape, classes, width)
