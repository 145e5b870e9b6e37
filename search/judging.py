"""Judges one trial beside all others of its study; knows their records, but not Optuna."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

import numpy as np

from search import stopping
from search.config import PolicyConfig
from search.deployments import Deployment, Outlook, look_out, most_promising
from search.front import Traded, losses
from search.records import Figures, Network, Point, TrialRecord
from search.trial import Lab

Losses = list[float]


class Judge:
    """The referee of one trial.

    Args:
        records: All finished trials of the study.
        known: What they have measured.
        objectives: Names of what the front trades.
        policy: What is done to save training.
        lab: Where the trial runs.
        allowed: Bits and threads to choose among; empty where every point stands alone.
        note_rung: Keeps what the trial lost by at a rung, and returns the losses of all that
            reached it, its own last.
    """

    def __init__(
        self,
        records: Sequence[TrialRecord],
        known: Outlook,
        objectives: Sequence[str],
        policy: PolicyConfig,
        lab: Lab,
        allowed: Collection[Deployment],
        note_rung: Callable[[float, Losses], list[Losses]],
    ) -> None:
        self._records = records
        self._known = known
        self._objectives = objectives
        self._policy = policy
        self._lab = lab
        self._allowed = allowed
        self._note_rung = note_rung

    def deployment(self, point: Point, network: Network) -> Point:
        """Moves a point to the bits and threads that promise most for its structure."""
        structure = (network.macs, network.parameters)
        return most_promising(point, structure, self._known, self._allowed)

    def before_training(self, point: Point, figures: Figures) -> str | None:
        """Returns why a trial cannot reach the front whatever its training brings, or None.

        Its latency counts at the lower end of its interval and all others' at the upper end, so
        that no noise condemns it.
        """
        if not self._policy.latency_first:
            return None
        at_best = _at_best(figures)
        rivals = [record for record in self._records if _is_allowed(record)]
        complete = [record for record in rivals if record.outcome == "complete"]
        accuracies = [record.figures.val_accuracy or 0.0 for record in complete]
        best_accuracy = max([self._lab.reference_accuracy, *accuracies])
        known = losses(at_best._replace(val_accuracy=best_accuracy), self._objectives)
        beaten = [losses(_at_worst(record.figures), self._objectives) or [] for record in complete]
        if known and stopping.is_hopeless(known, beaten):
            return "not trained: cannot reach the front whatever its accuracy"
        others = [name for name in self._objectives if name != "accuracy"]
        own = losses(at_best, others) or []
        for record in rivals:
            if record.point.bits < point.bits or not _is_larger(record.figures, figures):
                continue
            there = losses(_at_worst(record.figures), others)
            if there is not None and all(a <= b for a, b in zip(there, own, strict=True)):
                return f"not trained: the larger network of trial {record.number} is as fast"
        return None

    def at_rung(self, point: Point, end: float, figures: Figures) -> str | None:
        """Notes what a trial reached at a rung, and returns why it should stop there, or None."""
        own = losses(replace(figures, val_accuracy=figures.float_accuracy), self._objectives)
        assert own is not None, "all but the accuracy is known before training"
        reached = self._note_rung(end, own)
        eta = self._policy.eta
        if eta is None or self._is_trained(point, figures):
            return None
        if stopping.survives(np.array(reached), len(reached) - 1, eta):
            return None
        return f"behind at {end:.0%} of its training, where one in {eta:g} goes on"

    def _is_trained(self, point: Point, figures: Figures) -> bool:
        """Whether the same network was trained by the same recipe: the rest costs nothing."""
        return any(
            record.outcome == "complete"
            and (record.figures.macs, record.figures.parameters)
            == (figures.macs, figures.parameters)
            and _recipe(record.point) == _recipe(point)
            for record in self._records
        )


def _is_allowed(record: TrialRecord) -> bool:
    """Whether a trial keeps the limits on what is known before training."""
    return all(v <= 0 for name, v in record.violations.items() if name != "max_accuracy_drop")


def _at_best(figures: Figures) -> Traded:
    """Returns figures with the least latency that the measurement allows for."""
    return _moved(figures, figures.latency_ratio_low)


def _at_worst(figures: Figures) -> Traded:
    """Returns figures with the greatest latency that the measurement allows for."""
    return _moved(figures, figures.latency_ratio_high)


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


def outlook(records: Sequence[TrialRecord], lab: Lab) -> Outlook:
    """Returns what a study has learned about its device's latencies."""
    original = lab.teacher.network
    structure = (original.macs, original.parameters)
    return look_out(records, structure, lab.bench.device, lab.yardstick)


def _is_larger(one: Figures, other: Figures) -> bool:
    """Whether one network computes more with more: then it is the more accurate one."""
    here, there = ((f.macs or 0, f.parameters or 0) for f in (one, other))
    return here != there and all(a >= b for a, b in zip(here, there, strict=True))
