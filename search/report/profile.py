"""Describes a device and how far its figures can be trusted."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from search.config.study import MOST_FINALISTS
from search.records.closing import Closing
from search.records.device import DeviceProfile
from search.records.formats import DASH, TIMES, format_counted, format_ms
from search.records.measurement import Canary, Interval
from search.records.trial import TrialRecord
from search.report.points import name_trials

# A format that saves less than this share of the time is not called faster.
LEAST_GAIN = 0.05
BITS = {"16-bit weights": 16, "4-bit weights": 4}


def describe_device(device: DeviceProfile) -> list[tuple[str, str]]:
    """Returns what is known of a device as names and values, most important first."""
    facts = [
        ("Device", device.name),
        ("Processor", f"{device.cpu}, {device.arch}"),
        ("Usable cores", str(device.usable_cores)),
        ("Instruction sets", ", ".join(device.flags) or "none that matter here"),
        ("Runtime", device.runtime),
        ("8-bit format", device.int8_format),
        ("Channels in multiples of", str(device.round_to)),
    ]
    if device.probe_ms is None:
        return facts
    facts.append(("Probe network in float", format_ms(device.probe_ms)))
    facts += [(name, _speed(interval)) for name, interval in device.speeds.items()]
    facts.append(("Hence", describe_formats(device)))
    return facts


def describe_formats(device: DeviceProfile) -> str:
    """Says which bits make wide networks faster on a device; empty where it was not probed."""
    if not device.speeds:
        return ""
    eight = device.speeds[f"8 bits {device.int8_format}"]
    gain = f"8 bits ({device.int8_format}) take {eight.ratio:.2f} of float's time"
    idle = [str(bits) for name, bits in BITS.items() if not _is_faster(device.speeds[name])]
    storage = f"; {' and '.join(idle)} bits save storage, not time" if idle else ""
    return f"on a wide network {gain}{storage}"


def describe_later(closing: Closing | None, trials: int, leading: Collection[TrialRecord]) -> str:
    """Says what of the search the closing round knows nothing of; empty where it is over.

    Args:
        closing: What it found.
        trials: Finished ones.
        leading: Those on the search's own front that nothing beats by its centre.
    """
    if closing is None:
        return ""
    added = trials - closing.after_trials
    if added > 0:
        return (
            f"{format_counted(added, 'trial')} came after the closing round; study.n_trials=0 "
            "holds it again."
        )
    taken = {finalist.number for finalist in closing.finalists}
    left = [record for record in leading if record.number not in taken]
    if not left:
        return ""
    names = name_trials(sorted(left, key=lambda record: record.number))
    text = f"Of the search's front, {names} took no part in the closing round"
    if sum(not finalist.is_original for finalist in closing.finalists) < MOST_FINALISTS:
        return f"{text}: a larger finalists.count with study.n_trials=0 takes more."
    return f"{text}, which takes {MOST_FINALISTS} at most."


def describe_noise(canaries: Sequence[Canary], records: Sequence[TrialRecord] = ()) -> str:
    """Warns where the device told copies of one model apart, or could not tell; else empty.

    It also warns where most trials were measured poorly.
    """
    noisy = [canary for canary in canaries if canary.is_noisy]
    measured = [record.figures.quality for record in records if record.figures is not None]
    poor = measured.count("poor")
    found = []
    if noisy:
        times = ", ".join(
            f"{_interval(c.interval)} after {format_counted(c.after_trials, 'trial')}"
            for c in noisy
        )
        reach = max(max(c.interval.high - 1, 1 - c.interval.low) for c in noisy)
        found.append(
            f"the original against itself gave {times}: differences below {reach:.0%} may be noise"
        )
    if 2 * poor > len(measured):
        found.append(
            f"{poor} of {format_counted(len(measured), 'trial')} could not be measured within "
            "±5 %; a quieter machine or a larger device.budget_s helps"
        )
    return f"The device is noisy: {'; '.join(found)}." if found else ""


def _is_faster(interval: Interval) -> bool:
    return interval.high < 1 - LEAST_GAIN


def _speed(interval: Interval) -> str:
    return f"{_interval(interval)} of the time{' (faster)' if _is_faster(interval) else ''}"


def _interval(interval: Interval) -> str:
    return f"{interval.ratio:.3f}{TIMES} [{interval.low:.3f}{DASH}{interval.high:.3f}]"
