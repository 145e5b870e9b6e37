"""Says in words which limits of a study a point breaks; knows neither searching nor tracking."""

from __future__ import annotations

from collections.abc import Callable

from search.config import ObjectiveConfig
from search.records import Figures
from search.report.formats import format_bytes, format_ms, format_share


def broken_limits(figures: Figures, drop: float | None, limits: ObjectiveConfig) -> list[str]:
    """Returns what is wrong, one clause a limit; what is not known keeps no limit.

    Args:
        figures: Of the point.
        drop: By how much it is less accurate than the original on the test split, 0..1.
        limits: Of the study.
    """

    def size(value: float) -> str:
        return format_bytes(round(value))

    checks: list[tuple[str, str, float | None, float | None, Callable[[float], str]]] = [
        ("loses", "accuracy drop", drop, limits.max_accuracy_drop, format_share),
        ("takes", "latency", figures.latency_ms, limits.max_latency_ms, format_ms),
        ("has", "size", figures.size_bytes, limits.max_size_bytes, size),
        ("takes", "memory", figures.peak_rss_bytes, limits.max_memory_bytes, size),
    ]
    found = []
    for verb, name, value, limit, shown in checks:
        if limit is None:
            continue
        if value is None:
            found.append(f"its {name} is not known, at most {shown(limit)} is allowed")
        elif round(value - limit, 12) > 0:  # 0.90 - 0.89 is a hair above 0.01 in binary
            on_test = " on test" if verb == "loses" else ""
            found.append(f"it {verb} {shown(value)}{on_test}, {shown(limit)} is allowed")
    return found
