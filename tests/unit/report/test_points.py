"""What is drawn, and the window it is seen through."""

from __future__ import annotations

import pytest

from search.report.points import frame, place, staircase
from tests.plants import plant


def test_only_scored_and_measured_trials_have_a_place() -> None:
    records = [
        plant(0),
        plant(3, outcome="stopped"),
        plant(4, outcome="failed"),
        plant(5, outcome="infeasible"),
        plant(6, outcome="infeasible", val_accuracy=None),
    ]
    assert {dot.number: dot.kind for dot in place(records, [0])} == {0: "front", 5: "infeasible"}


def test_dots_come_by_latency_with_its_interval() -> None:
    slow, fast = place([plant(1, latency_ms=3.0), plant(2, latency_ms=0.5)], {2})[::-1]
    assert (fast.number, fast.kind, slow.kind) == (2, "front", "dominated")
    # The planted ratio is 0.5 in [0.4, 0.7].
    assert (fast.low_ms, fast.high_ms) == pytest.approx((0.4, 0.7))
    assert (slow.low_ms, slow.high_ms) == pytest.approx((2.4, 4.2))


def test_the_original_is_called_so() -> None:
    original, other = place([plant(0), plant(1)], [])
    assert (original.is_original, other.is_original) == (True, False)
    assert (original.label, other.label) == ("original", "1")


def test_line_leaves_out_a_front_point_that_loses_in_this_plane() -> None:
    records = [
        plant(1, latency_ms=1.0, val_accuracy=0.8),
        plant(2, latency_ms=2.0, val_accuracy=0.7),  # on the front for its size, say
        plant(3, latency_ms=3.0, val_accuracy=0.9),
        plant(4, latency_ms=4.0, val_accuracy=0.95),  # not on the front
    ]
    assert [dot.number for dot in staircase(place(records, {1, 2, 3}))] == [1, 3]


def test_collapsed_trials_do_not_squeeze_the_front() -> None:
    good = [plant(n, val_accuracy=0.90 + 0.01 * n, latency_ms=1.0 + n) for n in range(4)]
    dots = place([*good, plant(9, val_accuracy=0.1)], {0, 1, 2, 3})
    view = frame(dots)
    assert 0.88 < view.lowest < 0.90
    assert 0.93 < view.highest < 0.95


def test_front_is_in_sight_however_low() -> None:
    records = [plant(n, val_accuracy=0.9) for n in range(8)] + [plant(9, val_accuracy=0.1)]
    assert frame(place(records, {9})).lowest < 0.1


@pytest.mark.parametrize(("slowest", "logarithmic"), [(10.0, False), (10.1, True)])
def test_latency_is_logarithmic_above_a_tenfold_spread(slowest: float, logarithmic: bool) -> None:
    dots = place([plant(1, latency_ms=1.0), plant(2, latency_ms=slowest)], [])
    assert frame(dots).log_latency is logarithmic


def test_one_dot_has_room_around_it() -> None:
    view = frame(place([plant(1, val_accuracy=1.0)], [1]))
    assert view.lowest < 1.0 < view.highest
