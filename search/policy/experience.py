"""What finished trials have taught, each looked at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from search.front.front import COSTS, GrowingFront, losses
from search.policy import stopping
from search.policy.deployments import Structure, Students, start_latency_model, structure_of
from search.policy.rows import Rows
from search.records.bench import Lab
from search.records.point import Choices, Point
from search.records.trial import CompleteTrial, Cost, TrialRecord

# Limits on what is known only after training.
OF_ACCURACY = ("min_accuracy_share", "max_accuracy_drop")


class Experience:
    """What is known from the trials so far; thousands of them stay quick to ask.

    Args:
        records: Trials to begin with.
        lab: Where they ran.
        objectives: Names of what the front trades.

    Attributes:
        objectives: As given.
        front: Of all trials.
        latency_model: On their device's latencies.
        tried: Their points.
        students: Trials whose network can be deployed otherwise.
        asked: How many trials had a training of their own.
        best_accuracy: On validation, of the original and of trials that keep the limits; 0..1.
    """

    def __init__(self, records: Iterable[TrialRecord], lab: Lab, objectives: Sequence[str]) -> None:
        structure = structure_of(lab.teacher.network)
        self.front = GrowingFront(objectives)
        self.latency_model = start_latency_model(structure, lab.bench.device, lab.baseline)
        self.tried: set[Point] = set()
        self.students = Students()
        self.asked = 0
        self.best_accuracy = lab.reference_accuracy
        self.objectives = objectives
        self._others = [name for name in objectives if name != "accuracy"]
        # Losses at the greatest latency that the measurements allow for, of trials that keep the
        # limits: of complete ones, and of all with their bits and networks' sizes before them.
        self._complete = Rows((len(objectives),))
        self._measured = Rows((3 + len(self._others),))
        self._numbers: list[int] = []
        self._trained: set[tuple[Structure, Choices]] = set()
        for record in records:
            self.add(record)

    def add(self, record: TrialRecord) -> None:
        """Adds a finished trial."""
        self.front.add(record)
        self.latency_model.add(record)
        self.tried.add(record.point)
        self.asked += record.student_of is None
        self.students.add(record)
        if isinstance(record, CompleteTrial):
            self._trained.add((structure_of(record.figures), record.point.training))
        if record.figures is not None and _is_allowed(record):
            self._add_rival(record, record.figures)

    def _add_rival(self, record: TrialRecord, cost: Cost) -> None:
        at_worst = _moved(cost, cost.latency_ratio_high)
        if isinstance(record, CompleteTrial):
            accuracy = record.figures.val_accuracy
            self.best_accuracy = max(self.best_accuracy, accuracy)
            self._complete.add(losses(at_worst, accuracy, self.objectives))
        bits = record.point.whole("bits")
        self._measured.add([bits, cost.macs, cost.parameters, *self._lost(at_worst)])
        self._numbers.append(record.number)

    def _lost(self, cost: Cost) -> list[float]:
        """Returns the losses of all objectives but the accuracy."""
        return [COSTS[name](cost) for name in self._others]

    def is_beaten(self, cost: Cost) -> bool:
        """Tells whether a complete trial is at least as good in everything, whatever the accuracy.

        The latency of ``cost`` counts at the lower end of its interval and all others' at the
        upper end, so that no noise condemns a trial.
        """
        own = losses(_moved(cost, cost.latency_ratio_low), self.best_accuracy, self.objectives)
        return stopping.is_hopeless(own, self._complete.array)

    def larger_as_good(self, bits: int, cost: Cost) -> int | None:
        """Returns the first trial of a larger network that is as good in all but the accuracy.

        Latencies count as in ``is_beaten``.

        Args:
            bits: That the other network must have at least.
            cost: Of the smaller one.
        """
        own = self._lost(_moved(cost, cost.latency_ratio_low))
        rivals, size = self._measured.array, np.array([cost.macs, cost.parameters])
        # A network that computes more with more is the more accurate one.
        is_larger = (rivals[:, 1:3] >= size).all(axis=1) & (rivals[:, 1:3] != size).any(axis=1)
        is_as_good = (rivals[:, 3:] <= own).all(axis=1)
        found = np.flatnonzero((rivals[:, 0] >= bits) & is_larger & is_as_good)
        return self._numbers[found[0]] if found.size else None

    def has_trained(self, point: Point, cost: Cost) -> bool:
        """Tells whether the same network was trained to the end by the same recipe."""
        return (structure_of(cost), point.training) in self._trained


def _is_allowed(record: TrialRecord) -> bool:
    """Whether a trial keeps the limits on what is known before training."""
    return all(v <= 0 for name, v in record.violations.items() if name not in OF_ACCURACY)


def _moved(cost: Cost, ratio: float) -> Cost:
    """Returns a cost with the latency that another ratio to the original gives."""
    return replace(cost, latency_ms=cost.latency_ms * ratio / cost.latency_ratio)
