"""What of a study can be picked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from search.benchmark.estimates import wilson_interval
from search.errors import ConfigError
from search.front.front import front, original
from search.records.closing import Closing, Finalist
from search.records.deployable import Deployable
from search.records.point import Point
from search.records.trial import CompleteTrial, Figures, ScoredTrial, TrialRecord

Split = Literal["test", "validation"]


@dataclass(frozen=True)
class Candidate:
    """A point that can be picked.

    Attributes:
        number: Of its trial.
        is_original: Whether it is the uncompressed network.
        point: Where in the space.
        deployable: Its model.
        figures: Confirmed ones of a finalist, else those of the search.
        split: Images that the accuracy was found on.
        accuracy: 0..1.
        accuracy_low: Lower end of its 95 % interval.
        accuracy_high: Upper end.
        tie: Number of the group of points that cannot be told apart; None if it is alone.
        confirmed: Whether its figures are those of the closing round.
        left: Why it left the front in the closing round; empty if it did not.
    """

    number: int
    is_original: bool
    point: Point
    deployable: Deployable
    figures: Figures
    split: Split
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    tie: int | None
    confirmed: bool
    left: str

    @property
    def latency_ms(self) -> float:
        """Its comparable latency."""
        return self.figures.latency_ms


@dataclass(frozen=True)
class Offer:
    """What there is to pick from.

    Attributes:
        candidates: The front's, the fastest first.
        others: Complete trials beside the front, by number.
        original: The uncompressed network, whether on the front or not, and also where it breaks
            a limit; None if it failed.
        confirmed: Whether a closing round found this front.
        unfit: Why each other trial cannot be picked, by number.
    """

    candidates: tuple[Candidate, ...]
    others: tuple[Candidate, ...]
    original: Candidate | None
    confirmed: bool
    unfit: Mapping[int, str]

    def find(self, number: int) -> Candidate:
        """Returns the candidate of a trial.

        Raises:
            ConfigError: When that trial has no model.
        """
        everything = {c.number: c for c in (*self.candidates, *self.others)}
        if number in everything:
            return everything[number]
        there = ", ".join(str(known) for known in sorted(everything))
        why = self.unfit.get(number, "there is no such trial")
        raise ConfigError(f"trial={number}: {why}; those that can be picked are {there}")


def offer(
    records: Sequence[TrialRecord],
    closing: Closing | None,
    objectives: Sequence[str],
    validation_images: int,
) -> Offer:
    """Returns what there is to pick from: finalists that stand, else the front of the search.

    Args:
        records: Finished trials of the study.
        closing: Its closing round, if one was held.
        objectives: Names of what the front trades.
        validation_images: Number of images that the search's accuracies were found on.
    """
    finalists = {} if closing is None else {f.number: _of_finalist(f) for f in closing.finalists}
    scored = {
        record.number: _of_record(record, validation_images)
        for record in records
        if isinstance(record, ScoredTrial)
    }
    fit = {record.number for record in records if isinstance(record, CompleteTrial)}
    searched = {number: candidate for number, candidate in scored.items() if number in fit}
    if finalists:
        standing = {number for number, c in finalists.items() if not c.left}
    else:
        standing = {record.number for record in front(records, objectives)}
    everything = {**searched, **finalists}
    first = original(records)
    return Offer(
        candidates=tuple(
            sorted((everything[n] for n in standing), key=lambda c: (c.latency_ms, c.number))
        ),
        others=tuple(everything[n] for n in sorted(everything) if n not in standing),
        original=None if first is None else {**scored, **finalists}.get(first.number),
        confirmed=bool(finalists),
        unfit={
            r.number: f"is {r.outcome} ({r.reason})" for r in records if r.number not in everything
        },
    )


def accuracy_drop(candidate: Candidate, reference: Candidate) -> float:
    """Returns by how much a candidate is less accurate than another, on images of one split.

    On the test split where both were scored there, else on validation.
    """
    if candidate.split == reference.split:
        return reference.accuracy - candidate.accuracy
    return reference.figures.val_accuracy - candidate.figures.val_accuracy


def _of_finalist(finalist: Finalist) -> Candidate:
    return Candidate(
        number=finalist.number,
        is_original=finalist.is_original,
        point=finalist.point,
        deployable=finalist.deployable,
        figures=finalist.figures,
        split="test",
        accuracy=finalist.test_accuracy,
        accuracy_low=finalist.test_low,
        accuracy_high=finalist.test_high,
        tie=finalist.tie,
        confirmed=True,
        left="" if finalist.stands else f": {finalist.reason}",
    )


def _of_record(record: ScoredTrial, images: int) -> Candidate:
    accuracy = record.figures.val_accuracy
    low, high = wilson_interval(round(accuracy * images), images)
    return Candidate(
        number=record.number,
        is_original=record.is_original,
        point=record.point,
        deployable=record.deployable,
        figures=record.figures,
        split="validation",
        accuracy=accuracy,
        accuracy_low=low,
        accuracy_high=high,
        tie=None,
        confirmed=False,
        left="",
    )
