"""Points as tests write them down."""

from __future__ import annotations

from search.records.point import Point, Value
from search.space.dimension import dimensions
from search.space.space import Space

SPACE = Space({one.name: one.domain(64) for one in dimensions()}, dimensions())


def make_point(
    prune_ratio: float,
    bits: int,
    distill_temperature: float,
    distill_weight: float,
    optimizer: str,
    learning_rate: float,
    schedule: str,
    threads: int,
) -> Point:
    """A point of our own dimensions, and of plug-ins' what is sound."""
    sound: dict[str, Value] = {one.name: one.sound for one in dimensions()}
    return SPACE.make(
        {
            **sound,
            "prune_ratio": prune_ratio,
            "bits": bits,
            "distill_temperature": distill_temperature,
            "distill_weight": distill_weight,
            "optimizer": optimizer,
            "learning_rate": learning_rate,
            "schedule": schedule,
            "threads": threads,
        }
    )
