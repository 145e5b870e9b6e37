"""Removing whole channels."""

from __future__ import annotations

from search.records.bench import Bench
from search.records.network import Network
from search.records.point import Point
from search.records.steps.pruning import Prune
from search.space.dimension import Dimension
from search.space.domains import Range
from search.techniques import Technique

RATIO = Dimension(
    name="prune_ratio",
    group="compression",
    domain=lambda cores: Range(0.0, 0.9),
    sound=0.0,
    label="prune ratio",
    phrase="prune ratio {:.3g}",
)


def prune(point: Point, network: Network, bench: Bench) -> Prune:
    """Returns the step that removes the share of the channels that a point asks for."""
    return Prune(network, point.number(RATIO.name), bench.device.round_to)


TECHNIQUE = Technique("pruning", (RATIO,), prune)
