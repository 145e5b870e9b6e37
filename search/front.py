"""The front among trial records: losses, members, quality; knows nothing of searching."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from search import pareto
from search.pareto import Floats
from search.records import Figures, TrialRecord


class Traded(NamedTuple):
    """What fronts trade, known or only hoped for; see ``Figures`` for meanings and units."""

    val_accuracy: float | None
    latency_ms: float | None
    size_bytes: int | None
    cpu_ms: float | None
    peak_rss_bytes: int | None


# Every objective is minimised; accuracy turns into the error here and nowhere else.
LOSSES: Mapping[str, Callable[[Figures | Traded], float | None]] = {
    "accuracy": lambda f: None if f.val_accuracy is None else 1 - f.val_accuracy,
    "latency": lambda f: f.latency_ms,
    "size": lambda f: f.size_bytes,
    "cpu": lambda f: f.cpu_ms,
    "memory": lambda f: f.peak_rss_bytes,
}
# The hypervolume counts points up to this much less accurate than the original.
ACCURACY_MARGIN = 0.10


def losses(figures: Figures | Traded, objectives: Sequence[str]) -> list[float] | None:
    """Returns the minimised values of ``objectives``, ``[m]``; None unless all are known."""
    values = [LOSSES[name](figures) for name in objectives]
    return None if None in values else [float(v) for v in values if v is not None]


def losses_at_worst(figures: Figures, objectives: Sequence[str]) -> list[float] | None:
    """Returns the minimised values that a trial surely has, ``[m]``; None unless all are known.

    A latency that was measured poorly counts at the upper end of its interval.
    """
    interval_ms = figures.latency_interval_ms
    if figures.measuring == "poor" and interval_ms is not None and figures.latency_ms is not None:
        # An end that is the centre itself may miss it by rounding.
        figures = replace(figures, latency_ms=max(interval_ms[1], figures.latency_ms))
    return losses(figures, objectives)


def worst_matrix(records: Sequence[TrialRecord], objectives: Sequence[str]) -> Floats:
    """Returns ``losses_at_worst`` of complete trials, ``[n, m]``."""
    rows = [losses_at_worst(record.figures, objectives) for record in records]
    return np.array(rows, dtype=np.float64).reshape(len(records), len(objectives))


def loss_matrix(records: Sequence[TrialRecord], objectives: Sequence[str]) -> Floats:
    """Returns the losses ``[n, m]`` of complete trials."""
    rows = [losses(record.figures, objectives) for record in records]
    return np.array(rows, dtype=np.float64).reshape(len(records), len(objectives))


def front(records: Sequence[TrialRecord], objectives: Sequence[str]) -> list[TrialRecord]:
    """Returns the complete trials that no other complete trial dominates, by latency.

    A trial dominates another with what it surely has (``losses_at_worst``), so that a lucky centre
    of a wide interval pushes nobody off; it is itself judged by its centre. Of trials that deploy
    the same file with as many threads the earliest stands for all.
    """
    distinct = {_deployment(r): r for r in reversed(records) if r.outcome == "complete"}
    complete = list(distinct.values())
    if not complete:
        return []
    on_front = pareto.surely_non_dominated(
        loss_matrix(complete, objectives), worst_matrix(complete, objectives)
    )
    members = [record for record, member in zip(complete, on_front, strict=True) if member]
    return sorted(members, key=lambda r: (r.figures.latency_ms or 0.0, r.number))


def leading(members: Sequence[TrialRecord], objectives: Sequence[str]) -> list[TrialRecord]:
    """Returns those of a front that no other beats by its centre, in the same order."""
    is_first = pareto.non_dominated(loss_matrix(members, objectives))
    return [member for member, first in zip(members, is_first, strict=True) if first]


def _deployment(record: TrialRecord) -> Hashable:
    return (record.deployable, record.point.threads) if record.deployable else record.number


def original(records: Sequence[TrialRecord]) -> TrialRecord | None:
    """Returns the uncompressed network's trial, which every study begins with."""
    return next((record for record in records if record.number == 0), None)


def hypervolume(records: Sequence[TrialRecord], objectives: Sequence[str]) -> float:
    """Returns the share, 0..1, of the box below the original that the front dominates.

    The box reaches from zero loss to the reference point: the original's own value of every
    objective, and for accuracy its error plus ``ACCURACY_MARGIN``. Trials count with what they
    surely have. Zero until trial 0, the original, is known.
    """
    first = original(records)
    limits = None if first is None else losses(first.figures, objectives)
    members = front(records, objectives)
    if limits is None or not members:
        return 0.0
    reference = np.array(limits)
    reference[[name == "accuracy" for name in objectives]] += ACCURACY_MARGIN
    normal = worst_matrix(members, objectives) / reference
    return pareto.hypervolume(normal, np.ones(len(objectives)))


class GrowingFront:
    """The front of trials that come one by one, each of which is looked at once.

    That keeps thousands of trials quick; ``front`` and ``hypervolume`` of all say the same.

    Args:
        objectives: Names of what the front trades.

    Attributes:
        trials: How many there are.
        original: The uncompressed network's trial; None before it is there.
        members: The front, by latency.
        hypervolume: Of the front.
    """

    def __init__(self, objectives: Sequence[str]) -> None:
        self.trials = 0
        self.original: TrialRecord | None = None
        self.members: list[TrialRecord] = []
        self.hypervolume = 0.0
        self._objectives = objectives
        self._deployed: set[Hashable] = set()

    def add(self, record: TrialRecord) -> None:
        """Adds a trial that was not there."""
        self.trials += 1
        before = self.members
        if record.outcome == "complete" and _deployment(record) not in self._deployed:
            self._deployed.add(_deployment(record))
            self.members = front([*before, record], self._objectives)
        if record.number == 0:
            self.original = record
        if self.original is not None and (record.number == 0 or self.members != before):
            self.hypervolume = hypervolume([self.original, *self.members], self._objectives)


def hypervolumes(records: Sequence[TrialRecord], objectives: Sequence[str]) -> list[float]:
    """Returns ``hypervolume`` as it was after every record, ``[n]``."""
    growing, values = GrowingFront(objectives), []
    for record in records:
        growing.add(record)
        values.append(growing.hypervolume)
    return values
