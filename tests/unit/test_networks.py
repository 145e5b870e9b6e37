"""Counting the operations of networks, against figures by hand."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from search.networks.networks import count_macs


class Pair(nn.Conv2d):
    """Gives its channels in two parts, as octave convolutions do."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        first, second = super().forward(images).chunk(2, dim=1)
        return first, second


class Joined(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pair, self.head = Pair(3, 4, 3, padding=1), nn.Linear(4, 10)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.cat(self.pair(images), dim=1).mean((2, 3)))
        return logits


def test_layers_of_several_tensors_are_counted_whole() -> None:
    assert count_macs(Joined(), (3, 8, 8)) == 4 * 8 * 8 * 3 * 9 + 4 * 10


def test_a_transposed_convolution_spreads_every_input() -> None:
    network = nn.Sequential(
        nn.ConvTranspose2d(3, 5, 2, stride=2), nn.Flatten(), nn.Linear(5 * 8 * 8, 2)
    )
    assert count_macs(network, (3, 4, 4)) == 3 * 4 * 4 * 5 * 2 * 2 + 5 * 8 * 8 * 2
