"""How two models share the time of a comparison."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from typing import NamedTuple

from .messages import Refused

# Blocks are made of pieces of at least this long, in which the models' times differ by at most
# this factor, if a few more runs and no longer piece make that possible.
PIECE_MS, EVEN, MORE_RUNS, LONGEST_PIECE_MS = 0.25, 1.1, 5, 20.0
# Runs so long refill the caches themselves, within a share that does not matter.
REFILL_MS = 100.0


def turns(count: int, seed: int) -> list[int]:
    """Orders the turns of ``count`` rounds, ABBA or BAAB by the toss of a coin for every two.

    Args:
        count: Even number of rounds; a round is one turn of each side.
        seed: Seed of the tosses.

    Returns:
        ``[2 * count]`` of 0, the candidate, and 1, the reference.

    Raises:
        Refused: If ``count`` is odd, for half a quadruple would favour one side under drift.
    """
    if count % 2:
        raise Refused("ValueError", f"count {count} must be even")
    coin = random.Random(seed)
    quads = ((0, 1, 1, 0) if coin.random() < 0.5 else (1, 0, 0, 1) for _ in range(count // 2))
    return list(itertools.chain.from_iterable(quads))


class Shares(NamedTuple):
    """How two models share a round's time.

    Attributes:
        runs: Of each in a piece.
        pieces: Of a block.
        warm: Untimed runs of each before a block.
    """

    runs: list[int]
    pieces: int
    warm: list[int]


def share_time(run_ms: Sequence[float], block_ms: float) -> Shares:
    """Divides a round so that both models have the same number of pieces of the same time.

    With as many runs for each, the slower one's pieces would be longer, and others would take the
    processor in more of them: its share of the round's ratio would grow with the load. In the
    same time both meet the same, and whatever is read off their pieces compares.

    Args:
        run_ms: Milliseconds of a run of each model.
        block_ms: Of a block, as far as whole runs of the slower one make that possible.
    """
    slow_ms = max(run_ms)
    least = max(1, math.ceil(PIECE_MS / slow_ms))
    lengths = [n * slow_ms for n in range(least, least + MORE_RUNS)]
    allowed = [lengths[0], *(ms for ms in lengths[1:] if ms <= LONGEST_PIECE_MS)]

    def unevenness(piece_ms: float) -> float:
        took = [runs * ms for runs, ms in zip(fill(piece_ms), run_ms, strict=True)]
        return max(max(took) / min(took), EVEN)  # the shortest of those that are even enough

    def fill(time_ms: float) -> list[int]:
        return [max(1, round(time_ms / ms)) for ms in run_ms]

    piece_ms = min(allowed, key=unevenness)
    return Shares(
        runs=fill(piece_ms),
        pieces=max(1, round(block_ms / piece_ms)),
        warm=fill(slow_ms) if slow_ms <= REFILL_MS else [0] * len(run_ms),
    )
