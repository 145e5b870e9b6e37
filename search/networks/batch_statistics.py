"""Running statistics of batch normalisation, taken anew for the weights that a network has now.

Training moves them towards what it sees, by a share a step. A few hundred steps move those of a
pruned network hardly at all where that share is a hundredth, as in networks that come from
TensorFlow, and evaluation with them is worthless however well the weights were trained.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from search.data import batch_of
from search.devices.stillness import working
from search.networks.training import Feed, Placement

IMAGES = 1024  # more changed no accuracy by more than chance (docs/LOG.md)
LEAST_BATCH = 64  # each batch is normalised by itself: smaller ones stray too far from all images


@working()
@torch.no_grad()
def reestimate(
    module: nn.Module,
    train: Feed,
    placement: Placement,
    batch_size: int,
    seed: int,
    frozen_too: bool,
) -> None:
    """Replaces all running statistics by the average over batches of training images, in place.

    Every layer normalises by each batch's own statistics meanwhile, as in training; dropout and
    the like are off. Layers that a network keeps in evaluation mode while it trains are *frozen*:
    their weights learn with fixed statistics. After pruning these belong to a network that is no
    more, and are taken anew too; after training they are what was trained with, and stay. So do
    those of a layer whose code normalises by them in training too.

    Source: Li et al. 2020, EagleEye (arXiv 2007.02491); Wu & Johnson 2021, Rethinking "Batch" in
    BatchNorm (arXiv 2105.07576), "precise BN".

    Args:
        module: In any mode; ends in evaluation mode.
        train: Training images.
        placement: Where ``module`` is.
        batch_size: Images that a network is trained with at a time. Fewer than ``LEAST_BATCH``
            become as many, or as many as are evaluated at a time where images are large: without
            gradients these take less memory than a step of training.
        seed: Chooses the images.
        frozen_too: Whether frozen layers are taken anew as well.
    """
    module.train()
    layers = [layer for layer in _layers(module) if frozen_too or layer.training]
    module.eval()
    if not layers:
        return
    size = min(max(batch_size, batch_of(train.image_shape, LEAST_BATCH)), len(train))
    whole = min(max(IMAGES, size), len(train)) // size * size  # every batch counts alike
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
    with _averaging(layers):
        for images, _, _ in train.batches(order[:whole], size):
            with placement.autocast():
                module(images)


def _layers(module: nn.Module) -> list[_BatchNorm]:
    return [
        layer
        for layer in module.modules()
        if isinstance(layer, _BatchNorm) and layer.running_mean is not None
    ]


@contextmanager
def _averaging(layers: list[_BatchNorm]) -> Iterator[None]:
    """Has layers average what they see, each call alike, and forget what they had.

    By their momentum alone, which is 1 at the first call: a layer that does not learn from what it
    sees keeps what it has, and uses it meanwhile.
    """
    momenta = [layer.momentum for layer in layers]
    hooks = [layer.register_forward_pre_hook(_counting(layer)) for layer in layers]
    for layer in layers:
        layer.training = True  # not by its train(), with which authors freeze layers
        for value in (layer.running_mean, layer.running_var):
            if value is not None:  # no momentum takes infinity away
                value.nan_to_num_()
        if layer.num_batches_tracked is not None:
            layer.num_batches_tracked.zero_()
    try:
        yield
    finally:
        for layer, momentum, hook in zip(layers, momenta, hooks, strict=True):
            hook.remove()
            layer.momentum = momentum
            layer.eval()


def _counting(layer: _BatchNorm) -> Callable[[nn.Module, object], None]:
    """Returns a hook by which each call of a layer counts as much as every one before it."""
    calls = itertools.count(1)

    def count(_layer: nn.Module, _images: object) -> None:
        layer.momentum = 1 / next(calls)

    return count
