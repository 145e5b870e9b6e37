"""Whether a model's times have settled."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

# Warming up: blocks of at least this long, a window of so many, and the time after which a model
# that will not settle is measured nevertheless.
WARM_BLOCK_MS, WARM_WINDOW, WARM_LIMIT_MS = 0.5, 20, 500.0
# A model too slow for a window in that time: so many blocks must agree within that, of at most so
# many.
SLOW_WINDOW, SLOW_AGREEMENT, MOST_SLOW = 3, 1.05, 6


def is_settled(samples: Sequence[float]) -> bool:
    """Tells whether a window of times no longer drifts.

    Its first value must not be an outlier to the slow side, the quartiles of its halves must agree
    within 5 %, and the mean of the first half must lie -50 to +10 % from that of the second.

    Args:
        samples: In order, any unit; fewer than eight say nothing.

    Source: pyperf 2.9, the test with which its calibration ends warming up.
    """
    if len(samples) < 8:
        return False
    low, _, high = statistics.quantiles(samples[1:], n=4, method="inclusive")
    if samples[0] > high + 1.5 * (high - low):
        return False
    halves = samples[: len(samples) // 2], samples[len(samples) // 2 :]
    first, second = (statistics.quantiles(half, n=4, method="inclusive") for half in halves)
    quartiles = all(abs(first[i] / second[i] - 1) <= 0.05 for i in (0, 2))
    drift = statistics.fmean(halves[0]) / statistics.fmean(halves[1]) - 1
    return quartiles and -0.5 <= drift <= 0.10


def is_steady(samples: Sequence[float]) -> bool:
    """Tells whether the last few times of a slow model agree."""
    last = samples[-SLOW_WINDOW:]
    return len(last) == SLOW_WINDOW and max(last) <= SLOW_AGREEMENT * min(last)
