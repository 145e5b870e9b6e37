"""The rules that end trials early, against what anybody would demand of them."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from search.policy.stopping import GRACE, is_hopeless, survives

Points = NDArray[np.float64]
ETAS = st.floats(1.1, 10.0)


def points(least: int, most: int = 14) -> st.SearchStrategy[Points]:
    shapes = st.tuples(st.integers(least, most), st.integers(2, 3))
    return shapes.flatmap(lambda shape: hnp.arrays(np.float64, shape, elements=st.integers(0, 7)))


def dominates(one: Points, other: Points) -> bool:
    return bool((one <= other).all() and (one < other).any())


@given(points(GRACE + 1), ETAS)
def test_one_in_eta_goes_on(losses: Points, eta: float) -> None:
    going_on = [survives(losses, i, eta) for i in range(len(losses))]
    assert sum(going_on) == math.ceil(len(losses) / eta)


@given(points(1), ETAS)
def test_alone_on_the_front_goes_on(losses: Points, eta: float) -> None:
    for i, own in enumerate(losses):
        if all(dominates(own, other) for j, other in enumerate(losses) if j != i):
            assert survives(losses, i, eta)


@given(points(1, GRACE), ETAS)
def test_the_first_go_on(losses: Points, eta: float) -> None:
    assert all(survives(losses, i, eta) for i in range(len(losses)))


@given(points(2), ETAS)
def test_whoever_dominates_a_survivor_survives(losses: Points, eta: float) -> None:
    for i, own in enumerate(losses):
        for j, other in enumerate(losses):
            if dominates(own, other) and survives(losses, j, eta):
                assert survives(losses, i, eta)


@given(points(1), ETAS, ETAS)
def test_a_larger_eta_stops_more(losses: Points, eta: float, other: float) -> None:
    least, most = sorted((eta, other))
    for i in range(len(losses)):
        assert survives(losses, i, least) or not survives(losses, i, most)


@given(points(1), st.data())
def test_hopeless_is_what_a_point_beats_everywhere(front: Points, data: st.DataObject) -> None:
    shape = st.just(front.shape[1])
    best = data.draw(hnp.arrays(np.float64, shape, elements=st.integers(0, 7)))
    beaten = any((point <= best).all() for point in front)
    assert is_hopeless(best, front) == beaten
    # A better best case has no less prediction, and another point to beat gives no more.
    if not is_hopeless(best, front):
        assert not is_hopeless(best - 1, front)
        assert not is_hopeless(best, front[1:])


def test_against_nothing_there_is_hope() -> None:
    assert not is_hopeless([1.0, 2.0], np.zeros((0, 2)))
