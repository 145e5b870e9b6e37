"""Decides whether a candidate may become the champion."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from search.benchmark.estimates import worse_by_chance
from search.benchmark.plan import PROTOCOL_VERSION
from search.front.candidates import Candidate
from search.records.bench import Lab
from search.records.formats import format_ms, format_share

ERROR = 0.05  # of the statement that one model is less accurate than another


@dataclass(frozen=True)
class Champion:
    """The model that a candidate would follow.

    Attributes:
        version: In the registry.
        facts: What was registered with it, as ``facts_for_comparison`` has it; may be empty.
        right: Images of the test split that it recognises, ``[images]``; None where it was made
            for other data.
    """

    version: str
    facts: Mapping[str, Any]
    right: NDArray[np.bool_] | None


def facts_for_comparison(candidate: Candidate, lab: Lab) -> dict[str, Any]:
    """Returns what must be registered with a model so that a later one can be compared, as JSON."""
    _, latency_high = _latency(candidate, lab)
    return {
        "latency_ms": candidate.latency_ms,
        "latency_high": latency_high,
        "bits": candidate.deployable.bits,
        "session_entries": [list(entry) for entry in candidate.deployable.options],
        "data": lab.bench.data.fingerprint,
        **_baseline(lab),
    }


def _baseline(lab: Lab) -> dict[str, Any]:
    """What latencies must have in common to be compared."""
    device, measuring = lab.bench.device, lab.bench.measuring
    return {
        "device": device.name,
        "cpu": device.cpu,
        "runtime": device.runtime,
        "protocol": PROTOCOL_VERSION,
        "batch_size": measuring.batch_size,
        "spinning": measuring.spinning,
        "original": lab.reference.model.sha256,
    }


def _latency(candidate: Candidate, lab: Lab) -> tuple[float, float]:
    """Returns the interval of its latency, as a multiple of the original's at its best.

    Two studies' milliseconds were found hours apart, each beside the original.
    """
    low_ms, high_ms = candidate.figures.latency_interval_ms
    original_ms = lab.baseline.latency_ms(lab.baseline.best_threads)
    return low_ms / original_ms, high_ms / original_ms


def objections(
    candidate: Candidate,
    right: NDArray[np.bool_],
    champion: Champion | None,
    lab: Lab,
) -> list[str]:
    """Returns in what the candidate is worse than the champion, beyond the noise.

    Accuracies are compared on the same images by McNemar's test; latencies by their intervals.

    Args:
        candidate: With its accuracy on test.
        right: Images of the test split that it recognises, ``[images]``.
        champion: The present one; without one there is nothing to object.
        lab: Of the candidate's study; the champion must have been found in one like it.
    """
    if champion is None:
        return []
    facts, name = champion.facts, f"the champion, version {champion.version},"
    found = []
    if champion.right is None or facts.get("data") != lab.bench.data.fingerprint:
        found.append(f"{name} was made for other data: accuracies do not compare")
    else:
        lost = int((champion.right & ~right).sum())
        gained = int((right & ~champion.right).sum())
        if worse_by_chance(gained, lost) < ERROR:
            there = format_share(float(champion.right.mean()))
            found.append(
                f"it is less accurate than {name} {format_share(candidate.accuracy)} against "
                f"{there} on test"
            )
    others = [key for key, value in _baseline(lab).items() if facts.get(key) != value]
    if others:
        found.append(
            f"{name} was measured with another {', '.join(others)}: latencies do not compare"
        )
    elif _latency(candidate, lab)[0] > facts["latency_high"]:
        found.append(
            f"it is slower than {name} {format_ms(candidate.latency_ms)} against "
            f"{format_ms(facts['latency_ms'])}"
        )
    return found
