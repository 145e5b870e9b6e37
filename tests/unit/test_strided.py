"""Narrow pointwise convolutions that skip pixels train as they should, and the process lives."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from search.networks.strided import SkippingConv2d, skip_first
from search.networks.training import Placement


@pytest.mark.parametrize("channels", [1, 2, 4, 6, 8, 12])
@pytest.mark.parametrize("stride", [2, (2, 1), 3])
def test_it_gives_the_same_numbers(channels: int, stride: int | tuple[int, int]) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(channels, 8, 1, stride)
    exact = copy.deepcopy(layer).double()
    shape = (channels, 15, 14)
    placed = Placement(torch.device("cpu"), "float32", "channels_last").place(layer, shape)
    assert type(placed) is SkippingConv2d
    for _ in range(20):  # the kernel at fault harms others' memory, not always at once
        images = torch.rand(32, *shape)
        ours = images.clone(memory_format=torch.channels_last).requires_grad_(True)
        theirs = images.double().requires_grad_(True)
        for module, given in ((placed, ours), (exact, theirs)):
            module.zero_grad()
            module(given).square().sum().backward()
        torch.testing.assert_close(placed(ours).double(), exact(theirs), rtol=1e-5, atol=1e-5)
        assert ours.grad is not None
        assert theirs.grad is not None
        torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=1e-4, atol=1e-4)
        for name, parameter in placed.named_parameters():
            wanted = exact.get_parameter(name).grad
            assert parameter.grad is not None
            assert wanted is not None
            torch.testing.assert_close(parameter.grad.double(), wanted, rtol=1e-4, atol=1e-2)


def test_it_takes_one_image_without_a_batch() -> None:
    layer = nn.Conv2d(4, 8, 1, 2)
    image = torch.rand(4, 7, 8)
    wanted = layer(image)
    skip_first(layer)
    assert type(layer) is SkippingConv2d
    torch.testing.assert_close(layer(image), wanted)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 8, 1),
        nn.Conv2d(4, 8, 3, 2),
        nn.Conv2d(4, 8, 1, 2, padding=1),
        nn.Conv2d(16, 8, 1, 2),
    ],
    ids=str,
)
def test_others_stay_as_they_are(layer: nn.Conv2d) -> None:
    placed = Placement(torch.device("cpu"), "float32", "channels_last").place(
        layer, (layer.in_channels, 8, 8)
    )
    assert type(placed) is nn.Conv2d
