"""How a trial's recipe ends, and who judges it meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeAlias

from search.records.network import Network
from search.records.point import Point
from search.records.trial import Cost, Progress, TrialRecord

# Makes a trial's record of what its recipe does not know: its number, and what it took.
Ending: TypeAlias = Callable[..., TrialRecord]


class Referee(Protocol):
    """Judges a trial beside all others while it runs; its reasons to stop are one line."""

    def deployment(self, point: Point, network: Network) -> Point:
        """Returns the point with the bits and threads that its pruned network is deployed with."""

    def before_training(self, point: Point, cost: Cost) -> str | None:
        """Returns why a trial of this cost should not be trained, or None."""

    def at_rung(self, point: Point, end: float, progress: Progress) -> str | None:
        """Returns why training should stop at the share ``end``, or None.

        Args:
            point: With its deployment.
            end: Share of the training that is done, 0..1.
            progress: Of the best student so far.
        """


class Unjudged:
    """Lets a trial be what its point says, to its end."""

    def deployment(self, point: Point, _: Network) -> Point:
        """Deploys as the point says."""
        return point

    def before_training(self, _point: Point, _: Cost) -> str | None:
        """Lets every trial be trained."""
        return None

    def at_rung(self, _point: Point, _end: float, _: Progress) -> str | None:
        """Lets every training go on."""
        return None
