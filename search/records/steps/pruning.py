"""Steps that prune networks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from search.records.network import Network
from search.records.steps.editing import Edited
from search.records.steps.step import Resource, Step
from search.records.survey import Cut


@dataclass(frozen=True)
class Prune(Step[Edited]):
    """Removes the least important channels; ``ratio`` is the share of them, 0..0.9.

    Its figure ``channels_removed`` is the share of the prunable channels that went.
    """

    kind: ClassVar[str] = "prune"
    version: ClassVar[int] = 5
    resource: ClassVar[Resource] = "light"
    result: ClassVar[type] = Edited

    network: Network
    ratio: float
    round_to: int


@dataclass(frozen=True)
class Cuts:
    """Cuts that leave different structures, in the order asked for; else why there are none."""

    cuts: tuple[Cut, ...]
    reason: str = ""


@dataclass(frozen=True)
class Sweep(Step[Cuts]):
    """Finds how much to prune for ``shares`` of the original's multiply-accumulates, in order."""

    kind: ClassVar[str] = "sweep"
    version: ClassVar[int] = 3
    resource: ClassVar[Resource] = "light"
    result: ClassVar[type] = Cuts

    network: Network
    shares: tuple[float, ...]
    round_to: int
