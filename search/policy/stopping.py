"""Which trials are worth going on with.

Optuna refuses to prune trials of a study with several objectives, so these rules are the
project's own. All losses are minimised, and all functions are pure.
"""

from __future__ import annotations

import math
from itertools import islice

import numpy as np
from numpy.typing import ArrayLike, NDArray

from search.front import pareto

# Trials of a rung that go on whatever they look like: there is too little to compare them with.
GRACE = 4


def is_hopeless(best_case: ArrayLike, front: ArrayLike) -> bool:
    """Tells whether even the best that a trial can become would not join the front.

    Args:
        best_case: ``[m]``, losses that the trial cannot fall below.
        front: ``[n, m]``, losses of the points to beat.

    Returns:
        Whether some point is nowhere worse than the best case.
    """
    return bool(are_hopeless(np.reshape(best_case, (1, -1)), front)[0])


def are_hopeless(best_cases: ArrayLike, front: ArrayLike) -> NDArray[np.bool_]:
    """Tells ``is_hopeless`` of many trials, ``[k, m]``; returns ``[k]``."""
    cases = np.asarray(best_cases, dtype=np.float64)
    points = np.asarray(front, dtype=np.float64).reshape(-1, cases.shape[1])
    hopeless: NDArray[np.bool_] = np.any(np.all(points <= cases[:, None], axis=2), axis=1)
    return hopeless


def survives(losses: ArrayLike, index: int, eta: float) -> bool:
    """Tells whether a trial is among the best ``1 / eta`` of those that reached its rung.

    Trials are ranked by fronts, and within a front so that the earlier ones cover it well. The
    first ``GRACE`` trials of a rung go on, and so does one that alone makes up the first front.

    Args:
        losses: ``[n, m]``, of the trials that reached the rung so far, this one included.
        index: Row of the trial in question.
        eta: Above 1; one in ``eta`` goes on.

    Source:
        Schmucker et al., "Multi-objective asynchronous successive halving", 2021
        (arXiv 2106.12639).
    """
    points = np.asarray(losses, dtype=np.float64)
    if len(points) <= GRACE:
        return True
    return index in islice(pareto.layered_order(points), math.ceil(len(points) / eta))
