"""Which records a plot of accuracy against latency shows, and how."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from search.records.closing import Finalist
from search.records.trial import (
    CompleteTrial,
    Figures,
    Progress,
    ScoredTrial,
    StoppedTrial,
    TrialRecord,
)

ORIGINAL = "original"  # what the uncompressed network is called
EMPTY = "No trial has both an accuracy and a latency yet."
LOG_SPREAD = 10.0
Kind = Literal["front", "dominated", "infeasible", "searched"]


@dataclass(frozen=True)
class Dot:
    """A record that has a place in the plane of accuracy and latency.

    Attributes:
        record: The trial.
        figures: As the search, or the closing round, found them.
        kind: Where it stands; an infeasible trial cannot be on the front. Beside finalists, what
            the search found of other trials is ``searched``.
        accuracy: On the validation split, or a finalist's on the test split, 0..1.
        latency_ms: Comparable latency.
        low_ms: Lower end of its interval; the latency itself where no interval is known.
        high_ms: Upper end.
        accuracy_low: Lower end of the accuracy's interval; the accuracy where none is known.
        accuracy_high: Upper end.
        validation: A finalist's accuracy on the validation split; None of other trials.
        tie: Number of a finalist's group of points that cannot be told apart; None if alone.
    """

    record: ScoredTrial
    figures: Figures
    kind: Kind
    accuracy: float
    latency_ms: float
    low_ms: float
    high_ms: float
    accuracy_low: float
    accuracy_high: float
    validation: float | None = None
    tie: int | None = None

    @property
    def number(self) -> int:
        """Trial number."""
        return self.record.number

    @property
    def label(self) -> str:
        """What the trial is called beside its mark."""
        return label(self.record)

    @property
    def is_original(self) -> bool:
        """Whether this is the uncompressed network."""
        return self.record.is_original


@dataclass(frozen=True)
class Cut:
    """A trial that was stopped before its end.

    Attributes:
        record: The trial.
        accuracy: Of the student in PyTorch when it was stopped, 0..1; None if it was not trained.
        latency_ms: Comparable latency, measured before training.
        low_ms: Lower end of its interval.
        high_ms: Upper end.
    """

    record: StoppedTrial
    accuracy: float | None
    latency_ms: float
    low_ms: float
    high_ms: float


@dataclass(frozen=True)
class Window:
    """The window onto the plane that keeps the front readable.

    Attributes:
        lowest: Lower end of the accuracy axis.
        highest: Upper end of the accuracy axis.
        log_latency: Whether the latency axis is logarithmic.
    """

    lowest: float
    highest: float
    log_latency: bool


class Numbered(Protocol):
    """What has a trial's number: its record, a finalist, a candidate."""

    @property
    def number(self) -> int:
        """Of the trial."""

    @property
    def is_original(self) -> bool:
        """Whether it is the uncompressed network."""


def label(one: Numbered) -> str:
    """Returns what a trial is called in tables and plots."""
    return ORIGINAL if one.is_original else str(one.number)


def name_trials(several: Sequence[Numbered]) -> str:
    """Names trials in a sentence: ``the original``, ``trial 5``, ``trials 5, 7``."""
    numbers = [str(one.number) for one in several if not one.is_original]
    word = "trial" if len(numbers) == 1 else "trials"
    named = [f"{word} {', '.join(numbers)}"] if numbers else []
    return " and ".join([*(["the original"] if len(numbers) < len(several) else []), *named])


def place(records: Iterable[TrialRecord], front: Collection[int]) -> list[Dot]:
    """Returns a dot for every record that has an accuracy and a latency, by latency.

    A trial that was stopped or failed has no place, whatever it found out before.

    Args:
        records: Finished trials.
        front: Numbers of the trials on the front.
    """
    numbers = frozenset(front)
    dots = [dot for record in records if (dot := _place_one(record, numbers)) is not None]
    return sorted(dots, key=lambda dot: (dot.latency_ms, -dot.accuracy, dot.number))


def place_finalists(records: Iterable[TrialRecord], finalists: Sequence[Finalist]) -> list[Dot]:
    """Returns a dot for every finalist, by latency: test accuracy at confirmed latency."""
    known = {record.number: record for record in records if isinstance(record, ScoredTrial)}
    dots = []
    for finalist in finalists:
        figures = finalist.figures
        dots.append(
            Dot(
                known[finalist.number],
                figures,
                "front" if finalist.stands else "dominated",
                finalist.test_accuracy,
                figures.latency_ms,
                *figures.latency_interval_ms,
                finalist.test_low,
                finalist.test_high,
                figures.val_accuracy,
                finalist.tie,
            )
        )
    return sorted(dots, key=lambda dot: (dot.latency_ms, -dot.accuracy, dot.number))


def place_searched(records: Iterable[TrialRecord], finalists: Sequence[Finalist]) -> list[Dot]:
    """Returns a dot for every trial that is no finalist, as the search saw it, by latency."""
    closed = {finalist.number for finalist in finalists}
    dots = place([record for record in records if record.number not in closed], ())
    return [replace(dot, kind="searched") if dot.kind == "dominated" else dot for dot in dots]


def place_stopped(records: Iterable[TrialRecord]) -> list[Cut]:
    """Returns the stopped trials that were measured, in their order."""
    return [
        Cut(
            record,
            record.figures.float_accuracy if isinstance(record.figures, Progress) else None,
            record.figures.latency_ms,
            *record.figures.latency_interval_ms,
        )
        for record in records
        if isinstance(record, StoppedTrial)
    ]


def staircase(dots: Sequence[Dot]) -> list[Dot]:
    """Returns the front's dots that a rising line can join, by latency.

    With a third objective a point can be on the front and yet lose in this plane; the line
    leaves it out.

    Args:
        dots: Sorted by latency, as ``place`` returns them.
    """
    steps: list[Dot] = []
    for dot in dots:
        if dot.kind == "front" and (not steps or dot.accuracy > steps[-1].accuracy):
            steps.append(dot)
    return steps


def frame(dots: Sequence[Dot], others: Sequence[float] = ()) -> Window:
    """Returns the window that shows the front, the original and all but far worse trials.

    A network that collapsed to guessing would otherwise squeeze the front into a line.

    Args:
        dots: At least one.
        others: Accuracies of what is shown beside them.
    """
    accuracies = sorted([*(dot.accuracy_low for dot in dots), *others])
    focus = [dot.accuracy_low for dot in dots if dot.kind == "front" or dot.is_original]
    highest = max([*(dot.accuracy_high for dot in dots), *others])
    lowest = min([*focus, accuracies[len(accuracies) // 4]])
    reach = lowest - (highest - lowest)
    lowest = min(accuracy for accuracy in accuracies if accuracy >= reach)
    margin = max(0.07 * (highest - lowest), 0.001)
    latencies = [dot.latency_ms for dot in dots]
    log_latency = max(latencies) > LOG_SPREAD * min(latencies)
    # More room above: that is where the labels go.
    return Window(lowest - margin, highest + 1.5 * margin, log_latency)


def _place_one(record: TrialRecord, front: frozenset[int]) -> Dot | None:
    if not isinstance(record, ScoredTrial):
        return None
    figures = record.figures
    kind: Kind = "front" if record.number in front else "dominated"
    if not isinstance(record, CompleteTrial):
        kind = "infeasible"
    return Dot(
        record,
        figures,
        kind,
        figures.val_accuracy,
        figures.latency_ms,
        *figures.latency_interval_ms,
        figures.val_accuracy,
        figures.val_accuracy,
    )
