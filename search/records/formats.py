"""The one way each figure is written for people."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from typing import TypeGuard

from search.records.trial import Cost, Outcome, TrialRecord

# Spelled by name: they look too much like the letter x and the hyphen to be told apart in code.
TIMES = "\N{MULTIPLICATION SIGN}"
DASH = "\N{EN DASH}"
ARROW = "\N{RIGHTWARDS ARROW}"
OUTCOMES: tuple[Outcome, ...] = ("complete", "stopped", "infeasible", "failed")


def format_share(share: float | None, decimals: int = 2) -> str:
    """Writes a share of 0..1 in per cent, such as ``91.42 %``."""
    return f"{100 * share:.{decimals}f} %" if _is_known(share) else DASH


def format_ms(value_ms: float | None) -> str:
    """Writes milliseconds with three significant digits, whole ones all kept."""
    return f"{value_ms:.{_decimals(value_ms)}f} ms" if _is_known(value_ms) else DASH


def format_us(value_us: float) -> str:
    """Writes microseconds with two significant digits, whole ones all kept; for under a heading."""
    if not _is_known(value_us):
        return DASH
    return f"{value_us:.{max(0, _decimals(value_us) - 1)}f}" if value_us >= 0.05 else "0"


def format_ms_interval(value_ms: float, low_ms: float, high_ms: float) -> str:
    """Writes milliseconds and their interval with the digits of the value."""
    if not _is_known(value_ms):
        return DASH
    return f"{format_ms(value_ms)} {_interval(value_ms, low_ms, high_ms)}"


def format_speedup(cost: Cost) -> str:
    """Writes the speed-up with its interval in brackets."""
    return f"{cost.speedup:.2f}{TIMES} [{cost.speedup_low:.2f}{DASH}{cost.speedup_high:.2f}]"


def format_bytes(size_bytes: int | None) -> str:
    """Writes a size in B, KiB or MiB with three significant digits."""
    if size_bytes is None:
        return DASH
    if size_bytes < 1024:
        return f"{size_bytes} B"
    size, unit = (
        (size_bytes / 1024, "KiB") if size_bytes < 1024**2 else (size_bytes / 1024**2, "MiB")
    )
    return f"{size:.{_decimals(size)}f} {unit}"


def format_count(count: int | None) -> str:
    """Writes a large number with three significant digits and k, M or G."""
    if count is None:
        return DASH
    for factor, unit in ((10**9, " G"), (10**6, " M"), (10**3, " k")):
        if count >= factor:
            return f"{count / factor:.{_decimals(count / factor)}f}{unit}"
    return str(count)


def format_counted(number: int, thing: str) -> str:
    """Writes how many there are of a thing: ``1 trial``, ``2 trials``."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def format_duration(seconds: float) -> str:
    """Writes a time as people say it: ``45 s``, ``12 min``, ``3.4 h``."""
    if seconds < 9.95:
        return f"{seconds:.2g} s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def format_bits(bits: int, effective_bits: float | None) -> str:
    """Writes the stored bits and, where they differ, those computed in: ``4 → 32``."""
    computed = str(bits) if effective_bits is None else f"{effective_bits:.3g}"
    return str(bits) if computed == str(bits) else f"{bits} {ARROW} {computed}"


def format_outcomes(records: Iterable[TrialRecord]) -> str:
    """Writes how the trials ended: ``3 trials: 1 complete, 1 stopped, 1 infeasible, 0 failed``."""
    counts = Counter(record.outcome for record in records)
    total = counts.total()
    ends = ", ".join(f"{counts[outcome]} {outcome}" for outcome in OUTCOMES)
    return f"{format_counted(total, 'trial')}: {ends}"


def _is_known(value: float | None) -> TypeGuard[float]:
    """Whether there is a number to write: what is none must not look like one."""
    return value is not None and math.isfinite(value)


def _interval(value: float, low: float, high: float) -> str:
    decimals = _decimals(value)
    return f"[{low:.{decimals}f}{DASH}{high:.{decimals}f}]"


def _decimals(value: float) -> int:
    # The exponent after rounding: 9.996 is written 10.0, not 10.00.
    exponent = int(f"{value:.2e}".partition("e")[2])
    return max(0, 2 - exponent)
