"""A network where a step wants it: on its device, in its arithmetic and in its memory layout."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

from search.networks.networks import Preprocessed
from search.networks.training import Placement, trying_own_layers
from search.records.steps.training import FindRate, Finetune, Reestimate, Teach

R = TypeVar("R")


def use_placed(
    step: Teach | Reestimate | FindRate | Finetune,
    make: Callable[[], nn.Module],
    use: Callable[[Preprocessed, Placement], R],
) -> R:
    """Places a network as ``step`` says, and does something with it there.

    Args:
        step: Says where, and what the network's images are like.
        make: Returns the network; called once more where faster layers of this project fail.
        use: Given the network with its normalisation, which takes pixels in 0..1, and its place.
    """
    placement = Placement(torch.device(step.device), step.precision, step.layout)

    def place(own_layers: bool) -> Preprocessed:
        module = Preprocessed(make(), step.data.mean, step.data.std)
        placement.place(module, step.data.image_shape, own_layers)
        return module

    return trying_own_layers(place, lambda module: use(module, placement))
