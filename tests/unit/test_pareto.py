"""Multi-objective mathematics against values worked out by hand."""

from __future__ import annotations

import time

import numpy as np
import pytest

from search.front.pareto import (
    bends,
    hypervolume,
    non_dominated,
    non_dominated_ranks,
    spread_order,
)

NAN, INF = np.nan, np.inf


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([[1, 2]], [True]),
        ([[1, 2], [2, 1]], [True, True]),
        ([[1, 2], [1, 3]], [True, False]),
        ([[1, 3], [0, 3]], [False, True]),
        ([[2, 2], [1, 1], [1, 1], [0, 3]], [False, True, True, True]),
        ([[1, 1, 1], [1, 1, 2], [0, 5, 5]], [True, False, True]),
        ([[3], [1], [2], [1]], [False, True, False, True]),
        ([[NAN, 0], [1, 1]], [False, True]),
        ([[NAN, NAN]], [False]),
        ([[INF, 0], [0, INF], [INF, INF]], [True, True, False]),
        ([[0.0, 1.0], [-0.0, 1.0], [-0.0, 2.0]], [True, True, False]),
    ],
)
def test_non_dominated(losses: list[list[float]], expected: list[bool]) -> None:
    assert non_dominated(losses).tolist() == expected


def test_empty_input_has_no_front() -> None:
    empty = np.empty((0, 2))
    assert non_dominated(empty).shape == (0,)
    assert non_dominated([]).shape == (0,)
    assert non_dominated_ranks(empty).shape == (0,)
    assert spread_order(empty).shape == (0,)
    assert hypervolume(empty, [1, 1]) == hypervolume([], [1, 1]) == 0.0


@pytest.mark.parametrize("losses", [[1.0, 2.0], [[[1.0]]], np.empty((3, 0))])
def test_refuses_other_shapes(losses: object) -> None:
    with pytest.raises(ValueError, match=r"need the shape \[n, m\]"):
        non_dominated(losses)  # type: ignore[arg-type]


def test_ten_thousand_points_take_well_under_a_second() -> None:
    x = np.random.default_rng(0).random(10_000)
    begin = time.process_time()
    assert non_dominated(np.stack([x, 1 - x], axis=1)).all()
    assert time.process_time() - begin < 0.5


def test_ranks_peel_fronts() -> None:
    losses: list[list[float]] = [[0, 2], [2, 0], [1, 3], [1, 3], [3, 3], [4, 4], [NAN, 0]]
    assert non_dominated_ranks(losses).tolist() == [0, 0, 1, 1, 2, 3, 4]


def test_unknown_points_are_never_first() -> None:
    assert non_dominated_ranks([[NAN, 0], [0, NAN]]).tolist() == [1, 1]


@pytest.mark.parametrize(
    ("front", "reference", "expected"),
    [
        ([[0, 0]], [2, 3], 6),
        ([[1, 2], [2, 1]], [3, 3], 3),
        ([[0, 2], [1, 1], [2, 0]], [3, 3], 6),
        ([[1, 2], [2, 1], [2, 2], [1, 2]], [3, 3], 3),  # dominated, copied
        ([[1, 2], [9, 0], [0, 3]], [3, 3], 2),  # beyond and on the limit
        ([[1, 2], [NAN, 0]], [3, 3], 2),
        ([[4, 4]], [3, 3], 0),
        ([[0, 0, 0]], [2, 3, 4], 24),
        ([[0, 1, 1], [1, 0, 1], [1, 1, 0]], [2, 2, 2], 4),
        ([[0, 0, 1], [1, 1, 0]], [2, 2, 2], 5),
        ([[0, 0, 0, 1], [1, 1, 1, 0]], [2, 2, 2, 2], 9),
        ([[-2, -1], [-1, -2]], [0, 0], 3),
    ],
)
def test_hypervolume(front: list[list[float]], reference: list[float], expected: float) -> None:
    assert hypervolume(front, reference) == pytest.approx(expected, rel=1e-12)


def test_hypervolume_of_the_staircase() -> None:
    # n steps under the diagonal of the unit square cover n (n + 1) / 2 of n^2 cells.
    n = 500
    steps = np.stack([np.arange(n), np.arange(n)[::-1]], axis=1) / n
    assert hypervolume(steps, [1, 1]) == pytest.approx((n + 1) / (2 * n), rel=1e-12)


def test_hypervolume_of_the_simplex() -> None:
    # Cells (i, j, k) of n^3 that some a <= i, b <= j, c <= k with a + b + c = n - 1 covers.
    n = 8
    corners = [[a, b, n - 1 - a - b] for a in range(n) for b in range(n - a)]
    cells = np.indices((n, n, n)).sum(axis=0) >= n - 1
    assert hypervolume(corners, [n, n, n]) == pytest.approx(cells.sum(), rel=1e-12)


@pytest.mark.parametrize(
    ("front", "reference"),
    [([[1, 2]], [3, 3, 3]), ([[1, 2]], [3]), ([[1, 2]], [[3, 3]]), ([1, 2], [3, 3])],
)
def test_hypervolume_refuses_shapes_that_do_not_fit(front: object, reference: object) -> None:
    with pytest.raises(ValueError, match=r"shape|fit"):
        hypervolume(front, reference)  # type: ignore[arg-type]


def test_spread_order_covers_the_front_early() -> None:
    # The middle has the lowest sum; then the far ends, the first of equals first; then the rest.
    assert spread_order([[0, 8], [1, 6], [3, 2], [8, 0]]).tolist() == [2, 0, 3, 1]


def test_spread_order_of_copies_and_without_span() -> None:
    assert spread_order([[1, 1]] * 3).tolist() == [0, 1, 2]
    assert spread_order([[0, 5], [4, 5], [1, 5]]).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("front", "expected"),
    [
        ([[0, 10], [1, 2], [10, 0]], [0, 0.7, 0]),
        ([[0, 10], [4, 4], [5, 1], [10, 0]], [0, 0.2, 0.4, 0]),
        ([[0, 1000], [0.1, 100], [1, 0]], [0, 0.8, 0]),  # units do not matter
        ([[0, 10], [8, 8], [10, 0]], [0, -0.6, 0]),  # bulges away from the ideal
        ([[7, 7]], [0]),
        ([[3, 5], [3, 5]], [0, 0]),
        ([], []),
    ],
)
def test_bends(front: list[list[float]], expected: list[float]) -> None:
    assert bends(np.reshape(front, (-1, 2))) == pytest.approx(expected)
