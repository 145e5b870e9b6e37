"""The front among trial records: losses, members, quality."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from search.front import pareto
from search.front.pareto import Floats
from search.records.trial import CompleteTrial, Cost, ScoredTrial, TrialRecord


class Traded(NamedTuple):
    """What fronts trade, where it is only hoped for; see ``Figures`` for meanings and units."""

    val_accuracy: float
    latency_ms: float
    size_bytes: int
    cpu_ms: float
    peak_rss_bytes: int


# Every objective is minimised; accuracy turns into the error in ``losses`` and nowhere else.
COSTS: Mapping[str, Callable[[Cost | Traded], float]] = {
    "latency": lambda cost: cost.latency_ms,
    "size": lambda cost: cost.size_bytes,
    "cpu": lambda cost: cost.cpu_ms,
    "memory": lambda cost: cost.peak_rss_bytes,
}
# The hypervolume counts points up to this much less accurate than the original.
ACCURACY_MARGIN = 0.10


def losses(cost: Cost | Traded, accuracy: float, objectives: Sequence[str]) -> list[float]:
    """Returns the minimised values of ``objectives``, ``[m]``.

    Args:
        cost: Of a network.
        accuracy: That it has or may have, 0..1.
        objectives: Names of what the front trades.
    """
    return [1 - accuracy if name == "accuracy" else COSTS[name](cost) for name in objectives]


def at_worst(cost: Cost) -> Cost:
    """Returns what a network surely costs at most.

    A latency that was measured poorly counts at the upper end of its interval.
    """
    if cost.quality != "poor":
        return cost
    # An end that is the centre itself may miss it by rounding.
    return replace(cost, latency_ms=max(cost.latency_interval_ms[1], cost.latency_ms))


def worst_matrix(records: Sequence[ScoredTrial], objectives: Sequence[str]) -> Floats:
    """Returns the losses that trials surely have at most, ``[n, m]``."""
    rows = [losses(at_worst(r.figures), r.figures.val_accuracy, objectives) for r in records]
    return np.array(rows, dtype=np.float64).reshape(len(records), len(objectives))


def loss_matrix(records: Sequence[ScoredTrial], objectives: Sequence[str]) -> Floats:
    """Returns the losses ``[n, m]`` of trials."""
    rows = [losses(r.figures, r.figures.val_accuracy, objectives) for r in records]
    return np.array(rows, dtype=np.float64).reshape(len(records), len(objectives))


def front(records: Sequence[TrialRecord], objectives: Sequence[str]) -> list[CompleteTrial]:
    """Returns the complete trials that no other complete trial dominates, by latency.

    A trial dominates another with what it surely has (``worst_matrix``), so that a lucky centre of
    a wide interval pushes nobody off; it is itself judged by its centre. Of trials that deploy
    the same file with as many threads the earliest stands for all.
    """
    finished = [record for record in records if isinstance(record, CompleteTrial)]
    complete = list({_deployment(record): record for record in reversed(finished)}.values())
    if not complete:
        return []
    on_front = pareto.surely_non_dominated(
        loss_matrix(complete, objectives), worst_matrix(complete, objectives)
    )
    members = [record for record, member in zip(complete, on_front, strict=True) if member]
    return sorted(members, key=by_latency)


def leading(members: Sequence[CompleteTrial], objectives: Sequence[str]) -> list[CompleteTrial]:
    """Returns those of a front that no other beats by its centre, in the same order."""
    is_first = pareto.non_dominated(loss_matrix(members, objectives))
    return [member for member, first in zip(members, is_first, strict=True) if first]


def by_latency(record: ScoredTrial) -> tuple[float, int]:
    """Sorts trials by latency."""
    return record.figures.latency_ms, record.number


def _deployment(record: CompleteTrial) -> Hashable:
    return record.deployable, record.point.deployment


def original(records: Sequence[TrialRecord]) -> TrialRecord | None:
    """Returns the uncompressed network's trial, which every study begins with."""
    return next((record for record in records if record.is_original), None)


def hypervolume(records: Sequence[TrialRecord], objectives: Sequence[str]) -> float:
    """Returns the share, 0..1, of the box below the original that the front dominates.

    The box reaches from zero loss to the reference point: the original's own value of every
    objective, and for accuracy its error plus ``ACCURACY_MARGIN``. Trials count with what they
    surely have. Zero until the original is known.
    """
    first = original(records)
    members = front(records, objectives)
    if not isinstance(first, ScoredTrial) or not members:
        return 0.0
    reference = loss_matrix([first], objectives)[0]
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
        self.members: list[CompleteTrial] = []
        self.hypervolume = 0.0
        self._objectives = objectives
        self._deployed: set[Hashable] = set()

    def add(self, record: TrialRecord) -> None:
        """Adds a trial that was not there."""
        self.trials += 1
        before = self.members
        if isinstance(record, CompleteTrial) and _deployment(record) not in self._deployed:
            self._deployed.add(_deployment(record))
            self.members = front([*before, record], self._objectives)
        if record.is_original:
            self.original = record
        if self.original is not None and (record.is_original or self.members != before):
            self.hypervolume = hypervolume([self.original, *self.members], self._objectives)


def hypervolumes(records: Sequence[TrialRecord], objectives: Sequence[str]) -> list[float]:
    """Returns ``hypervolume`` as it was after every record, ``[n]``."""
    growing, values = GrowingFront(objectives), []
    for record in records:
        growing.add(record)
        values.append(growing.hypervolume)
    return values
