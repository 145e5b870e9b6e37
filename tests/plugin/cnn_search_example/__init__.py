"""Splits a network's largest dense layer into two of lower rank; and digits, odd or even."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from search.records.bench import Bench
from search.records.network import Network
from search.records.point import Point
from search.records.steps.editing import Edited
from search.records.steps.step import Resource, Step
from search.space.dimension import Dimension
from search.space.domains import Range
from search.techniques import Technique

RANK = Dimension(
    name="rank_share",
    group="compression",
    domain=lambda cores: Range(0.05, 1.0),
    sound=1.0,
    label="rank share",
    phrase="rank share {:.2g}",
    default={"low": 0.05, "high": 1.0},
)


@dataclass(frozen=True)
class Factorise(Step[Edited]):
    """Leaves ``share`` of the rank of the largest dense layer, 0..1."""

    kind: ClassVar[str] = "factorise"
    stage: ClassVar[str] = "cnn_search_example.factorising:run"
    version: ClassVar[int] = 1
    resource: ClassVar[Resource] = "light"
    result: ClassVar[type] = Edited

    network: Network
    share: float


def factorise(point: Point, network: Network, bench: Bench) -> Factorise | None:
    """Returns the step, and None where the whole rank stays."""
    share = point.number(RANK.name)
    return Factorise(network, share) if share < 1 else None


TECHNIQUE = Technique("low-rank", (RANK,), factorise)
PARITY = {
    "name": "parity",
    "factory": "cnn_search_example.parity:open_source",
    "arguments": {},
    "validation_share": 0.1,
    "mean": None,
    "std": None,
    "memory_limit_bytes": 4_000_000_000,
}
