"""Who stands in the closing round, on planted finalists."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from search.front.standing import Rivals, joint_level
from search.report.departures import describe_beaten

LAUNCHES, IMAGES = 14, 400
NAMES = ("accuracy", "latency", "size", "cpu", "memory")


@st.composite
def rivals(draw: st.DrawFn) -> Rivals:
    """Finalists near one another, whose figures are as noisy as their differences are large."""
    count = draw(st.integers(1, 7))
    names = draw(st.sampled_from([NAMES[:2], NAMES[:3], NAMES, ("size", "latency")]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    noise = draw(st.sampled_from([0.001, 0.02, 0.1]))

    def logs() -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        centres = rng.integers(0, 4, (count, 1)) * 0.02
        found: np.ndarray[tuple[int, ...], np.dtype[np.float64]]
        found = centres + rng.normal(0, noise, (count, LAUNCHES))
        return found

    # Answers differ by a share of the images, as those of students of one teacher do.
    teacher = rng.random(IMAGES) < 0.9
    share = draw(st.sampled_from([0.02, 0.1]))
    right = [teacher ^ (rng.random(IMAGES) < share * rng.random()) for _ in range(count)]
    return Rivals(
        numbers=list(range(count)),
        logs={name: logs() for name in ("latency", "cpu", "memory")},
        right=right,
        sizes=[int(size) for size in rng.integers(1, 4, count)],
        level=joint_level(count, names),
        objectives=names,
    )


@settings(max_examples=60, deadline=None)
@given(rivals())
def test_nobody_stands_beside_one_that_beats_it(found: Rivals) -> None:
    everyone = list(range(len(found.numbers)))
    reasons = found.standing(everyone)
    standing = [index for index in everyone if not reasons[index]]
    assert standing
    for one in standing:
        assert not any(found.beats(other, one) for other in standing)
    for one in set(everyone) - set(standing):
        assert any(found.beats(other, one) for other in everyone)
    for group in found.ties(standing):
        assert all(found.are_alike(one, other) for one in group for other in group)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 7).flatmap(
        lambda count: st.lists(st.permutations(range(count)), min_size=4, max_size=4)
    ),
    st.sampled_from([("size", "latency"), ("latency", "cpu"), NAMES[1:]]),
    st.integers(0, 2**32 - 1),
)
def test_where_nothing_is_in_doubt_the_front_stands(
    ranks: Sequence[Sequence[int]], names: tuple[str, ...], seed: int
) -> None:
    """Centres twenty times as far apart as their noise, no two alike: dominance is what it is."""
    latency, cpu, memory, size = np.array(ranks)
    count, rng = len(size), np.random.default_rng(seed)
    true = {"latency": latency, "cpu": cpu, "memory": memory, "size": size}
    found = Rivals(
        numbers=list(range(count)),
        logs={
            name: 0.02 * true[name][:, None] + rng.normal(0, 0.001, (count, LAUNCHES))
            for name in ("latency", "cpu", "memory")
        },
        right=[np.ones(IMAGES, np.bool_)] * count,
        sizes=[int(number) for number in size],
        level=joint_level(count, names),
        objectives=names,
    )
    losses = np.stack([true[name] for name in names], axis=1)
    dominated = [any((other < own).all() for other in losses) for own in losses]
    reasons = found.standing(list(range(count)))
    assert [bool(reasons[index]) for index in range(count)] == dominated


def _rivals(
    latencies: Sequence[float],
    right: Sequence[float],
    names: Sequence[str],
    **more: Sequence[float],
) -> Rivals:
    rng = np.random.default_rng(0)

    def logs(values: Sequence[float]) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        found: np.ndarray[tuple[int, ...], np.dtype[np.float64]]
        found = np.log(np.array(values))[:, None] + rng.normal(0, 0.002, (len(values), LAUNCHES))
        return found

    count = len(latencies)
    level = joint_level(count, names)
    even = [1.0] * count
    return Rivals(
        numbers=list(range(count)),
        logs={
            "latency": logs(latencies),
            "cpu": logs(more.get("cpu", even)),
            "memory": logs(more.get("memory", even)),
        },
        right=[np.arange(10_000) < 10_000 * share for share in right],
        sizes=[int(size) for size in more.get("size", even)],
        level=level,
        objectives=names,
    )


def called(number: int) -> str:
    return "original" if number == 0 else str(number)


def told(found: Rivals, order: Sequence[int]) -> dict[int, str]:
    """Who stands, in words."""
    decided = found.standing(order).items()
    return {
        index: "" if beaten is None else describe_beaten(beaten, called(beaten.by))
        for index, beaten in decided
    }


def test_a_more_accurate_point_that_is_as_fast_takes_the_other_away() -> None:
    # Trials 1 and 28 of a default study stood side by side.
    found = _rivals([0.0174, 0.0174], [0.9149, 0.9079], ("accuracy", "latency"))
    assert told(found, [0, 1]) == {
        0: "",
        1: "the original is more accurate and not measurably slower",
    }


def test_a_point_holds_out_by_a_latency_that_is_better_for_itself() -> None:
    """As two of a busy machine's default study: 90.4 % at 2.45x and 91.4 % at 2.28x."""
    rng = np.random.default_rng(0)
    logs = -np.log([[2.28], [2.45]]) + rng.normal(0, 0.06, (2, LAUNCHES))
    found = Rivals(
        numbers=[26, 48],
        logs={"latency": logs},
        right=[np.arange(10_000) < count for count in (9140, 9040)],
        sizes=[1, 1],
        level=joint_level(12, ("latency",)),
        objectives=("accuracy", "latency"),
    )
    assert found.compare(1, 0, "latency") == 0  # not with all the others at once
    assert told(found, [0, 1]) == {0: "", 1: ""}


def test_what_is_traded_counts_and_nothing_else() -> None:
    alike: dict[str, Sequence[float]] = {"size": [2, 1], "cpu": [1.0, 0.9], "memory": [1.0, 0.9]}
    for name, word in {
        "size": "smaller",
        "cpu": "lighter on the processor",
        "memory": "lighter on memory",
    }.items():
        found = _rivals([1.0, 1.0], [0.9, 0.9], ("accuracy", "latency", name), **alike)
        assert told(found, [0, 1])[0].startswith(f"1 is {word} and not measurably")
        assert not found.are_alike(0, 1)
    plain = _rivals([1.0, 1.0], [0.9, 0.9], ("accuracy", "latency"), **alike)
    assert told(plain, [0, 1]) == {0: "", 1: ""}
    assert plain.are_alike(0, 1)
    only = _rivals([1.0, 0.9], [0.99, 0.9], ("size", "latency"), **alike)
    assert told(only, [0, 1]) == {0: "1 is smaller and faster", 1: ""}


def test_of_three_points_in_a_circle_the_last_leaves() -> None:
    rng = np.random.default_rng(0)
    sure, vague = (rng.normal(0, scale, (3, LAUNCHES)) for scale in (0.001, 0.1))
    vague -= np.mean(vague, axis=1, keepdims=True)
    images = np.arange(10_000)
    found = Rivals(
        numbers=[4, 5, 6],
        logs={
            "latency": np.array([sure[0], sure[1] + 0.02, vague[2]]),
            "cpu": np.array([vague[0], sure[1], sure[2] + 0.02]),
        },
        right=[images < 9000, images >= 990, images < 9020],
        sizes=[1, 1, 1],
        level=joint_level(3, ("latency", "cpu")),
        objectives=("accuracy", "latency", "cpu"),
    )
    beats = [[found.beats(one, other) for other in range(3)] for one in range(3)]
    assert np.argwhere(beats).tolist() == [[0, 1], [1, 2], [2, 0]]
    # 6 leaves as the last, then nobody beats 4, which beats 5.
    assert told(found, [0, 1, 2]) == {
        0: "",
        1: "4 is faster and not measurably less accurate or heavier on the processor",
        2: "5 is lighter on the processor and not measurably less accurate or slower",
    }
    assert [i for i, why in told(found, [1, 2, 0]).items() if not why] == [1]
