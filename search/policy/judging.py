"""Judges one trial beside all others of its study."""

from __future__ import annotations

from collections.abc import Callable, Collection

import numpy as np

from search.config.study import PolicyConfig
from search.front.front import losses
from search.policy import stopping
from search.policy.deployments import Deployment, most_promising, structure_of
from search.policy.experience import Experience
from search.records.network import Network
from search.records.point import Point
from search.records.trial import Cost, Progress
from search.space.space import Space

Losses = list[float]


class Judge:
    """The referee of one trial.

    Args:
        known: What the trials so far have taught.
        policy: What is done to save training.
        allowed: Bits and threads to choose among; empty where every point stands alone.
        space: That points lie in.
        note_rung: Keeps what the trial lost by at a rung, and returns the losses of all that
            reached it, its own last.
    """

    def __init__(
        self,
        known: Experience,
        policy: PolicyConfig,
        allowed: Collection[Deployment],
        space: Space,
        note_rung: Callable[[float, Losses], list[Losses]],
    ) -> None:
        self._known = known
        self._policy = policy
        self._allowed = allowed
        self._space = space
        self._note_rung = note_rung

    def deployment(self, point: Point, network: Network) -> Point:
        """Moves a point to the bits and threads that promise most for its structure."""
        structure = structure_of(network)
        latency_model = self._known.latency_model
        return most_promising(point, structure, latency_model, self._allowed, self._space)

    def before_training(self, point: Point, cost: Cost) -> str | None:
        """Returns why a trial cannot reach the front whatever its training brings, or None."""
        if not self._policy.latency_first:
            return None
        if self._known.is_beaten(cost):
            return "not trained: cannot reach the front whatever its accuracy"
        number = self._known.larger_as_good(point.whole("bits"), cost)
        if number is None:
            return None
        return f"not trained: the larger network of trial {number} is as fast"

    def at_rung(self, point: Point, end: float, progress: Progress) -> str | None:
        """Notes what a trial reached at a rung, and returns why it should stop there, or None."""
        own = losses(progress, progress.float_accuracy, self._known.objectives)
        reached = self._note_rung(end, own)
        eta = self._policy.eta
        # Of a network that was trained by the same recipe the rest costs nothing.
        if eta is None or self._known.has_trained(point, progress):
            return None
        if stopping.survives(np.array(reached), len(reached) - 1, eta):
            return None
        return f"behind at {end:.0%} of its training, where one in {eta:g} goes on"
