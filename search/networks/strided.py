"""Pointwise convolutions that skip pixels, as the shortcuts of residual networks do.

oneDNN's gradient of their weights writes past its memory where a channels-last image has fewer
channels than the processor's registers take: the process dies, hangs, or trains on rubbish. Pruned
networks are as narrow. Taking the pixels first gives the same numbers by another of its kernels.

Source: https://github.com/uxlfoundation/oneDNN/issues/6035, seen here with torch 2.13 on AVX2.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

LANES = 16  # float32 numbers in the widest register


def is_spoiled_by_channels_last(module: nn.Module) -> bool:
    """Tells networks that channels-last images are safe for only after ``skip_first``."""
    return any(type(layer) is nn.Conv2d and _is_at_risk(layer) for layer in module.modules())


def skip_first(module: nn.Module) -> None:
    """Makes every such Conv2d of ``module`` take its pixels first, in place.

    Names, parameters and results stay as they are.
    """
    for layer in module.modules():
        if type(layer) is nn.Conv2d and _is_at_risk(layer):
            layer.__class__ = SkippingConv2d


def _is_at_risk(layer: nn.Conv2d) -> bool:
    is_pointwise = layer.kernel_size == (1, 1) and layer.padding in ((0, 0), "valid")
    return is_pointwise and layer.stride != (1, 1) and layer.in_channels < LANES


class SkippingConv2d(nn.Conv2d):
    """Computes what ``nn.Conv2d`` computes with a kernel of one pixel."""

    def forward(self, images: Tensor) -> Tensor:
        """Maps ``[n, c, h, w]`` to ``[n, out_channels, h', w']``, or one image."""
        rows, columns = self.stride
        kept = images[..., ::rows, ::columns]
        return F.conv2d(kept, self.weight, self.bias, groups=self.groups)
