"""The uncompressed network's figures, which all others are compared with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from search.records.measurement import Measurement


@dataclass(frozen=True)
class Baseline:
    """The uncompressed network's latency at every thread count.

    Attributes:
        base_ms: Median latency at the smallest thread count.
        against_base: Thread count to its measurement against the smallest thread count.
    """

    base_ms: float
    against_base: Mapping[int, Measurement]

    def latency_ms(self, threads: int) -> float:
        """Returns the uncompressed network's latency at ``threads``."""
        return self.base_ms * self.against_base[threads].ratio

    @property
    def best_threads(self) -> int:
        """The thread count at which the uncompressed network is fastest."""
        return min(self.against_base, key=self.latency_ms)


def least_accuracy(chance: float, original: float, share: float) -> float:
    """Returns below which accuracy a network is little better than guessing, 0..1.

    Args:
        chance: Accuracy of guessing on the same images, 0..1.
        original: The uncompressed network's accuracy on them, 0..1.
        share: Of the way from the one to the other, 0..1; 0 takes any accuracy.
    """
    if share == 0:
        return 0.0
    return chance + share * max(0.0, original - chance)
