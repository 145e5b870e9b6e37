"""What is found out about a network before the first trial."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cut:
    """How much to prune, and the share of the original's multiply-accumulates that it leaves."""

    prune_ratio: float
    macs_share: float


@dataclass(frozen=True)
class FoundRate:
    """A learning rate that suits a network.

    Attributes:
        learning_rate: Peak of AdamW's with the default batch size.
        tried: Rates of the test with the smoothed loss at each.
    """

    learning_rate: float
    tried: tuple[tuple[float, float], ...]
