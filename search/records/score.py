"""How many images a model recognises."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Score:
    """Top-1 accuracy over a number of images.

    Attributes:
        accuracy: 0..1.
        images: Number of images in the split.
        right: Which of them were recognised, in order: bits, eight to a byte, in hexadecimal.
    """

    accuracy: float
    images: int
    right: str = ""
