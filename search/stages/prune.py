"""Stage ``prune``: a network that lost some of its channels."""

from __future__ import annotations

from search import networks
from search.pruning import prune
from search.steps import Prune, Pruned, Shelf


def run(step: Prune, shelf: Shelf) -> Pruned:
    """Does the step."""
    module = networks.load(step.network, shelf)
    smaller, removed = prune(module, step.network.spec.image_shape, step.ratio, step.round_to)
    network = step.network
    if removed > 0:
        network = networks.save(smaller, step.network.spec, shelf)
    return Pruned(network=network, channels_removed=removed)
