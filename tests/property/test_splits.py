"""The stratified split over random label arrays."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from search.data.source import Labels
from search.data.splits import stratify


@st.composite
def labelled(draw: st.DrawFn) -> tuple[Labels, tuple[str, ...]]:
    counts = draw(st.lists(st.integers(2, 60), min_size=2, max_size=8))
    labels = np.repeat(np.arange(len(counts)), counts)
    order = draw(st.randoms(use_true_random=False))
    shuffled = labels.tolist()
    order.shuffle(shuffled)
    names = tuple(f"class {number}" for number in range(len(counts)))
    return np.array(shuffled, np.int64), names


shares = st.floats(0.01, 0.99)
# A busy machine must not fail a test that is right.
relaxed = settings(deadline=None)


@relaxed
@given(labelled(), shares)
def test_the_sides_partition_the_images(data: tuple[Labels, tuple[str, ...]], share: float) -> None:
    labels, names = data
    rest, cut = stratify(labels, names, share)
    assert sorted([*rest.tolist(), *cut.tolist()]) == list(range(len(labels)))
    assert (np.diff(rest) > 0).all()
    assert (np.diff(cut) > 0).all()


@relaxed
@given(labelled(), shares)
def test_the_same_labels_split_the_same_way(
    data: tuple[Labels, tuple[str, ...]], share: float
) -> None:
    labels, names = data
    before = labels.copy()
    first, second = stratify(labels, names, share), stratify(labels, names, share)
    assert np.array_equal(first[0], second[0])
    assert np.array_equal(first[1], second[1])
    assert np.array_equal(labels, before)


@relaxed
@given(labelled(), shares)
def test_every_class_meets_its_share_within_one_image_and_stands_on_both_sides(
    data: tuple[Labels, tuple[str, ...]], share: float
) -> None:
    labels, names = data
    rest, cut = stratify(labels, names, share)
    for number in range(len(names)):
        here, all_images = int((labels[cut] == number).sum()), int((labels == number).sum())
        assert abs(here - all_images * share) <= 1
        assert here >= 1
        assert (labels[rest] == number).any()


@relaxed
@given(labelled(), shares, st.integers(1, 20))
def test_more_images_of_one_class_leave_the_others_alone(
    data: tuple[Labels, tuple[str, ...]], share: float, more: int
) -> None:
    labels, names = data
    grown = np.concatenate([labels, np.zeros(more, np.int64)])
    _, before = stratify(labels, names, share)
    _, after = stratify(grown, names, share)
    assert before[labels[before] != 0].tolist() == after[grown[after] != 0].tolist()
