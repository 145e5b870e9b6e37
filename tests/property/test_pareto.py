"""Multi-objective mathematics against brute force."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from search.front.pareto import (
    bends,
    hypervolume,
    kernel,
    layered_order,
    non_dominated,
    non_dominated_ranks,
    spread_order,
    surely_non_dominated,
)

Points = NDArray[np.float64]
LIMIT = 6


def points(least: int = 0) -> st.SearchStrategy[Points]:
    """Few integer coordinates make copies and ties common."""
    shapes = st.tuples(st.integers(least, 9), st.integers(2, 3))
    return shapes.flatmap(
        lambda shape: hnp.arrays(np.float64, shape, elements=st.integers(0, LIMIT + 1))
    )


def dominates(one: Points, other: Points) -> bool:
    return bool((one <= other).all() and (one < other).any())


def brute_front(losses: Points) -> list[bool]:
    return [not any(dominates(other, one) for other in losses) for one in losses]


def brute_ranks(losses: Points) -> list[int]:
    ranks = {}
    left = list(range(len(losses)))
    rank = 0
    while left:
        front = [i for i in left if not any(dominates(losses[j], losses[i]) for j in left)]
        ranks.update(dict.fromkeys(front, rank))
        left = [i for i in left if i not in front]
        rank += 1
    return [ranks[i] for i in range(len(losses))]


def covered_cells(losses: Points) -> int:
    """Counts the unit cells of the grid up to LIMIT whose lower corner some point reaches."""
    cells = np.indices((LIMIT,) * losses.shape[1]).reshape(losses.shape[1], -1).T
    reached = (losses[:, None, :] <= cells[None, :, :]).all(axis=2)
    return int(reached.any(axis=0).sum())


def limit(losses: Points) -> Points:
    return np.full(losses.shape[1], float(LIMIT))


@given(points())
def test_front_agrees_with_every_pair(losses: Points) -> None:
    assert non_dominated(losses).tolist() == brute_front(losses)


@given(points())
def test_unknown_points_change_nothing_for_the_others(losses: Points) -> None:
    unknown = np.zeros((1, losses.shape[1]))
    unknown[0, -1] = np.nan
    assert non_dominated(np.concatenate([losses, unknown])).tolist() == [
        *brute_front(losses),
        False,
    ]


@given(points(least=1))
def test_front_of_the_front_is_the_front(losses: Points) -> None:
    front = losses[non_dominated(losses)]
    assert len(front) > 0
    assert non_dominated(front).all()


@given(points())
def test_ranks_agree_with_peeling(losses: Points) -> None:
    assert non_dominated_ranks(losses).tolist() == brute_ranks(losses)


@given(points(), st.data())
def test_order_does_not_matter(losses: Points, data: st.DataObject) -> None:
    order = np.array(data.draw(st.permutations(range(len(losses)))), dtype=int)
    assert (non_dominated(losses[order]) == non_dominated(losses)[order]).all()
    assert (non_dominated_ranks(losses[order]) == non_dominated_ranks(losses)[order]).all()
    assert hypervolume(losses[order], limit(losses)) == hypervolume(losses, limit(losses))


@given(points())
def test_hypervolume_counts_covered_cells(losses: Points) -> None:
    assert hypervolume(losses, limit(losses)) == covered_cells(losses)


@given(hnp.arrays(np.float64, (4, 4), elements=st.integers(0, 4)))
def test_hypervolume_in_four_dimensions(losses: Points) -> None:
    assert hypervolume(losses, limit(losses)) == covered_cells(losses)


@given(hnp.arrays(np.float64, st.tuples(st.integers(1, 9), st.just(3)), elements=st.floats(0, 2)))
def test_one_more_point_never_lowers_the_hypervolume(losses: Points) -> None:
    reference = np.ones(3)
    less, more = hypervolume(losses[:-1], reference), hypervolume(losses, reference)
    assert more >= less - 1e-12
    assert 0 <= more <= 1 + 1e-12


@given(points())
def test_only_the_front_has_hypervolume(losses: Points) -> None:
    front = losses[non_dominated(losses)]
    assert hypervolume(front, limit(losses)) == hypervolume(losses, limit(losses))


@given(points(least=1))
def test_spread_order_takes_the_point_farthest_from_all_before(losses: Points) -> None:
    order = spread_order(losses)
    assert sorted(order) == list(range(len(losses)))
    span = np.ptp(losses, axis=0)
    scaled = losses / np.where(span > 0, span, 1)

    def distance(index: int, chosen: list[int]) -> float:
        return min(float(np.linalg.norm(scaled[index] - scaled[other])) for other in chosen)

    for count in range(1, len(order)):
        chosen, rest = list(order[:count]), order[count:]
        farthest = max(distance(index, chosen) for index in rest)
        assert np.isclose(distance(order[count], chosen), farthest)


@given(points())
def test_layered_order_takes_front_after_front(losses: Points) -> None:
    order = list(layered_order(losses))
    assert sorted(order) == list(range(len(losses)))
    ranks = non_dominated_ranks(losses)[order]
    assert list(ranks) == sorted(ranks)


@given(points(least=1), st.floats(0.01, 100), st.floats(-100, 100))
def test_bends_do_not_depend_on_units(losses: Points, scale: float, shift: float) -> None:
    losses = losses[:, :2]
    front = losses[non_dominated(losses)]
    assert np.allclose(bends(front * [scale, 1] + shift), bends(front), atol=1e-6)


# ---- points that may be worse than they look


@st.composite
def uncertain(draw: st.DrawFn) -> tuple[Points, Points]:
    """Losses, and those at worst: most points are as they look."""
    losses = draw(points())
    more = draw(hnp.arrays(np.float64, losses.shape, elements=st.sampled_from([0, 0, 0, 1, 3])))
    return losses, losses + more


@given(uncertain())
def test_sure_front_agrees_with_every_pair(given: tuple[Points, Points]) -> None:
    losses, worst = given
    wanted = [not any(dominates(other, one) for other in worst) for one in losses]
    assert surely_non_dominated(losses, worst).tolist() == wanted
    assert surely_non_dominated(losses, losses).tolist() == brute_front(losses)


@given(uncertain(), st.data())
def test_a_sure_front_can_grow_point_by_point(
    given: tuple[Points, Points], data: st.DataObject
) -> None:
    losses, worst = given
    whole = surely_non_dominated(losses, worst)
    members: list[int] = []
    for index in data.draw(st.permutations(range(len(losses)))):
        asked = [*members, index]
        kept = surely_non_dominated(losses[asked], worst[asked])
        members = [one for one, stays in zip(asked, kept, strict=True) if stays]
    assert sorted(members) == np.flatnonzero(whole).tolist()
    assert len(members) > 0 or not len(losses)
    # What was left out adds no volume, so the front's is that of all.
    assert hypervolume(worst[whole], limit(losses)) == hypervolume(worst, limit(losses))


# ---- who stands


def relations(acyclic: bool) -> st.SearchStrategy[NDArray[np.bool_]]:
    square = st.integers(0, 8).flatmap(lambda n: hnp.arrays(np.bool_, (n, n)))
    return square.map(
        lambda beats: np.triu(beats, 1) if acyclic else beats & ~np.eye(len(beats), dtype=bool)
    )


@given(relations(acyclic=False))
def test_no_two_that_stand_beat_each_other_and_nobody_leaves_unbeaten(
    beats: NDArray[np.bool_],
) -> None:
    stands = kernel(beats)
    assert stands.any() or not len(beats)
    assert not beats[np.ix_(stands, stands)].any()
    assert beats[:, ~stands].any(axis=0).all()


@given(relations(acyclic=True), st.data())
def test_without_circles_the_order_does_not_matter(
    beats: NDArray[np.bool_], data: st.DataObject
) -> None:
    stands = kernel(beats)
    assert beats[np.ix_(stands, ~stands)].any(axis=0).all()  # by one that stands
    order = np.array(data.draw(st.permutations(range(len(beats)))), dtype=int)
    assert (kernel(beats[np.ix_(order, order)]) == stands[order]).all()


def test_of_a_circle_the_last_leaves() -> None:
    circle = np.zeros((4, 4), dtype=bool)
    circle[0, 1] = circle[1, 2] = circle[2, 0] = True
    circle[2, 3] = True  # beaten by one that leaves
    assert kernel(circle).tolist() == [True, False, False, True]
    both = np.array([[False, True], [True, False]])
    assert kernel(both).tolist() == [True, False]
