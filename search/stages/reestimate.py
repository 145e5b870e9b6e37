"""Stage ``reestimate``: a pruned network as good as it is before any training."""

from __future__ import annotations

from functools import partial

import torch

from search import data
from search.networks import networks
from search.networks.batch_statistics import reestimate
from search.networks.networks import Preprocessed
from search.networks.placing import use_placed
from search.networks.training import Feed, Placement, accuracy
from search.records.network import Student
from search.records.steps.step import ArtifactStore
from search.records.steps.training import Reestimate


def run(step: Reestimate, artifacts: ArtifactStore) -> Student:
    """Does the step."""
    load = partial(networks.load, step.network, artifacts)
    return use_placed(step, load, partial(_reestimate, step, artifacts))


def _reestimate(
    step: Reestimate, artifacts: ArtifactStore, module: Preprocessed, placement: Placement
) -> Student:
    splits = data.load(step.data, artifacts.images)
    train = Feed(splits.train, placement.device)
    with torch.random.fork_rng(devices=[]):
        reestimate(module, train, placement, step.batch_size, step.seed, frozen_too=True)
    score = accuracy(module, Feed(splits.validation, placement.device), placement)
    return Student(
        networks.save(module.network, step.network.spec, artifacts, step.network.edits), None, score
    )
