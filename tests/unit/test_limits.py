"""A point is told in words which limits it breaks."""

from __future__ import annotations

from typing import Any

import pytest

from search.report.departures import broken_limits
from tests.fakes import lab
from tests.plants import make_cost

FIGURES = make_cost(latency_ms=1.0, size_bytes=1000, peak_rss_bytes=5000)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({}, []),
        ({"max_accuracy_drop": 0.02}, []),
        ({"max_accuracy_drop": 0.01}, ["it loses 2.00 % on test, 1.00 % is allowed"]),
        ({"max_latency_ms": 0.9}, ["it takes 1.00 ms, 0.900 ms is allowed"]),
        ({"max_size_bytes": 999}, ["it has 1000 B, 999 B is allowed"]),
        ({"max_memory_bytes": 4000}, ["it takes 4.88 KiB, 3.91 KiB is allowed"]),
    ],
)
def test_limits_are_kept_on_test(changes: dict[str, Any], fault: list[str]) -> None:
    assert broken_limits(FIGURES, 0.90, 0.92, lab(**changes)) == fault


def test_what_is_not_known_keeps_no_limit() -> None:
    narrow = lab(max_accuracy_drop=0.01)
    assert broken_limits(FIGURES, 0.9, None, narrow) == [
        "its accuracy drop is not known, at most 1.00 % is allowed"
    ]
    assert broken_limits(FIGURES, 0.9, None, lab()) == []


def test_little_better_than_guessing_is_told_on_test() -> None:
    even = lab()  # two classes; the original has 0.95 on validation
    (fault,) = broken_limits(FIGURES, 0.70, 0.92, even)
    assert fault == (
        "it is little better than guessing: 70.00 % on test, where at least 71.00 % is wanted"
    )
    assert broken_limits(FIGURES, 0.71, 0.92, even) == []
    assert broken_limits(FIGURES, 0.72, None, even) != []  # half of the way to 0.95
    assert broken_limits(FIGURES, 0.70, 0.92, lab(min_accuracy_share=0.4)) == []
