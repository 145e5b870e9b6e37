"""Says in words which limits of a study a point breaks; knows neither searching nor tracking."""

from __future__ import annotations

from collections.abc import Callable

from search.figures import least_accuracy
from search.records import Figures
from search.report.formats import format_bytes, format_ms, format_share
from search.trial import Lab


def broken_limits(figures: Figures, accuracy: float, original: float | None, lab: Lab) -> list[str]:
    """Returns what is wrong, one clause a limit; what is not known keeps no limit.

    Args:
        figures: Of the point.
        accuracy: Its own on the test split, 0..1.
        original: The uncompressed network's there; None where it is not known.
        lab: The study's, with its limits.
    """

    def size(value: float) -> str:
        return format_bytes(round(value))

    limits, drop = lab.bench.limits, None if original is None else original - accuracy
    checks: list[tuple[str, str, float | None, float | None, Callable[[float], str]]] = [
        ("loses", "accuracy drop", drop, limits.max_accuracy_drop, format_share),
        ("takes", "latency", figures.latency_ms, limits.max_latency_ms, format_ms),
        ("has", "size", figures.size_bytes, limits.max_size_bytes, size),
        ("takes", "memory", figures.peak_rss_bytes, limits.max_memory_bytes, size),
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
