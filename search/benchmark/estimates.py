"""Estimates and intervals that hold for times of any distribution."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

# Runs without which a percentile means nothing. Source: MLPerf Inference, LoadGen's early stopping
# for a single stream.
RUNS_FOR_PERCENTILE: Mapping[int, int] = {50: 11, 90: 64, 95: 130, 99: 662}

SPARE_LAUNCHES = 3
MOST_RANKED = 50  # values whose sums of ranks are counted; a normal approximation does for more
MOST_SUMMED = 2000  # terms of a binomial sum; the normal approximation is as good by then


def log_ratios(pairs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Logarithms ``[n]`` of first over second in ``pairs`` ``[n, 2]``, any unit of time above 0."""
    ratios: NDArray[np.float64] = np.log(pairs[:, 0]) - np.log(pairs[:, 1])
    return ratios


def paired_ratio(pairs: NDArray[np.float64]) -> float:
    """Ratio of first over second in ``pairs`` ``[n, 2]``: the middle of all means of two rounds.

    Pairing cancels drift that both share, and the middle ignores bursts that hit a few. It is the
    estimate that belongs to ``signed_rank_interval``, within which it always lies.
    """
    return math.exp(float(np.median(walsh_means(log_ratios(pairs)))))


def percentile(times: Sequence[float], percent: int) -> float | None:
    """Returns the smallest time that ``percent`` of the runs do not exceed; None if too few ran."""
    if len(times) < RUNS_FOR_PERCENTILE[percent]:
        return None
    return sorted(times)[math.ceil(percent / 100 * len(times)) - 1]


def signed_rank_interval(values: NDArray[np.float64], level: float) -> tuple[float, float]:
    """Interval of the centre of independent values whose distributions are symmetric.

    It lies between the ``r``-th smallest and the ``r``-th largest mean of two values (a value with
    itself included), with the largest ``r`` that the signed-rank test allows.

    Args:
        values: ``[n]``, any unit.
        level: Least probability, 0..1, with which the interval covers the centre.

    Returns:
        Its ends; infinite when ``n`` values can give no interval of this level.

    Source: M. Hollander, D. A. Wolfe and E. Chicken, Nonparametric Statistical Methods, 3rd
    edition, section 3.3 (Tukey's interval).
    """
    means = walsh_means(values)
    rank = signed_rank_rank(len(values), level)
    if rank == 0:
        return -math.inf, math.inf
    return float(means[rank - 1]), float(means[-rank])


def walsh_means(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Means ``[n (n + 1) / 2]`` of all pairs of ``values`` ``[n]``, rising.

    Their median is the estimate of Hodges and Lehmann.
    """
    one, other = np.triu_indices(len(values))
    means: NDArray[np.float64] = np.sort((values[one] + values[other]) / 2)
    return means


def sign_test_interval(values: Sequence[float], level: float) -> tuple[float, float]:
    """Interval of the median of independent values of any distribution, which need not be the same.

    Args:
        values: ``[n]``, any unit, enough of them that all they span has this level.
        level: Least probability, 0..1, with which the interval covers the median.

    Returns:
        The ``r``-th smallest and the ``r``-th largest value, with the largest ``r`` that the sign
        test allows.

    Source: H. A. David and H. N. Nagaraja, Order Statistics, 3rd edition, section 7.1.
    """
    rising, count = sorted(values), len(values)
    below, rank = 0, 0
    while rank < count / 2:
        below += math.comb(count, rank)
        if below > (1.0 - level) / 2.0 * 2.0**count:
            break
        rank += 1
    return rising[rank - 1], rising[-rank]


@functools.cache
def signed_rank_rank(count: int, level: float) -> int:
    """Largest ``r`` with ``P(W < r) <= (1 - level) / 2`` for the signed-rank sum of ``count``."""
    if count > MOST_RANKED:
        spread = math.sqrt(count * (count + 1) * (2 * count + 1) / 24)
        return math.floor(count * (count + 1) / 4 - NormalDist().inv_cdf((1 + level) / 2) * spread)
    ways = [1]  # of making each sum from a subset of 1..count
    for number in range(1, count + 1):
        longer = ways + [0] * number
        for total, many in enumerate(ways):
            longer[total + number] += many
        ways = longer
    allowed, below = (1.0 - level) / 2.0 * 2.0**count, 0
    for rank, many in enumerate(ways):
        below += many
        if below > allowed:
            return rank
    raise AssertionError("all outcomes together exceed half of them")


def fewest_launches(level: float) -> int:
    """Returns the fewest values whose signed-rank interval has ``level``."""
    return next(n for n in itertools.count(2) if signed_rank_rank(n, level) > 0)


def launches_needed(level: float) -> int:
    """Returns the fewest values whose signed-rank interval has ``level``, and some to spare.

    With the fewest possible a single value on the other side would undo any difference.
    """
    return fewest_launches(level) + SPARE_LAUNCHES


def highest_level(count: int) -> float:
    """Returns the highest level of a signed-rank interval of ``count`` values: of all they span."""
    return 1.0 - 2.0 ** (1 - count)


def wilson_interval(right: int, count: int, level: float = 0.95) -> tuple[float, float]:
    """Interval of a share that was seen ``right`` times in ``count``.

    Source: E. B. Wilson, Probable inference, the law of succession, and statistical inference,
    1927.
    """
    z = NormalDist().inv_cdf(0.5 + level / 2)
    share, width = right / count, z * z / count
    centre = (share + width / 2) / (1 + width)
    reach = z * math.sqrt(share * (1 - share) / count + width / (4 * count)) / (1 + width)
    return max(0.0, centre - reach), min(1.0, centre + reach)


def worse_by_chance(only_one: int, only_other: int) -> float:
    """Returns how probable it is to see one answer this much worse than an equal other.

    Args:
        only_one: Questions that only the one got right.
        only_other: Questions that only the other got right.

    Returns:
        The one-sided p-value of McNemar's exact test that the one is worse.

    Source: Q. McNemar, Note on the sampling error of the difference between correlated
    proportions, 1947.
    """
    count = only_one + only_other
    if count > MOST_SUMMED:
        return NormalDist().cdf((only_one + 0.5 - count / 2) / (math.sqrt(count) / 2))
    return float(sum(math.comb(count, k) for k in range(only_one + 1)) / 2**count)
