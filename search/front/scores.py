"""Which images a model is right about."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from search.records.score import Score


def score_of(right: NDArray[np.bool_]) -> Score:
    """Returns the score of a model that is right about these images, ``[images]``."""
    bits = np.packbits(right).tobytes().hex()
    return Score(accuracy=float(right.mean()), images=len(right), right=bits)


def recognised(score: Score) -> NDArray[np.bool_]:
    """Returns which images a model was right about, ``[images]``."""
    bits = np.frombuffer(bytes.fromhex(score.right), dtype=np.uint8)
    return np.unpackbits(bits)[: score.images].astype(bool)
