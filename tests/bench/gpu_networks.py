"""Networks that ``make gpu`` trains: each takes grey images of 8 by 8 pixels, and enlarges them."""

from __future__ import annotations

import importlib
import importlib.util

import torch.nn.functional as F
from torch import Tensor, nn

from tests import families, zoo

# The file of pytorchcv, where that is installed, that holds it, and the pixels of an image's side.
PUBLISHED = {
    "resnet20_cifar10": ("resnet_cifar", 32),
    "preresnet20_cifar10": ("preresnet_cifar", 32),
    "seresnet20_cifar10": ("seresnet_cifar", 32),
    "densenet40_k12_cifar10": ("densenet_cifar", 32),
    "mobilenet_w1": ("mobilenet", 64),
    "mobilenetv2_w1": ("mobilenetv2", 64),
    "mobilenetv3_small_w1": ("mobilenetv3", 64),
    "shufflenet_g1_w1": ("shufflenet", 64),
    "squeezenet_v1_1": ("squeezenet", 64),
    "regnetx002": ("regnet", 64),
    "dla34": ("dla", 64),
}
OWN = (
    "group_norm", "layer_norm", "instance_norm", "prelu", "transposed", "shared", "tied",
    "grouped", "viewed", "concatenated",
)  # fmt: skip
# The published EfficientNet insists on 224 pixels, which the CPU is too slow for.
FAMILIES = ("inception", "dla", "hrnet", "vgg", "unet", "efficientnet")


class Enlarged(nn.Module):
    """Enlarges images for a network that wants larger ones, perhaps in colour.

    Args:
        network: Takes ``[N, channels, size, size]``.
        channels: Of its images.
        size: Of their sides, in pixels.
    """

    def __init__(self, network: nn.Module, channels: int, size: int) -> None:
        super().__init__()
        self.network = network
        self.channels = channels
        self.size = size

    def forward(self, images: Tensor) -> Tensor:
        """Returns what the network gives for images ``[N, 1, H, W]``."""
        large = F.interpolate(images, size=(self.size, self.size), mode="nearest")
        logits: Tensor = self.network(large.expand(-1, self.channels, -1, -1))
        return logits


def names() -> list[str]:
    """Lists what ``build`` can build here."""
    return [name for name in (*PUBLISHED, *OWN, *FAMILIES) if _is_here(name)]


def left_out() -> list[str]:
    """Lists what ``build`` could build if pytorchcv were installed."""
    return [name for name in (*PUBLISHED, *FAMILIES) if not _is_here(name)]


def _is_here(name: str) -> bool:
    is_foreign = name in PUBLISHED or (name in FAMILIES and families.FAMILIES[name].module)
    return not is_foreign or importlib.util.find_spec("pytorchcv") is not None


def build(name: str) -> nn.Module:
    """Builds the network of that name for ten classes, with random weights and no dropout.

    A GPU would draw other numbers for dropout than the CPU does.
    """
    module = _build(name)
    for layer in module.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    return module


def _build(name: str) -> nn.Module:
    if name in OWN:
        return Enlarged(getattr(zoo, name)(), 1, 28)
    if name in FAMILIES:
        return Enlarged(families.build(name), 3, families.FAMILIES[name].side)
    file, size = PUBLISHED[name]
    # Not through its own list of models, which imports torchvision.
    make = getattr(importlib.import_module(f"pytorchcv.models.{file}"), name)
    given = {} if name.endswith("cifar10") else {"num_classes": 10, "in_size": (size, size)}
    return Enlarged(families.for_any_size(make(pretrained=False, **given)), 3, size)
