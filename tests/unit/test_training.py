"""Where and how a network is trained."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from search.networks.training import Placement
from tests import zoo

SHAPE = (1, 28, 28)


@pytest.mark.parametrize("name", ["viewed", "group_norm"])
def test_a_placed_network_takes_channels_last_images(name: str) -> None:
    torch.manual_seed(0)
    module = getattr(zoo, name)().train()
    images = torch.rand(3, *SHAPE)
    expected = module(images)
    placed = Placement(torch.device("cpu"), "float32", "channels_last").place(module, SHAPE)
    assert placed.training
    logits = placed(images.to(memory_format=torch.channels_last))
    torch.testing.assert_close(logits, expected)
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in placed.parameters())


def test_other_errors_of_a_network_pass() -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        Placement(torch.device("cpu"), "float32", "channels_last").place(nn.Linear(5, 2), SHAPE)
