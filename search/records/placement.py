"""Where and how networks are trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Precision = Literal["float32", "bfloat16"]
Layout = Literal["contiguous", "channels_last"]  # of images and weights in memory


@dataclass(frozen=True)
class ChosenPlacement:
    """Where, in which arithmetic and in which layout networks are trained.

    Attributes:
        device: ``cpu`` or ``cuda``.
        precision: The arithmetic.
        layout: Of images and weights in memory.
        step_s: Seconds of one optimizer step of the uncompressed network so.
        others_s: The same of the other ways that were tried, by arithmetic and layout.
    """

    device: str
    precision: Precision
    layout: Layout
    step_s: float
    others_s: Mapping[str, float] = field(default_factory=dict)
