"""The gate lets through what is no worse than the champion beyond the noise, and nothing else."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from search.front.candidates import Candidate
from search.front.promotion import Champion, facts_for_comparison, objections
from tests.deployables import make_deployable
from tests.fakes import file, lab
from tests.plants import make_figures
from tests.points import make_point

POINT = make_point(0.5, 32, 4.0, 0.9, "sgd", 0.01, "cosine", 1)
MODEL = make_deployable(file("a"), 4, (("session.disable_quant_qdq", "1"),))
IMAGES = 1000


def candidate(accuracy: float, latency_ms: float, half: float = 0.01) -> Candidate:
    figures = make_figures(
        latency_ms=latency_ms,
        latency_ratio=1.0,
        latency_ratio_low=1 - half,
        latency_ratio_high=1 + half,
        size_bytes=1000,
        peak_rss_bytes=5000,
    )
    return Candidate(
        1, False, POINT, MODEL, figures, "test", accuracy, 0.0, 1.0, None, confirmed=True, left=""
    )


def right(count: int) -> NDArray[np.bool_]:
    return np.arange(IMAGES) < count


def champion(accuracy: float, latency_ms: float, **others: str) -> Champion:
    facts = facts_for_comparison(candidate(accuracy, latency_ms), lab())
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
        lab(),
    )
    assert len(found) == len(worse_in)
    assert all(word in text for word, text in zip(worse_in, found, strict=True))


def test_the_first_champion_meets_no_objection() -> None:
    assert objections(candidate(0.1, 9.0), right(100), None, lab()) == []


@pytest.mark.parametrize(
    ("others", "fault"),
    [
        ({"data": "other"}, "other data"),
        ({"cpu": "another"}, "another cpu"),
        ({"runtime": "onnxruntime 2"}, "another runtime"),
        ({"batch_size": "8", "spinning": "true"}, "another batch_size, spinning"),
        ({"original": "0"}, "another original"),
    ],
)
def test_what_does_not_compare_is_refused(others: dict[str, str], fault: str) -> None:
    (found,) = objections(candidate(0.99, 0.1), right(990), champion(0.90, 1.0, **others), lab())
    assert fault in found


def test_a_champion_that_somebody_else_registered_does_not_compare() -> None:
    found = objections(candidate(0.99, 0.1), right(990), Champion("1", {}, None), lab())
    assert len(found) == 2


def test_latencies_are_compared_by_what_they_are_of_the_original() -> None:
    there = lab()
    slow_hour = replace(there, baseline=replace(there.baseline, base_ms=2.0))
    facts = facts_for_comparison(candidate(0.9, 1.0), there)
    known = Champion("3", facts, right(900))
    assert objections(candidate(0.9, 2.0), right(900), known, slow_hour) == []
    assert objections(candidate(0.9, 2.1), right(900), known, slow_hour) != []
    assert objections(candidate(0.9, 1.05), right(900), known, there) != []
