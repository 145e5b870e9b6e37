"""Says in words why a finalist leaves the front: which limits it breaks, or who beats it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from search.front.standing import Beaten
from search.records.baseline import least_accuracy
from search.records.bench import Lab
from search.records.formats import format_bytes, format_ms, format_share
from search.records.trial import Cost

BETTER: Mapping[str, str] = {
    "accuracy": "more accurate",
    "latency": "faster",
    "size": "smaller",
    "cpu": "lighter on the processor",
    "memory": "lighter on memory",
}
WORSE: Mapping[str, str] = {
    "accuracy": "less accurate",
    "latency": "slower",
    "size": "larger",
    "cpu": "heavier on the processor",
    "memory": "heavier on memory",
}


def describe_beaten(beaten: Beaten, by: str) -> str:
    """Returns why a finalist leaves that another one beats, which is called ``by``."""
    name = by if by.isdigit() else f"the {by}"
    text = f"{name} is {' and '.join(BETTER[n] for n in beaten.better)}"
    if beaten.even:
        text += f" and not measurably {' or '.join(WORSE[n] for n in beaten.even)}"
    return text


def broken_limits(cost: Cost, accuracy: float, original: float | None, lab: Lab) -> list[str]:
    """Returns what is wrong, one clause a limit; what is not known keeps no limit.

    Args:
        cost: Of the point.
        accuracy: Its own on the test split, 0..1.
        original: The uncompressed network's there; None where it is not known.
        lab: The study's, with its limits.
    """

    def size(value: float) -> str:
        return format_bytes(round(value))

    limits, drop = lab.bench.limits, None if original is None else original - accuracy
    checks: list[tuple[str, str, float | None, float | None, Callable[[float], str]]] = [
        ("loses", "accuracy drop", drop, limits.max_accuracy_drop, format_share),
        ("takes", "latency", cost.latency_ms, limits.max_latency_ms, format_ms),
        ("has", "size", cost.size_bytes, limits.max_size_bytes, size),
        ("takes", "memory", cost.peak_rss_bytes, limits.max_memory_bytes, size),
    ]
    # What the original has on validation stands for what is not known.
    whole = lab.reference_accuracy if original is None else original
    least = least_accuracy(lab.bench.data.chances[2], whole, limits.min_accuracy_share)
    found = []
    if round(least - accuracy, 12) > 0:  # 0.90 - 0.89 is a hair above 0.01 in binary
        found.append(
            f"it is little better than guessing: {format_share(accuracy)} on test, where at least "
            f"{format_share(least)} is wanted"
        )
    for verb, name, value, limit, shown in checks:
        if limit is None:
            continue
        if value is None:
            found.append(f"its {name} is not known, at most {shown(limit)} is allowed")
        elif round(value - limit, 12) > 0:
            on_test = " on test" if verb == "loses" else ""
            found.append(f"it {verb} {shown(value)}{on_test}, {shown(limit)} is allowed")
    return found
