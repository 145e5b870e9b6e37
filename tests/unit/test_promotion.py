"""The gate lets through what is no worse than the champion beyond the noise, and nothing else."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from search.candidates import Candidate
from search.promotion import (
    Champion,
    broken_limits,
    facts_for_comparison,
    objections,
)
from search.records import Deployable, Figures, Point
from tests.fakes import DATA, PROFILE, file, limits

POINT = Point(0.5, 32, 4.0, 0.9, "sgd", 0.01, "cosine", 1)
MODEL = Deployable(file("a"), 4, (("session.disable_quant_qdq", "1"),))
IMAGES = 1000


def candidate(accuracy: float, latency_ms: float, half: float = 0.01) -> Candidate:
    figures = Figures(
        latency_ms=latency_ms,
        latency_ratio=1.0,
        latency_ratio_low=1 - half,
        latency_ratio_high=1 + half,
        size_bytes=1000,
        peak_rss_bytes=5000,
    )
    return Candidate(
        1, POINT, MODEL, figures, "test", accuracy, 0.0, 1.0, None, confirmed=True, left=""
    )


def right(count: int) -> NDArray[np.bool_]:
    return np.arange(IMAGES) < count


def champion(accuracy: float, latency_ms: float, **others: str) -> Champion:
    facts = facts_for_comparison(candidate(accuracy, latency_ms), DATA, PROFILE)
    kept = json.loads(json.dumps(facts))  # as the registry does
    return Champion("3", {**kept, **others}, right(round(accuracy * IMAGES)))


@pytest.mark.parametrize(
    ("accuracy", "latency_ms", "worse_in"),
    [
        (0.90, 1.00, []),
        (0.95, 0.50, []),
        (0.897, 1.00, []),  # 3 images lost and none gained: by chance in 1 of 8 cases
        (0.895, 1.00, ["less accurate"]),  # 5 images: in 1 of 32
        (0.90, 1.01, []),  # the intervals meet
        (0.90, 1.03, ["slower"]),
        (0.80, 2.00, ["less accurate", "slower"]),
        (0.80, 0.50, ["less accurate"]),
    ],
)
def test_worse_beyond_the_noise_is_refused(
    accuracy: float, latency_ms: float, worse_in: list[str]
) -> None:
    found = objections(
        candidate(accuracy, latency_ms),
        right(round(accuracy * IMAGES)),
        champion(0.90, 1.00),
        DATA,
        PROFILE,
    )
    assert len(found) == len(worse_in)
    assert all(word in text for word, text in zip(worse_in, found, strict=True))


def test_the_first_champion_meets_no_objection() -> None:
    assert objections(candidate(0.1, 9.0), right(100), None, DATA, PROFILE) == []


@pytest.mark.parametrize(
    ("others", "fault"),
    [
        ({"data": "other"}, "other data"),
        ({"cpu": "another"}, "another device"),
        ({"runtime": "onnxruntime 2"}, "another device"),
    ],
)
def test_what_does_not_compare_is_refused(others: dict[str, str], fault: str) -> None:
    (found,) = objections(
        candidate(0.99, 0.1), right(990), champion(0.90, 1.0, **others), DATA, PROFILE
    )
    assert fault in found


def test_a_champion_that_somebody_else_registered_does_not_compare() -> None:
    found = objections(candidate(0.99, 0.1), right(990), Champion("1", {}, None), DATA, PROFILE)
    assert len(found) == 2


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
    original = replace(candidate(0.92, 2.0), number=0)
    assert broken_limits(candidate(0.90, 1.0), original, limits(**changes)) == fault
