"""Decides whether a candidate may become the champion; knows no registry and no files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from search.benchmark.estimates import worse_by_chance
from search.candidates import Candidate
from search.config import ObjectiveConfig
from search.records import Dataset, DeviceProfile
from search.report.formats import format_bytes, format_ms, format_share

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


def facts_for_comparison(
    candidate: Candidate, data: Dataset, device: DeviceProfile
) -> dict[str, Any]:
    """Returns what must be registered with a model so that a later one can be compared, as JSON."""
    latency_ms = candidate.latency_ms
    _, high_ms = candidate.figures.latency_interval_ms or (latency_ms, latency_ms)
    return {
        "latency_ms": latency_ms,
        "latency_high_ms": high_ms,
        "bits": candidate.deployable.bits,
        "session_entries": [list(entry) for entry in candidate.deployable.session_entries],
        "data": data.fingerprint,
        **_place(device),
    }


def _place(device: DeviceProfile) -> dict[str, str]:
    """What latencies must have in common to be compared."""
    return {"device": device.name, "cpu": device.cpu, "runtime": device.runtime}


def broken_limits(
    candidate: Candidate, original: Candidate | None, limits: ObjectiveConfig
) -> list[str]:
    """Returns which limits of the study the candidate breaks, its accuracy that on test."""
    figures, found = candidate.figures, []
    if limits.max_accuracy_drop is not None:
        if original is None:
            found.append("the original has no accuracy that a drop could be counted from")
        else:
            drop = round(original.accuracy - candidate.accuracy, 12)
            if drop > limits.max_accuracy_drop:
                allowed = format_share(limits.max_accuracy_drop)
                found.append(f"it loses {format_share(drop)} on test, {allowed} is allowed")

    def size(value: float) -> str:
        return format_bytes(round(value))

    bounds: list[tuple[str, float | None, float | None, Callable[[float], str]]] = [
        ("takes", figures.latency_ms, limits.max_latency_ms, format_ms),
        ("has", figures.size_bytes, limits.max_size_bytes, size),
        ("takes", figures.peak_rss_bytes, limits.max_memory_bytes, size),
    ]
    for verb, value, limit, shown in bounds:
        if value is not None and limit is not None and value > limit:
            found.append(f"it {verb} {shown(value)}, {shown(limit)} is allowed")
    return found


def objections(
    candidate: Candidate,
    right: NDArray[np.bool_],
    champion: Champion | None,
    data: Dataset,
    device: DeviceProfile,
) -> list[str]:
    """Returns in what the candidate is worse than the champion, beyond the noise.

    Accuracies are compared on the same images by McNemar's test; latencies by their intervals.

    Args:
        candidate: With its accuracy on test.
        right: Images of the test split that it recognises, ``[images]``.
        champion: The present one; without one there is nothing to object.
        data: That both must have been made for.
        device: That both must have been measured on.
    """
    if champion is None:
        return []
    facts, name = champion.facts, f"the champion, version {champion.version},"
    found = []
    if champion.right is None or facts.get("data") != data.fingerprint:
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
    if any(facts.get(key) != value for key, value in _place(device).items()):
        found.append(f"{name} was measured on another device: latencies do not compare")
    else:
        low_ms = (candidate.figures.latency_interval_ms or (candidate.latency_ms, 0.0))[0]
        if low_ms > facts["latency_high_ms"]:
            found.append(
                f"it is slower than {name} {format_ms(candidate.latency_ms)} against "
                f"{format_ms(facts['latency_ms'])}"
            )
    return found
