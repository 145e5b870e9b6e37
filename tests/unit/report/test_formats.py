"""Every figure is written one way."""

from __future__ import annotations

import pytest

from search.records.formats import (
    ARROW,
    DASH,
    TIMES,
    format_bits,
    format_bytes,
    format_count,
    format_ms,
    format_ms_interval,
    format_outcomes,
    format_share,
    format_speedup,
    format_us,
)
from tests.plants import make_cost, plant


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.036149, "0.0361 ms"),
        (0.5, "0.500 ms"),
        (1.0, "1.00 ms"),
        (9.994, "9.99 ms"),
        (9.996, "10.0 ms"),
        (123.4, "123 ms"),
        (12345.6, "12346 ms"),
        (0.0, "0.00 ms"),
        (None, DASH),
    ],
)
def test_milliseconds_have_three_significant_digits(value: float | None, text: str) -> None:
    assert format_ms(value) == text


def test_interval_has_the_digits_of_its_value() -> None:
    assert format_ms_interval(0.5, 0.4, 0.71234) == f"0.500 ms [0.400{DASH}0.712]"


@pytest.mark.parametrize(
    ("found", "text"),
    [
        ((2.311, 2.249, 2.379), "2.31x [2.25-2.38]"),
        ((12.34, 9.87, 15.0), "12.34x [9.87-15.00]"),
    ],
)
def test_speedup_shows_its_interval(found: tuple[float, float, float], text: str) -> None:
    value, low, high = found
    cost = make_cost(speedup=value, speedup_low=low, speedup_high=high)
    assert format_speedup(cost) == text.replace("x", TIMES).replace("-", DASH)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (1023, "1023 B"),
        (1024, "1.00 KiB"),
        (431 * 1024, "431 KiB"),
        (1024**2, "1.00 MiB"),
        (61 * 1024**2, "61.0 MiB"),
        (None, DASH),
    ],
)
def test_sizes_are_binary(size: int | None, text: str) -> None:
    assert format_bytes(size) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(999, "999"), (98_765, "98.8 k"), (1_234_567, "1.23 M"), (2 * 10**9, "2.00 G"), (None, DASH)],
)
def test_large_counts_are_shortened(count: int | None, text: str) -> None:
    assert format_count(count) == text


@pytest.mark.parametrize(
    ("bits", "effective", "text"),
    [(8, 8.0, "8"), (8, None, "8"), (4, 32.0, f"4 {ARROW} 32"), (8, 13.3333, f"8 {ARROW} 13.3")],
)
def test_bits_show_what_is_computed_in_where_it_differs(
    bits: int, effective: float | None, text: str
) -> None:
    assert format_bits(bits, effective) == text


def test_shares_are_per_cent() -> None:
    assert format_share(0.91421) == "91.42 %"
    assert format_share(0.375, decimals=0) == "38 %"
    assert format_share(None) == DASH


def test_outcomes_are_counted_the_absent_too() -> None:
    records = [plant(0), plant(1, outcome="stopped"), plant(2, outcome="stopped")]
    assert format_outcomes(records) == "3 trials: 1 complete, 2 stopped, 0 infeasible, 0 failed"
    assert format_outcomes(records[:1]).startswith("1 trial: 1 complete")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_no_number_does_not_look_like_one(value: float) -> None:
    assert {format_ms(value), format_us(value), format_share(value)} == {DASH}
    assert format_ms_interval(value, 1.0, 2.0) == DASH
