"""Chooses one point of a front by a user's rules."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from search.config.commands import PickConfig, Preference
from search.errors import ConfigError, NotMet
from search.front import pareto
from search.front.candidates import Candidate, Offer, accuracy_drop
from search.records.formats import format_bytes, format_ms, format_share

# How much less accurate than the original the point called fastest may be, where nothing is said.
ALLOWED_DROP = 0.01
LEAST_FOR_A_KNEE = 3


@dataclass(frozen=True)
class Limit:
    """One bound that a pick must keep.

    Attributes:
        key: As the user gives it.
        name: Of the figure that it bounds.
        bound: The value given.
        figure: Returns a candidate's value; None where it is not known.
        shown: Writes such a value.
        at_least: Whether the bound is the least allowed, and not the most.
    """

    key: str
    name: str
    bound: float
    figure: Callable[[Candidate], float | None]
    shown: Callable[[float], str]
    at_least: bool = False

    def excess(self, candidate: Candidate) -> float:
        """Returns by which share of the bound it is broken; at most 0 keeps it."""
        value = self.figure(candidate)
        if value is None:
            return math.inf
        beyond = self.bound - value if self.at_least else value - self.bound
        # 0.90 - 0.89 is a hair above 0.01 in binary.
        return round(beyond, 12) / (abs(self.bound) or 1.0)

    def offer(self, candidate: Candidate) -> str:
        """Writes the candidate's value of the figure."""
        value = self.figure(candidate)
        return "unknown" if value is None else self.shown(value)

    def __str__(self) -> str:
        """Writes the limit as the command line takes it."""
        return f"{self.key}={self.bound:.12g}"


def limits_of(config: PickConfig, reference: Candidate | None) -> list[Limit]:
    """Returns the limits that were given.

    Args:
        config: The user's rules.
        reference: The uncompressed network, from whose accuracy a drop is counted.

    Raises:
        ConfigError: When a drop is limited and there is nothing to count it from.
    """

    def drop(candidate: Candidate) -> float | None:
        return None if reference is None else accuracy_drop(candidate, reference)

    if config.max_accuracy_drop is not None and reference is None:
        raise ConfigError(
            f"max_accuracy_drop={config.max_accuracy_drop:g}: the original has no accuracy in this "
            "study; give min_accuracy instead"
        )

    def size(value: float) -> str:
        return format_bytes(round(value))

    known: list[tuple[str, str, Callable[[Candidate], float | None], Callable[[float], str]]] = [
        ("max_latency_ms", "latency", lambda c: c.figures.latency_ms, format_ms),
        ("min_accuracy", "accuracy", lambda c: c.accuracy, format_share),
        ("max_accuracy_drop", "accuracy drop", drop, format_share),
        ("max_size_bytes", "size", lambda c: c.figures.size_bytes, size),
        ("max_p99_ms", "p99", lambda c: c.figures.p99_ms, format_ms),
    ]
    return [
        Limit(key, name, bound, figure, shown, at_least=key.startswith("min_"))
        for key, name, figure, shown in known
        if (bound := getattr(config, key)) is not None
    ]


def choose(candidates: Sequence[Candidate], limits: Sequence[Limit], prefer: Preference) -> int:
    """Returns the index of the best candidate that keeps all limits.

    Raises:
        NotMet: When none does; names the limit that binds and the nearest candidate. Also where a
            knee is preferred of points that have none.
    """
    kept = [i for i, c in enumerate(candidates) if all(limit.excess(c) <= 0 for limit in limits)]
    if not kept:
        raise NotMet(_explain(candidates, limits))
    if prefer == "knee" and len(candidates) < LEAST_FOR_A_KNEE:
        raise NotMet(
            f"prefer=knee: a front bends from {LEAST_FOR_A_KNEE} points on, this one has "
            f"{len(candidates)}; give prefer=accuracy, latency or size"
        )
    bends = _bends(candidates)

    def order(index: int) -> tuple[float, ...]:
        c = candidates[index]
        size = c.figures.size_bytes
        key: dict[Preference, tuple[float, ...]] = {
            "accuracy": (-c.accuracy, c.latency_ms),
            "latency": (c.latency_ms, -c.accuracy),
            "size": (size, -c.accuracy, c.latency_ms),
            "knee": (-bends[index], c.latency_ms),
        }
        return (*key[prefer], c.number)

    return min(kept, key=order)


def preference(config: PickConfig) -> Preference:
    """Returns what to prefer among points that keep the limits: what they leave free."""
    if config.prefer is not None:
        return config.prefer
    of_accuracy = config.min_accuracy is not None or config.max_accuracy_drop is not None
    of_speed = config.max_latency_ms is not None or config.max_p99_ms is not None
    return "latency" if of_accuracy and not of_speed else "accuracy"


def recommend(offered: Offer, allowed_drop: float | None) -> dict[str, tuple[Candidate, str]]:
    """Names the points that most users want, each with what its name does not say.

    Args:
        offered: With at least one candidate.
        allowed_drop: Accuracy that the study allows to be given up; None where it says nothing.
    """
    candidates = offered.candidates
    drop = ALLOWED_DROP if allowed_drop is None else allowed_drop
    reference = offered.original or max(candidates, key=lambda c: c.accuracy)
    near = [c for c in candidates if _loses_at_most(c, reference, drop)]
    named: dict[str, tuple[Candidate, str]] = {}
    if near:
        whom = "the original" if offered.original else "the most accurate"
        within = f"within {format_share(drop, 1)} of {whom}"
        named["fastest"] = near[choose(near, [], "latency")], within
    named["most_accurate"] = candidates[choose(candidates, [], "accuracy")], ""
    named["smallest"] = candidates[choose(candidates, [], "size")], ""
    if len(candidates) >= LEAST_FOR_A_KNEE:
        reason = "where the front bends most"
        named["knee"] = candidates[choose(candidates, [], "knee")], reason
    return named


def _loses_at_most(candidate: Candidate, reference: Candidate, allowed: float) -> bool:
    return round(accuracy_drop(candidate, reference) - allowed, 12) <= 0


def _bends(candidates: Sequence[Candidate]) -> list[float]:
    points = np.array([[1 - c.accuracy, c.latency_ms] for c in candidates]).reshape(-1, 2)
    return [float(bend) for bend in pareto.bends(points)]


def _explain(candidates: Sequence[Candidate], limits: Sequence[Limit]) -> str:
    """Says which limits bind, and what the nearest point offers."""
    hopeless = [limit for limit in limits if all(limit.excess(c) > 0 for c in candidates)]
    nearest = min(candidates, key=lambda c: max(limit.excess(c) for limit in limits))
    binding = hopeless or [limit for limit in limits if limit.excess(nearest) > 0]
    verb = "binds" if len(binding) == 1 else "bind"
    offers = ", ".join(f"{limit.name} {limit.offer(nearest)}" for limit in limits)
    wanted, keys = " and ".join(map(str, limits)), " and ".join(limit.key for limit in binding)
    if len(candidates) == 1:
        return f"trial {nearest.number} does not keep {wanted}; {keys} {verb}: it offers {offers}"
    return (
        f"no point of the front keeps {wanted}; {keys} {verb}: the nearest point, trial "
        f"{nearest.number}, offers {offers}"
    )
