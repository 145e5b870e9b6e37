"""What the sliders stop at: round numbers, and every point's own."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.report.limits import POSITIONS, accuracy_stops, latency_stops

LATENCIES = st.lists(st.floats(1e-4, 1e4), min_size=1, max_size=12)
ACCURACIES = st.lists(st.floats(0.0, 1.0), min_size=1, max_size=12)


@given(LATENCIES)
def test_every_latency_has_its_tightest_budget(latencies: list[float]) -> None:
    stops = [float(stop) for stop in latency_stops(latencies)]
    assert stops == sorted(set(stops))
    assert stops[0] < min(latencies)
    for latency_ms in latencies:
        least = next(stop for stop in stops if stop >= latency_ms)
        assert least <= latency_ms * 1.01  # three digits


@given(ACCURACIES)
def test_every_accuracy_has_its_tightest_floor(accuracies: list[float]) -> None:
    stops = [float(stop) for stop in accuracy_stops(accuracies)]
    assert stops == sorted(set(stops))
    assert all(0 < stop <= 1 for stop in stops)
    for accuracy in accuracies:
        greatest = max((stop for stop in stops if stop <= accuracy), default=0.0)
        assert greatest > accuracy - 0.0001 - 1e-12
    if max(accuracies) < 1:
        assert stops[-1] > max(accuracies)


@given(LATENCIES, ACCURACIES)
def test_stops_are_plain_decimals(latencies: list[float], accuracies: list[float]) -> None:
    for stop in (*latency_stops(latencies), *accuracy_stops(accuracies)):
        assert "e" not in stop.lower()
        assert str(Decimal(stop)) == stop or Decimal(stop) < Decimal("0.000001")


def test_stops_of_a_narrow_front_are_round_and_its_own() -> None:
    stops = latency_stops([0.0502, 0.08, 0.11])
    assert {"0.0502", "0.05", "0.0505", "0.06", "0.08", "0.11", "0.1105"} <= set(stops)
    assert {"0.9142", "0.91", "0.9", "0.8953", "0.8952"} <= set(accuracy_stops([0.91423, 0.8953]))


def test_stops_of_a_wide_front_have_two_digits_everywhere() -> None:
    stops = latency_stops([0.05, 50.0])
    assert {"0.05", "0.051", "0.52", "5.3", "49", "51"} <= set(stops)


@pytest.mark.parametrize("latencies", [[0.5], [0.5, 0.5], [0.5, 0.500001]])
def test_a_front_of_one_place_can_still_be_missed(latencies: list[float]) -> None:
    stops = latency_stops(latencies)
    assert float(stops[0]) < 0.5 < float(stops[-1])
    assert len(stops) < 3 * POSITIONS
