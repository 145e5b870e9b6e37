"""Measured latencies, and how far they can be trusted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Quality = Literal["resolved", "unresolved", "poor"]
RawLaunch = tuple[int, tuple[tuple[float, float], ...], tuple[bool, ...]]


@dataclass(frozen=True, slots=True)
class Interval:
    """A ratio of latencies with the ends of its interval; below 1 is faster."""

    ratio: float
    low: float
    high: float

    @property
    def holds_one(self) -> bool:
        """Whether the two may be equally fast."""
        return self.low <= 1.0 <= self.high


@dataclass(frozen=True, slots=True)
class Canary:
    """The original measured against itself, which tells how far the device can be trusted.

    Attributes:
        after_trials: Finished trials when this was measured.
        interval: Of the ratio, which is 1.
        quality: Of the measurement.
    """

    after_trials: int
    interval: Interval
    quality: Quality

    @property
    def is_noisy(self) -> bool:
        """Whether the device told two copies of one model apart, or could not tell at all."""
        return self.quality == "poor" or not self.interval.holds_one


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFigures:
    """What running a model takes, by itself and beside a reference.

    Attributes:
        p50_ms: Median latency of the model by itself, one run after another; None where too few
            runs were made for it, and likewise the other percentiles.
        p90_ms: 90th percentile.
        p95_ms: 95th percentile.
        p99_ms: 99th percentile.
        images_per_s: Throughput, batches run back to back; None where that would take too long.
        launches: Pairs of fresh processes that the answer rests on.
        disturbed_rounds: Paired rounds in which others took the processor.
        quality: Of the latency's interval: ``resolved`` within 1.5 %, ``poor`` wider than 5 %, else
            ``unresolved``.
        warm: Whether all processes' times settled before they were compared.
        cold_start_ms: Session creation and first run.
        cpu_ms: Processor time of one inference.
        peak_rss_bytes: Peak resident memory of the model's own process.
        model_rss_bytes: Its increase over the memory that the imported runtime takes.
        energy_mj: Millijoules of the processor package in one inference; None where no counter is.
        energy_note: The energy's source, or why there is none.
    """

    p50_ms: float | None
    p90_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    images_per_s: float | None
    launches: int
    disturbed_rounds: int
    quality: Quality
    warm: bool
    cold_start_ms: float
    cpu_ms: float
    peak_rss_bytes: int
    model_rss_bytes: int
    energy_mj: float | None
    energy_note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement(RunFigures):
    """A model's run-time figures beside a reference measured in the same minutes.

    Attributes:
        reference_p50_ms: Median latency of the reference in the same minutes.
        ratio: Model over reference, from paired rounds; below 1 is faster.
        ratio_low: Lower end of the ratio's interval.
        ratio_high: Upper end.
        rounds: Paired rounds measured, all launches of the answer together.
        excluded_rounds: Those of the disturbed ones that do not count; all do where few are left.
        operators: Executed operator types with their number, after optimisation.
        protocol: Version of the protocol; figures of different versions do not mix.
        conditions: The device's processor, processors in use, ticks stolen and microseconds
            throttled meanwhile, and the clock of the rounds; by role hash of the model, runtime
            and options of the session.
        raw: ``(seed, [(model_ms, reference_ms), ...], [disturbed, ...])`` for every launch, also of
            an attempt that was given up.
    """

    reference_p50_ms: float
    ratio: float
    ratio_low: float
    ratio_high: float
    rounds: int
    excluded_rounds: int
    operators: Mapping[str, int]
    protocol: int
    conditions: Mapping[str, Any] = field(compare=False)
    raw: tuple[RawLaunch, ...] = field(compare=False)

    @property
    def interval(self) -> Interval:
        """The ratio with its interval."""
        return Interval(self.ratio, self.ratio_low, self.ratio_high)


@dataclass(frozen=True, slots=True)
class Session:
    """Several models measured with one reference, their launches in turns.

    Attributes:
        measurements: Of each model, against the reference.
        log_ratios: Of each model the logarithm of its latency over the reference's in every
            round of launches; those of one round belong together.
        cpu_ms: Likewise its processor time of one inference.
        peak_rss_bytes: Likewise its peak resident memory.
    """

    measurements: tuple[Measurement, ...]
    log_ratios: tuple[tuple[float, ...], ...]
    cpu_ms: tuple[tuple[float, ...], ...]
    peak_rss_bytes: tuple[tuple[int, ...], ...]
