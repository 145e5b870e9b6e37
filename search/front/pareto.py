"""Multi-objective mathematics on arrays.

Every objective is minimised. An array ``losses`` holds one point a row, ``[n, m]``.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats: TypeAlias = NDArray[np.float64]


def non_dominated(losses: ArrayLike) -> NDArray[np.bool_]:
    """Tells which points no other point dominates.

    A point dominates another when it is nowhere worse and somewhere better, so all copies of a
    point on the front are on the front. A point with a NaN neither dominates nor is on the front.

    Args:
        losses: ``[n, m]``.

    Returns:
        ``[n]``, true on the front.

    Source:
        Kung, Luccio and Preparata, "On finding the maxima of a set of vectors", 1975.
    """
    points = _as_points(losses)
    known = ~np.isnan(points).any(axis=1)
    front = np.zeros(len(points), dtype=bool)
    if known.any():
        distinct, positions = np.unique(points[known], axis=0, return_inverse=True)
        sieve = _sieve_two if distinct.shape[1] == 2 else _sieve
        front[known] = sieve(distinct)[positions.reshape(-1)]
    return front


def surely_non_dominated(losses: ArrayLike, at_worst: ArrayLike) -> NDArray[np.bool_]:
    """Tells which points no other point dominates for sure.

    For sure, a point dominates another when the losses that it may have at worst dominate the
    other's losses. That is a strict order, because whatever dominates a point's losses dominates
    those it has at worst: the answer is one, in whatever order points come, and holds a point
    that dominates each of those left out. Where ``at_worst`` are the losses it is
    ``non_dominated``.

    Args:
        losses: ``[n, m]``.
        at_worst: ``[n, m]``, nowhere below ``losses``.

    Returns:
        ``[n]``, true on the front. A point with a NaN neither dominates nor is on the front.
    """
    points, worst = _as_points(losses), _as_points(at_worst)
    # What a point dominates for sure, one of this front dominates too.
    rivals = worst[non_dominated(np.where(np.isnan(points), np.nan, worst))]
    is_front: NDArray[np.bool_] = np.logical_not(np.isnan(points + worst).any(axis=1))
    for rival in rivals:
        is_front &= ~((rival <= points).all(axis=1) & (rival < points).any(axis=1))
    return is_front


def kernel(beats: ArrayLike) -> NDArray[np.bool_]:
    """Tells who stands where some beat others.

    Whoever is beaten by one that stands leaves, and one that has left drives nobody out. Without
    circles of points that beat one another that decides all, in one way only: no two that stand
    beat each other, and each that leaves is beaten by one that stands. In a circle that no point
    outside of it decides, the last point leaves, and so on.

    Args:
        beats: ``[n, n]``, whether the row's point beats the column's; the earlier of two points
            is the one to keep. Nobody beats itself.

    Returns:
        ``[n]``, true where a point stands; never empty where there are points.

    Source:
        von Neumann and Morgenstern, "Theory of Games and Economic Behavior", 1944: a relation
        without circles has exactly one such set (their solution, a kernel of the graph).
    """
    edges = np.asarray(beats, dtype=bool)
    left = np.ones(len(edges), dtype=bool)
    stands = np.zeros(len(edges), dtype=bool)
    while left.any():
        unbeaten = left & ~edges[left].any(axis=0)
        if unbeaten.any():
            stands |= unbeaten
            left &= ~unbeaten & ~edges[unbeaten].any(axis=0)
        else:
            left[_last_in_a_circle(edges & left & left[:, None])] = False
    return stands


def _last_in_a_circle(edges: NDArray[np.bool_]) -> int:
    """Returns the last point of the circles that are beaten from within alone; there is one."""
    reaches = edges.copy()
    for middle in range(len(reaches)):
        reaches |= reaches[:, [middle]] & reaches[[middle]]
    # Whoever reaches such a point, by however many beaten ones, is reached by it.
    inside = reaches.any(axis=0) & (~reaches | reaches.T).all(axis=0)
    return int(np.flatnonzero(inside)[-1])


def _sieve_two(points: Floats) -> NDArray[np.bool_]:
    """Finds the front of distinct points ``[n, 2]`` in lexicographic order."""
    best = np.minimum.accumulate(points[:, 1])
    return np.concatenate([[True], points[1:, 1] < best[:-1]])


def _sieve(points: Floats) -> NDArray[np.bool_]:
    """Finds the front of distinct points ``[n, m]`` in lexicographic order."""
    front = np.zeros(len(points), dtype=bool)
    left = np.arange(len(points))
    while left.size:
        # Whatever dominates a point precedes it, so the first one left is on the front.
        first, left = left[0], left[1:]
        front[first] = True
        left = left[(points[left] < points[first]).any(axis=1)]
    return front


def non_dominated_ranks(losses: ArrayLike) -> NDArray[np.int64]:
    """Peels fronts off one after another.

    Args:
        losses: ``[n, m]``.

    Returns:
        ``[n]``: 0 on the front, 1 on the front of the rest, and so on. Points with a NaN come
        after all others, and never have rank 0.

    Source:
        Deb et al., "A fast and elitist multiobjective genetic algorithm: NSGA-II", 2002.
    """
    points = _as_points(losses)
    known = ~np.isnan(points).any(axis=1)
    ranks = np.zeros(len(points), dtype=np.int64)
    if known.any():
        distinct, positions = np.unique(points[known], axis=0, return_inverse=True)
        peel = _peel_two if distinct.shape[1] == 2 else _peel
        ranks[known] = peel(distinct)[positions.reshape(-1)]
    ranks[~known] = ranks.max(initial=0) + 1
    return ranks


def _peel_two(points: Floats) -> NDArray[np.int64]:
    """Ranks distinct points ``[n, 2]`` in lexicographic order."""
    ranks = np.zeros(len(points), dtype=np.int64)
    # The least second objective of every front so far: it rises from front to front, and whatever
    # is at most a point's own belongs to a point that dominates it.
    least: list[float] = []
    for index, second in enumerate(points[:, 1].tolist()):
        rank = bisect_right(least, second)
        least[rank : rank + 1] = [second]
        ranks[index] = rank
    return ranks


def _peel(points: Floats) -> NDArray[np.int64]:
    """Ranks distinct points ``[n, m]`` in lexicographic order."""
    ranks = np.zeros(len(points), dtype=np.int64)
    left, rank = np.arange(len(points)), 0
    while left.size:
        front = _sieve(points[left])
        ranks[left[front]] = rank
        left, rank = left[~front], rank + 1
    return ranks


def spread_order(losses: ArrayLike) -> NDArray[np.int64]:
    """Orders points so that the first few of them cover all of them well.

    It begins with the point that has the lowest sum of scaled losses and goes on with the point
    that is farthest from all chosen ones. Losses are scaled to 0..1 over the points; one without
    a span counts for nothing. Of equal distances the earlier index comes first.

    Args:
        losses: ``[n, m]``, finite.

    Returns:
        ``[n]``, every index once.

    Source:
        Salinas et al., "A multi-objective perspective on jointly tuning hardware and
        hyperparameters", 2021 (arXiv 2106.05680): the epsilon-net of Clarkson.
    """
    points = _as_points(losses)
    if not len(points):
        return np.zeros(0, dtype=np.int64)
    # Copies of a point are nearest to it: they come after all others, in their order.
    distinct = np.sort(np.unique(points, axis=0, return_index=True)[1])
    copies = np.setdiff1d(np.arange(len(points)), distinct)
    low, high = points.min(axis=0), points.max(axis=0)
    scaled = (points[distinct] - low) / np.where(high > low, high - low, 1.0)
    order = [int(np.argmin(scaled.sum(axis=1)))]
    distance = np.full(len(distinct), np.inf)
    while len(order) < len(distinct):
        distance = np.minimum(distance, np.linalg.norm(scaled - scaled[order[-1]], axis=1))
        distance[order] = -1.0
        order.append(int(np.argmax(distance)))
    return np.concatenate([distinct[order], copies])


def layered_order(losses: ArrayLike) -> Iterator[int]:
    """Yields all points: the front, then the front of the rest, and so on, each in spread order.

    Args:
        losses: ``[n, m]``, finite.

    Source:
        Schmucker et al., "Multi-objective asynchronous successive halving", 2021
        (arXiv 2106.12639).
    """
    points = _as_points(losses)
    ranks = non_dominated_ranks(points)
    for rank in range(ranks.max(initial=-1) + 1):
        peers = np.flatnonzero(ranks == rank)
        yield from peers[spread_order(points[peers])].tolist()


def hypervolume(front: ArrayLike, reference: ArrayLike) -> float:
    """Measures the region that a front dominates, up to a reference point; exact.

    Args:
        front: ``[n, m]`` with m of at least 2. Dominated points, copies, points with a NaN and
            points that are not better than the reference in every objective add nothing.
        reference: ``[m]``, the worst values that still count.

    Returns:
        The Lebesgue measure, 0 for an empty front.

    Raises:
        ValueError: If the shapes do not fit.

    Source:
        While, Bradstreet and Barone, "A fast way of calculating exact hypervolumes", 2012.
    """
    points = _as_points(front)
    worst = np.asarray(reference, dtype=np.float64)
    if worst.ndim != 1 or len(worst) < 2:
        raise ValueError(f"reference needs the shape [m], m at least 2; got {worst.shape}")
    if not points.size:
        return 0.0
    if points.shape[1] != len(worst):
        raise ValueError(f"front {points.shape} and reference {worst.shape} do not fit")
    # Distances from the reference make the boxes start at the origin in every recursion.
    return _volume(points[(points < worst).all(axis=1)] - worst)


def _volume(corners: Floats) -> float:
    """Measures the union of the boxes between the origin and negative ``corners`` ``[n, m]``."""
    # np.unique leaves the corners in lexicographic order: the first objective rises.
    corners = np.unique(corners, axis=0)
    corners = corners[non_dominated(corners)]
    if corners.shape[1] == 2:
        heights = np.diff(corners[:, 1], prepend=0.0)
        return float(np.sum(corners[:, 0] * heights))
    total = 0.0
    for index, corner in enumerate(corners):
        # What this corner's box has for itself: all of it, less what later boxes cover of it.
        covered = np.maximum(corners[index + 1 :], corner)
        total += float(np.prod(-corner)) - (_volume(covered) if covered.size else 0.0)
    return total


def _as_points(losses: ArrayLike) -> Floats:
    points = np.asarray(losses, dtype=np.float64)
    if points.ndim == 1 and not points.size:
        return points.reshape(0, 1)
    if points.ndim != 2 or points.shape[1] == 0:
        raise ValueError(f"losses need the shape [n, m]; got {points.shape}")
    return points


def bends(losses: ArrayLike) -> Floats:
    """Returns how far each point of a front in two objectives lies below its chord.

    Both objectives are scaled to 0..1 over the front; the chord joins its two ends, at which the
    value is 0. The point where it is largest is the knee: beyond it, a little of either objective
    costs more of the other.

    Args:
        losses: ``[n, 2]``, none of which dominates another.

    Returns:
        ``[n]``, at most 1; zeros where an objective is the same for all.

    Source:
        Das, "On characterizing the 'knee' of the Pareto curve", Structural Optimization 18, 1999.
    """
    points = _as_points(losses)
    if len(points) == 0:
        return np.zeros(0)
    low, high = points.min(axis=0), points.max(axis=0)
    if (low == high).any():
        return np.zeros(len(points))
    scaled: Floats = (points - low) / (high - low)
    below: Floats = 1 - scaled.sum(axis=1)
    return below
