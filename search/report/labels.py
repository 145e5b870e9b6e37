"""Finds free places for labels beside their points."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

# Above left first: a front that rises with latency leaves that side empty.
DIRECTIONS = ((-1, 1), (0, 1), (-1, 0), (1, -1), (0, -1), (1, 0), (1, 1), (-1, -1))
DISTANCES = (1, 3, 6, 10, 15)
# Beside the distance: a label over a label is unreadable, one over a marker better than one astray.
LABEL_COST, OBSTACLE_COST = 100, 5


class Box(NamedTuple):
    """A rectangle with its sides along the axes, y upwards."""

    left: float
    bottom: float
    right: float
    top: float

    def holds(self, other: Box) -> bool:
        """Whether ``other`` lies inside."""
        return (
            self.left <= other.left
            and self.bottom <= other.bottom
            and other.right <= self.right
            and other.top <= self.top
        )

    def nearest(self, point: tuple[float, float]) -> tuple[float, float]:
        """Returns the place in the box that is nearest to ``point``."""
        x, y = point
        return min(max(x, self.left), self.right), min(max(y, self.bottom), self.top)


def place_labels(
    anchors: Sequence[tuple[float, float]],
    sizes: Sequence[tuple[float, float]],
    obstacles: Sequence[Box],
    bounds: Box,
    gap: float,
) -> list[Box]:
    """Returns a box for every label: near its point, covering little, other labels last.

    Labels are placed in order, so earlier ones get the better places.

    Args:
        anchors: ``(x, y)`` of the labelled points, ``[n]``.
        sizes: ``(width, height)`` of the labels, ``[n]``.
        obstacles: Boxes to keep clear of.
        bounds: Labels stay inside.
        gap: From a point to the nearest edge of its label.
    """
    placed: list[Box] = []
    for anchor, size in zip(anchors, sizes, strict=True):
        candidates = list(_candidates(anchor, size, gap))
        candidates = [(cost, box) for cost, box in candidates if bounds.holds(box)] or candidates
        costs = np.array([cost for cost, _ in candidates])
        boxes = [box for _, box in candidates]
        costs += LABEL_COST * _covered(boxes, placed) + OBSTACLE_COST * _covered(boxes, obstacles)
        placed.append(boxes[int(np.argmin(costs))])  # of equals the first, as in DIRECTIONS
    return placed


def _candidates(
    anchor: tuple[float, float], size: tuple[float, float], gap: float
) -> Iterator[tuple[int, Box]]:
    """Yields the places around a point with the cost of their distance."""
    (x, y), (width, height) = anchor, size
    for distance in DISTANCES:
        for right, up in DIRECTIONS:
            # On a diagonal both offsets add up: 0.7 keeps the corner about as near.
            reach = gap * distance * (0.7 if right and up else 1.0)
            left = x - width / 2 + right * (width / 2 + reach)
            bottom = y - height / 2 + up * (height / 2 + reach)
            yield distance, Box(left, bottom, left + width, bottom + height)


def _covered(boxes: Sequence[Box], others: Sequence[Box]) -> NDArray[np.int64]:
    """Returns with how many of ``others`` each box shares more than an edge, ``[n]``."""
    left, bottom, right, top = np.array(boxes).T[:, :, None]
    other_left, other_bottom, other_right, other_top = np.array(others).reshape(-1, 4).T
    across = (left < other_right) & (other_left < right)
    upright = (bottom < other_top) & (other_bottom < top)
    covered: NDArray[np.int64] = np.sum(across & upright, axis=1)
    return covered
