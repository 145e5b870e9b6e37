"""Which finalists beat which beyond the noise, and who stands.

Two finalists are compared in everything that the front trades. In each of these one of them is
measurably better, or the two cannot be told apart:

- latency, processor time and memory by the signed-rank interval of their paired launches, at a
  level at which all such statements of a closing round hold together with 95 % (Bonferroni);
- accuracy by McNemar's one-sided exact test on the test images, each statement at 5 %: a wrong one
  costs little, because it takes a point away that lies beside one as good in all else;
- size exactly: it has no noise.

One beats another when it is measurably better in something, and may be worse in nothing. What may
be worse is judged for itself, not with all else: a latency at 5 % (``ERROR``), an accuracy already
at 20 % (``DOUBT``). On a thousand images a whole point of accuracy cannot be measured, nor on a
busy machine, with all statements together, a tenth of a latency; whoever is better in one of the
two would drive out all that trade it for the other. A finalist that is beaten by one that stands
leaves, and one that has left drives nobody out (``pareto.kernel``). So the front depends on no
order, it is never empty, no two of its points beat each other, and points of which neither beats
the other stand side by side.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from search.benchmark.estimates import signed_rank_interval, worse_by_chance
from search.front import pareto
from search.front.pareto import Floats

ERROR = 0.05  # of all statements about noisy figures together, and of each about accuracies
DOUBT = 0.2  # by McNemar's test; at less than this a network may well be the less accurate one
NOISY = ("latency", "cpu", "memory")


@dataclass(frozen=True)
class Beaten:
    """Why a finalist leaves.

    Attributes:
        by: Number of the trial that beats it.
        better: Objectives in which that one is measurably better.
        even: The others, in which it is not measurably worse.
    """

    by: int
    better: tuple[str, ...]
    even: tuple[str, ...]


def joint_level(finalists: int, objectives: Sequence[str]) -> float:
    """Returns the level at which all statements about noisy figures hold together.

    These are each finalist's speed-up, and every pair's comparison in each noisy objective.
    Latency is always compared, for ties.
    """
    noisy = len({"latency", *objectives} & set(NOISY))
    return 1 - ERROR / (finalists + noisy * math.comb(finalists, 2))


@dataclass(frozen=True)
class Rivals:
    """Finalists with what tells them apart.

    Attributes:
        numbers: Of their trials, ``[n]``.
        logs: By noisy objective the logarithms of their figures, ``[n, launches]``; those of one
            column were measured in the same round.
        right: Images of the test split that each recognised, ``[n][images]``.
        sizes: Bytes of their files, ``[n]``.
        level: Of an interval.
        objectives: Names of what the front trades.
    """

    numbers: Sequence[int]
    logs: Mapping[str, Floats]
    right: Sequence[NDArray[np.bool_]]
    sizes: Sequence[int]
    level: float
    objectives: Sequence[str]

    def compare(self, one: int, other: int, objective: str) -> int:
        """Returns -1 where ``one`` is measurably better, 1 where it is worse, else 0."""
        if objective == "accuracy":
            if self._less_accurate_by_chance(one, other) < ERROR:
                return 1
            return -1 if self._less_accurate_by_chance(other, one) < ERROR else 0
        if objective == "size":
            here, there = self.sizes[one], self.sizes[other]
            return (here > there) - (here < there)
        logs = self.logs[objective]
        low, high = signed_rank_interval(logs[one] - logs[other], self.level)
        return 1 if low > 0 else -1 if high < 0 else 0

    def beats(self, one: int, other: int) -> bool:
        """Whether ``one`` is better in something beyond doubt, and as good in all else."""
        is_better = any(self.compare(one, other, name) < 0 for name in self.objectives)
        return is_better and not any(
            self._may_be_worse(one, other, name) for name in self.objectives
        )

    def _may_be_worse(self, one: int, other: int, objective: str) -> bool:
        if objective == "accuracy":
            return self._less_accurate_by_chance(one, other) < DOUBT
        if objective == "size":
            return self.sizes[one] > self.sizes[other]
        logs = self.logs[objective]
        low, _ = signed_rank_interval(logs[one] - logs[other], 1 - 2 * ERROR)
        return low > 0

    def _less_accurate_by_chance(self, one: int, other: int) -> float:
        """Returns how probable it is to see ``one`` this much worse if both are equal."""
        return worse_by_chance(
            int((self.right[one] & ~self.right[other]).sum()),
            int((self.right[other] & ~self.right[one]).sum()),
        )

    def are_alike(self, one: int, other: int) -> bool:
        """Whether nothing tells the two apart: neither latency nor accuracy nor what is traded."""
        names = {"latency", "accuracy", *self.objectives}
        return all(self.compare(one, other, name) == 0 for name in names)

    def standing(self, order: Sequence[int]) -> dict[int, Beaten | None]:
        """Decides who stands.

        Args:
            order: Indices of those that take part. Of points that beat one another in a circle,
                which noise can make, the last in this order leaves.

        Returns:
            Index to why it leaves; None where it stands.
        """
        beats = np.array([[self.beats(one, other) for other in order] for one in order])
        stands = pareto.kernel(beats.reshape(len(order), len(order)))
        reasons: dict[int, Beaten | None] = {}
        for position, index in enumerate(order):
            # In a circle all of them may have left.
            winners = np.flatnonzero(beats[:, position]).tolist()
            winners.sort(key=lambda winner: (not stands[winner], winner))
            reasons[index] = None if stands[position] else self._beaten(index, order[winners[0]])
        return reasons

    def ties(self, order: Sequence[int]) -> list[list[int]]:
        """Puts each index into the first group all of whose members it is like."""
        groups: list[list[int]] = []
        for index in order:
            home = next((g for g in groups if all(self.are_alike(index, o) for o in g)), None)
            if home is None:
                groups.append([index])
            else:
                home.append(index)
        return groups

    def _beaten(self, loser: int, winner: int) -> Beaten:
        better = [n for n in self.objectives if self.compare(winner, loser, n) < 0]
        even = [n for n in self.objectives if n not in better]
        return Beaten(self.numbers[winner], tuple(better), tuple(even))
