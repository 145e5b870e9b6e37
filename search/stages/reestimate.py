"""Stage ``reestimate``: a pruned network as good as it is before any training."""

from __future__ import annotations

from functools import partial

import torch

from search import data, networks
from search.batch_statistics import reestimate
from search.networks import Preprocessed
from search.placing import use_placed
from search.records import Student
from search.steps import Reestimate, Shelf
from search.training import Feed, Placement, accuracy


def run(step: Reestimate, shelf: Shelf) -> Student:
    """Does the step."""
    load = partial(networks.load, step.network, shelf)
    return use_placed(step, load, partial(_reestimate, step, shelf))


def _reestimate(
    step: Reestimate, shelf: Shelf, module: Preprocessed, placement: Placement
) -> Student:
    splits = data.load(step.data, shelf.images)
    train = Feed(splits.train, placement.device)
    with torch.random.fork_rng(devices=[]):
        reestimate(module, train, placement, step.batch_size, step.seed, frozen_too=True)
    score = accuracy(module, Feed(splits.validation, placement.device), placement)
    return Student(networks.save(module.network, step.network.spec, shelf), None, score)
