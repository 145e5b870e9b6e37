"""A model in the format in which it is deployed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from search.records.files import File

Int8Format = Literal["u8s8", "u8s8_reduced", "s8s8"]


@dataclass(frozen=True, slots=True)
class Format:
    """A way to store a model's weights, and what arithmetic computes them.

    Attributes:
        name: In sentences and tables.
        bits: Of a stored weight.
        computes: In which arithmetic convolutions and matrix products are done.
    """

    name: str
    bits: int
    computes: Literal["float", "integers"]

    @property
    def is_unpacked(self) -> bool:
        """Whether weights are stored in fewer bits than they are computed in."""
        return self.computes == "float" and self.bits < 32


@dataclass(frozen=True, slots=True)
class Deployable:
    """A model file in one format, with what its runtime must be told.

    Attributes:
        model: The file; raw ``[N, C, H, W]`` pixels in 0..1 to logits ``[N, classes]``.
        runtime: Name of the runtime that it is made for.
        format: How its weights are stored.
        options: Of its session, beside those that all sessions have.
    """

    model: File
    runtime: str
    format: Format
    options: tuple[tuple[str, str], ...] = ()

    @property
    def bits(self) -> int:
        """Nominal bits of the weights."""
        return self.format.bits
