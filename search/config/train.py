"""How networks are trained."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    Field,
    PlainValidator,
)
from pydantic.dataclasses import dataclass

from search.config.values import Count, NonNegative, Number, Positive, strict


def _rise_to_one(rungs: tuple[float, ...]) -> tuple[float, ...]:
    if list(rungs) != sorted(set(rungs)) or rungs[-1] != 1:
        raise ValueError("input should rise and end with 1, such as [0.5, 1.0]")
    return rungs


Rung = Annotated[Number, Field(gt=0, le=1)]


def _count_or_auto(value: object) -> object:
    is_count = isinstance(value, int) and not isinstance(value, bool) and value >= 1
    if value != "auto" and not is_count:
        raise ValueError("input should be a whole number from 1 on, or auto")
    return value


@dataclass(frozen=True, config=strict)
class TrainConfig:
    """Training of the teacher, fine-tuning and calibration of the students."""

    device: Literal["auto", "cpu", "cuda"]
    precision: Literal["auto", "float32", "bfloat16"]
    batch_size: Annotated[int | Literal["auto"], PlainValidator(_count_or_auto)]
    epochs: Positive
    rungs: Annotated[tuple[Rung, ...], Field(min_length=1), AfterValidator(_rise_to_one)]
    weight_decay: NonNegative
    teacher_epochs: Count
    teacher_learning_rate: Positive
    teacher_weight_decay: NonNegative
    calibration_images: Count
