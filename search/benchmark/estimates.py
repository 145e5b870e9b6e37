"""Estimates and intervals that hold for times of any distribution; knows not what was timed."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

# Runs without which a percentile means nothing. Source: MLPerf Inference, LoadGen's early stopping
# for a single stream.
RUNS_FOR_PERCENTILE: Mapping[int, int] = {50: 11, 90: 64, 95: 130, 99: 662}


def log_ratios(pairs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Logarithms ``[n]`` of first over second in ``pairs`` ``[n, 2]``, any unit of time above 0."""
    ratios: NDArray[np.float64] = np.log(pairs[:, 0]) - np.log(pairs[:, 1])
    return ratios


def paired_ratio(pairs: NDArray[np.float64]) -> float:
    """Ratio of first over second by the median round of ``pairs`` ``[n, 2]``.

    Pairing cancels drift that both share, and the median ignores bursts that hit one.
    """
    return math.exp(float(np.median(log_ratios(pairs))))


def sign_test_interval(values: NDArray[np.float64], level: float) -> tuple[float, float]:
    """Interval of the median that holds for independent values of any distribution.

    It lies between the ``r``-th smallest and the ``r``-th largest value, with the largest ``r``
    for which a median outside is rejected by the two-sided sign test.

    Args:
        values: ``[n]``, any unit.
        level: Least probability, 0..1, with which the interval covers the median.

    Returns:
        Its ends; infinite when ``n`` values can give no interval of this level.

    Source: H. A. David and H. N. Nagaraja, Order Statistics, 3rd edition, section 7.1.
    """
    ordered = np.sort(values)
    rank = sign_test_rank(len(ordered), level)
    if rank == 0:
        return -math.inf, math.inf
    return float(ordered[rank - 1]), float(ordered[-rank])


@functools.cache
def sign_test_rank(count: int, level: float) -> int:
    """Largest ``r`` with ``P(Binomial(count, 1/2) < r) <= (1 - level) / 2``; 0 if there is none."""
    allowed = (1.0 - level) / 2.0 * 2.0**count
    below = 0
    for rank in range(count // 2 + 1):
        below += math.comb(count, rank)
        if below > allowed:
            return rank
    raise AssertionError("half of the outcomes lie below the middle")


def percentile(times: Sequence[float], percent: int) -> float | None:
    """Returns the smallest time that ``percent`` of the runs do not exceed; None if too few ran."""
    if len(times) < RUNS_FOR_PERCENTILE[percent]:
        return None
    return sorted(times)[math.ceil(percent / 100 * len(times)) - 1]
