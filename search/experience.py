"""What finished trials have taught, each looked at once; decides nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from search import stopping
from search.deployments import Structure, Students, look_out, structure_of
from search.front import GrowingFront, Traded, losses
from search.records import Figures, Point, TrialRecord
from search.rows import Rows
from search.trial import Lab

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
        outlook: On their device's latencies.
        tried: Their points.
        students: Trials whose network can be deployed otherwise.
        asked: How many trials had a training of their own.
        best_accuracy: On validation, of the original and of trials that keep the limits; 0..1.
    """

    def __init__(self, records: Iterable[TrialRecord], lab: Lab, objectives: Sequence[str]) -> None:
        original = lab.teacher.network
        structure = (original.macs, original.parameters)
        self.front = GrowingFront(objectives)
        self.outlook = look_out(structure, lab.bench.device, lab.yardstick)
        self.tried: set[Point] = set()
        self.students = Students()
        self.asked = 0
        self.best_accuracy = lab.reference_accuracy
        self.objectives = objectives
        self._others = [name for name in objectives if name != "accuracy"]
        # Losses at the greatest latency that the measurements allow for, of trials that keep the
        # limits: of complete ones, and of all with their bits and networks before them.
        self._complete = Rows((len(objectives),))
        self._measured = Rows((3 + len(self._others),))
        self._numbers: list[int] = []
        self._trained: set[tuple[Structure, Point]] = set()
        for record in records:
            self.add(record)

    def add(self, record: TrialRecord) -> None:
        """Adds a finished trial."""
        self.front.add(record)
        self.outlook.add(record)
        self.tried.add(record.point)
        self.asked += record.student_of is None
        self.students.add(record)
        if record.outcome == "complete":
            self._trained.add((structure_of(record.figures), _recipe(record.point)))
        if _is_allowed(record):
            self._add_rival(record)

    def _add_rival(self, record: TrialRecord) -> None:
        figures = record.figures
        at_worst = _moved(figures, figures.latency_ratio_high)
        if record.outcome == "complete":
            self.best_accuracy = max(self.best_accuracy, figures.val_accuracy or 0.0)
            if (everything := losses(at_worst, self.objectives)) is not None:
                self._complete.add(everything)
        if (others := losses(at_worst, self._others)) is not None:
            self._measured.add([record.point.bits, *structure_of(figures), *others])
            self._numbers.append(record.number)

    def is_beaten(self, figures: Figures) -> bool:
        """Tells whether a complete trial is at least as good in everything, whatever the accuracy.

        The latency of ``figures`` counts at the lower end of its interval and all others' at the
        upper end, so that no noise condemns a trial.
        """
        at_best = _at_best(figures)._replace(val_accuracy=self.best_accuracy)
        own = losses(at_best, self.objectives)
        return own is not None and stopping.is_hopeless(own, self._complete.array)

    def larger_as_good(self, bits: int, figures: Figures) -> int | None:
        """Returns the first trial of a larger network that is as good in all but the accuracy.

        Latencies count as in ``is_beaten``.

        Args:
            bits: That the other network must have at least.
            figures: Of the smaller one.
        """
        own = losses(_at_best(figures), self._others)
        if own is None:
            return None
        rivals, size = self._measured.array, np.array(structure_of(figures))
        # A network that computes more with more is the more accurate one.
        is_larger = (rivals[:, 1:3] >= size).all(axis=1) & (rivals[:, 1:3] != size).any(axis=1)
        is_as_good = (rivals[:, 3:] <= own).all(axis=1)
        found = np.flatnonzero((rivals[:, 0] >= bits) & is_larger & is_as_good)
        return self._numbers[found[0]] if found.size else None

    def has_trained(self, point: Point, figures: Figures) -> bool:
        """Tells whether the same network was trained to the end by the same recipe."""
        return (structure_of(figures), _recipe(point)) in self._trained


def _is_allowed(record: TrialRecord) -> bool:
    """Whether a trial keeps the limits on what is known before training."""
    return all(v <= 0 for name, v in record.violations.items() if name not in OF_ACCURACY)


def _at_best(figures: Figures) -> Traded:
    """Returns figures with the least latency that the measurement allows for."""
    return _moved(figures, figures.latency_ratio_low)


def _moved(figures: Figures, ratio: float | None) -> Traded:
    latency_ms = figures.latency_ms
    if latency_ms is not None and figures.latency_ratio is not None and ratio is not None:
        latency_ms = latency_ms * ratio / figures.latency_ratio
    return Traded(
        figures.val_accuracy,
        latency_ms,
        figures.size_bytes,
        figures.cpu_ms,
        figures.peak_rss_bytes,
    )


def _recipe(point: Point) -> Point:
    return replace(point, prune_ratio=0.0, bits=0, threads=0)
