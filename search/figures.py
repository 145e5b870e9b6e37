"""Measurements become the figures of a trial; knows nothing of how either came about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from search.records import Deployable, Figures, Measurement, Network
from search.steps import Score

# Operator types of onnxruntime that multiply and add, after its graph optimisation.
INTEGER_OPERATORS = frozenset(
    {
        "QLinearConv", "QLinearMatMul", "QGemm", "ConvInteger", "MatMulInteger",
        "MatMulIntegerToFloat", "DynamicQuantizeMatMul",
    }
)  # fmt: skip
FLOAT_OPERATORS = frozenset(
    {"Conv", "FusedConv", "NhwcFusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul"}
)


@dataclass(frozen=True)
class Yardstick:
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


def speed_figures(
    network: Network,
    channels_removed: float,
    deployable: Deployable,
    threads: int,
    measurement: Measurement,
    yardstick: Yardstick,
) -> Figures:
    """Gathers everything that is known before a network is trained.

    Latencies taken hours apart compare because each is the yardstick's own latency times a ratio
    that was measured in the same minutes.
    """
    best = yardstick.against_base[yardstick.best_threads]
    own = yardstick.against_base[threads]
    # At the original's best thread count both ends of the chain are the same measurement.
    same = threads == yardstick.best_threads
    slow = 1.0 if same else best.ratio_low / own.ratio_high
    fast = 1.0 if same else best.ratio_high / own.ratio_low
    integer = sum(n for op, n in measurement.operators.items() if op in INTEGER_OPERATORS)
    floating = sum(n for op, n in measurement.operators.items() if op in FLOAT_OPERATORS)
    return Figures(
        latency_ms=yardstick.latency_ms(threads) * measurement.ratio,
        latency_ratio=measurement.ratio,
        latency_ratio_low=measurement.ratio_low,
        latency_ratio_high=measurement.ratio_high,
        speedup=best.ratio / own.ratio / measurement.ratio,
        speedup_low=slow / measurement.ratio_high,
        speedup_high=fast / measurement.ratio_low,
        p50_ms=measurement.p50_ms,
        p90_ms=measurement.p90_ms,
        p95_ms=measurement.p95_ms,
        p99_ms=measurement.p99_ms,
        images_per_s=measurement.images_per_s,
        measuring=measurement.quality,
        launches=measurement.launches,
        disturbed_rounds=measurement.disturbed_rounds,
        warm=measurement.warm,
        size_bytes=deployable.model.size_bytes,
        macs=network.macs,
        parameters=network.parameters,
        peak_rss_bytes=measurement.peak_rss_bytes,
        model_rss_bytes=measurement.model_rss_bytes,
        energy_mj=measurement.energy_mj,
        energy_note=measurement.energy_note,
        cpu_ms=measurement.cpu_ms,
        cold_start_ms=measurement.cold_start_ms,
        effective_bits=effective_bits(integer, floating),
        integer_operators=integer,
        compute_operators=integer + floating,
        channels_removed=channels_removed,
    )


def effective_bits(integer_operators: int, float_operators: int) -> float:
    """Returns the mean bits that convolutions and matrix products are really computed in.

    Weights that are only stored in fewer bits are computed as float and count as 32.
    """
    total = integer_operators + float_operators
    return (8 * integer_operators + 32 * float_operators) / total if total else 32.0


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


def recognised(score: Score) -> NDArray[np.bool_]:
    """Returns which images a model was right about, ``[images]``."""
    bits = np.frombuffer(bytes.fromhex(score.right), dtype=np.uint8)
    return np.unpackbits(bits)[: score.images].astype(bool)
