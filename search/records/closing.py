"""What the closing round found."""

from __future__ import annotations

from dataclasses import dataclass

from search.records.deployable import Deployable
from search.records.measurement import Canary
from search.records.point import Point
from search.records.trial import Figures


@dataclass(frozen=True, slots=True)
class Finalist:
    """A point of the front as the closing round found it.

    Attributes:
        number: Of its trial.
        is_original: Whether it is the uncompressed network.
        point: Where in the space.
        deployable: Its model, perhaps trained on since the trial.
        figures: Confirmed ones; latency ratio and speed-up are against the uncompressed network
            at its best thread count, with intervals that hold for all finalists together.
        test_accuracy: On the test split, 0..1.
        test_low: Lower end of its 95 % interval.
        test_high: Upper end.
        stands: Whether it is on the front still.
        reason: Why it left; empty while it stands.
        tie: Number of the group of points that cannot be told apart; None if it is alone.
    """

    number: int
    is_original: bool
    point: Point
    deployable: Deployable
    figures: Figures
    test_accuracy: float
    test_low: float
    test_high: float
    stands: bool
    reason: str
    tie: int | None


@dataclass(frozen=True, slots=True)
class Closing:
    """A study's closing round.

    Attributes:
        after_trials: Finished trials when it was held.
        finalists: In the order of their table; at least one.
        canaries: What the device was found to be like so far.
    """

    after_trials: int
    finalists: tuple[Finalist, ...]
    canaries: tuple[Canary, ...]
