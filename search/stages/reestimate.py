"""Stage ``reestimate``: a pruned network as good as it is before any training."""

from __future__ import annotations

import torch

from search import data, networks
from search.batch_statistics import reestimate
from search.networks import Preprocessed
from search.records import Student
from search.steps import Reestimate, Shelf
from search.training import Feed, Placement, accuracy


def run(step: Reestimate, shelf: Shelf) -> Student:
    """Does the step."""
    splits = data.load(step.data, shelf.images)
    placement = Placement(torch.device(step.device), step.precision, step.layout)
    network = networks.load(step.network, shelf)
    module = placement.place(
        Preprocessed(network, step.data.mean, step.data.std), step.data.image_shape
    )
    train = Feed(splits.train, placement.device)
    reestimate(module, train, placement, step.batch_size, step.seed, frozen_too=True)
    score = accuracy(module, Feed(splits.validation, placement.device), placement)
    return Student(networks.save(network, step.network.spec, shelf), None, score)
