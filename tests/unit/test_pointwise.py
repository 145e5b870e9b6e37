"""Pointwise convolutions with a stride, against torch's own in the layout that it can compute."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from search.pointwise import StridedPointwise, guard_pointwise


@pytest.mark.parametrize("channels", [1, 3, 4, 7, 12])
@pytest.mark.parametrize("side", [1, 7, 8])
def test_results_and_gradients_are_torchs(channels: int, side: int) -> None:
    torch.manual_seed(0)
    plain = nn.Conv2d(channels, 12, 1, stride=2)
    safe = copy.deepcopy(plain).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    guard_pointwise(safe)
    assert type(safe) is StridedPointwise
    images = torch.randn(4, channels, side, side)
    found = []
    # torch's layer gets channels first: with channels last it writes outside of its memory.
    for layer, layout in ((plain, torch.contiguous_format), (safe, torch.channels_last)):
        pixels = images.clone(memory_format=layout).requires_grad_()
        output = layer(pixels)
        output.square().sum().backward()
        slopes = [value.grad for value in (pixels, *layer.parameters())]
        found.append((output, *slopes))
    for wanted, got in zip(*found, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "layer",
    [nn.Conv2d(4, 8, 1), nn.Conv2d(4, 8, 3, 2), nn.Conv2d(16, 8, 1, 2), nn.Conv2d(4, 8, 1, 2, 1)],
    ids=str,
)
def test_other_layers_stay_torchs(layer: nn.Conv2d) -> None:
    guard_pointwise(layer)
    assert type(layer) is nn.Conv2d
