"""Stage ``prune``: a network that lost some of its channels."""

from __future__ import annotations

from search.networks import networks
from search.networks.pruning.prune import prune
from search.records.steps.editing import Edited
from search.records.steps.pruning import Prune
from search.records.steps.step import ArtifactStore


def run(step: Prune, artifacts: ArtifactStore) -> Edited:
    """Does the step."""
    module = networks.load(step.network, artifacts)
    smaller, removed = prune(module, step.network.spec.image_shape, step.ratio, step.round_to)
    network = step.network
    if removed > 0:
        network = networks.save(smaller, step.network.spec, artifacts, step.network.edits)
    return Edited(network, {"channels_removed": removed})
