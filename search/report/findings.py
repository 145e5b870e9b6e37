"""Finds in two profiles what makes a model slow, as plain sentences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from search.records.deployable import Format
from search.records.formats import (
    TIMES,
    format_counted,
    format_ms,
    format_share,
    format_speedup,
)
from search.records.profile import Comparison
from search.records.trial import Figures
from search.report.breakdown import Budget, Spending, is_float, lanes, total_us

# Shares of the latency below which something is not worth a sentence, and above which it decides.
WORTH_SAYING, DECISIVE, MOST = 0.1, 0.3, 0.5
# What a layer must take beyond the original's to be called slower: its share of both latencies.
SLOWER, SLOWER_SHARE = 1.25, 0.03
COLDER = 1.5  # cold starts repeat less well
LISTED = 3
# The runtime makes these part of the convolution or matrix product before them where it can.
FUSABLE = {"BatchNormalization", "Relu", "LeakyRelu", "Clip", "Add", "QLinearAdd"}
CONVERSIONS = {"QuantizeLinear", "DequantizeLinear"}


@dataclass(frozen=True)
class Case:
    """A model to be explained.

    Attributes:
        name: Of the model, within a sentence.
        figures: As the search, or the closing round, found them.
        original_macs: Multiply-accumulates of the uncompressed network.
        round_to: Multiples of channels that suit the device.
        comparison: The profiles.
        candidate: Where the model's latency goes.
        original: Where the uncompressed network's goes.
    """

    name: str
    figures: Figures
    original_macs: int
    round_to: int
    comparison: Comparison
    candidate: Budget
    original: Budget

    @property
    def format(self) -> Format:
        """How the weights are stored."""
        return self.comparison.candidate.format

    @property
    def ratio(self) -> float:
        """Latency over the original's, in this launch."""
        return self.candidate.whole_us / self.original.whole_us

    @property
    def macs_left(self) -> float:
        """Share of the original's multiplications that are left, 0..1."""
        return self.figures.macs / self.original_macs

    @property
    def lags(self) -> bool:
        """Whether it is slower than its multiplications promise."""
        return self.ratio > SLOWER * self.macs_left

    @cached_property
    def slower(self) -> list[str]:
        """Layers that take clearly longer than in the original, what they lose most first."""
        lost = {
            name: self.candidate.layer_us(name) - self.original.layer_us(name)
            for name in self.candidate.parts
            if name in self.original.parts
        }
        # What looking at a kernel costs is taken off both, and known no better than to its size.
        least_us = max(SLOWER_SHARE * self.candidate.whole_us, self.comparison.looking_us)
        found = [
            name
            for name, us in lost.items()
            if us > least_us and us > (SLOWER - 1) * self.original.layer_us(name)
        ]
        return sorted(found, key=lambda name: -lost[name])

    @cached_property
    def in_float(self) -> list[Spending]:
        """Kernels that compute in float although the model is stored in 8 bits."""
        if self.format.computes == "float":
            return []
        return [
            one
            for one in self.candidate.spent
            # The pixels' own normalisation is float on purpose.
            if one.kernel.layer and is_float(one.kernel) and one.kernel.operator not in CONVERSIONS
        ]

    @cached_property
    def unfused(self) -> list[Spending]:
        """Kernels that could have become part of the layer before them."""
        return [
            one
            for one in self.candidate.spent
            if one.kernel.layer and one.kernel.operator in FUSABLE
        ]

    @cached_property
    def uneven(self) -> dict[str, tuple[int, int]]:
        """Layers whose channels leave lanes of the processor's vectors empty: filled, of how many.

        Not the last one, whose channels are the classes.
        """
        layers = list(self.candidate.layers)[:-1]
        known = {
            n: lanes(self.candidate, n, self.round_to) for n in layers if n in self.candidate.parts
        }
        return {name: filled for name, filled in known.items() if filled is not None}

    @cached_property
    def depthwise(self) -> list[str]:
        """Layers that convolve each channel by itself."""
        layers = self.candidate.layers.values()
        return [layer.name for layer in layers if layer.is_depthwise]

    def notes(self, name: str) -> Iterator[str]:
        """Yields what is to be said of a layer, in a word or two."""
        part = self.candidate.parts[name]
        if name in self.slower:
            yield "slower"
        if any(one in self.in_float for one in part):
            yield "in float"
        if any(one in self.unfused for one in part):
            yield "unfused"
        if name in self.uneven:
            filled, of = self.uneven[name]
            yield f"{filled}/{of} lanes"
        if name in self.depthwise:
            yield "depthwise"

    def layers_share(self, names: Iterable[str]) -> float:
        """What layers take of the latency together, 0..1."""
        return sum(map(self.candidate.layer_us, names)) / self.candidate.whole_us


def find(case: Case) -> Iterator[str]:
    """Yields what there is to say, the most important first, and what to do about it."""
    for finding in FINDINGS:
        sentence = finding(case)
        if sentence:
            yield sentence
    advice = [text for text in (advise(case) for advise in ADVICE) if text]
    if advice:
        yield f"What may help: {'; '.join(advice[:LISTED])}."
    elif not (case.lags or case.slower or case.unfused):
        yield NOTHING


NOTHING = "Nothing stands out: the time follows what there is to compute."


def _headline(case: Case) -> str:
    candidate, original = case.comparison.candidate, case.comparison.original
    own, other = format_ms(candidate.own_latency_ms), format_ms(original.own_latency_ms)
    threads = format_counted(candidate.threads, "thread")
    if candidate.threads != original.threads:
        other = f"{other} with {original.threads}"
    name = f"{case.name[0].upper()}{case.name[1:]}"
    if case.macs_left == 1.0 and case.format.bits == 32:
        return f"{name} computes what the original does: {own} with {threads} beside {other}."
    text = (
        f"{name} takes {case.ratio:.2f}{TIMES} the original's time ({own} with {threads}, the "
        f"original {other})"
    )
    if case.macs_left == 1.0:
        return f"{text}."
    joined = "though it has" if case.lags else "and has"
    return f"{text} {joined} {case.macs_left:.2f}{TIMES} its multiplications."


def _agreement(case: Case) -> str:
    figures = case.figures
    if figures.speedup_low <= 1 / case.ratio <= figures.speedup_high:
        return ""
    return (
        f"Those are two launches: by all that were measured it is {format_speedup(figures)} as "
        "fast as the original."
    )


def _call(case: Case) -> str:
    share = case.candidate.call_us / case.candidate.whole_us
    if share < WORTH_SAYING:
        return ""
    return (
        f"{format_share(share, 0)} of its time is the call itself, which no compression makes "
        "shorter."
    )


def _not_computing(case: Case) -> str:
    others = [one for one in case.candidate.spent if not one.computes]
    share = case.candidate.share(others)
    if share < WORTH_SAYING:
        return ""
    before = case.original.share(one for one in case.original.spent if not one.computes)
    return (
        f"{format_share(share, 0)} is in operators that neither convolve nor multiply matrices "
        f"({_count(others)}); in the original {format_share(before, 0)}."
    )


def _count(spent: Iterable[Spending]) -> str:
    """Counts operator types, those that take most first: ``2 Transpose, 1 MaxPool``."""
    spent = list(spent)
    numbers = Counter(one.kernel.operator for one in spent)
    took = {op: total_us(o for o in spent if o.kernel.operator == op) for op in numbers}
    order = sorted(numbers, key=lambda operator: -took[operator])
    return _listed([f"{numbers[operator]} {operator}" for operator in order])


def _listed(items: Sequence[str]) -> str:
    rest = len(items) - LISTED
    return ", ".join(items) if rest <= 1 else f"{', '.join(items[:LISTED])} and {rest} more"


def _longest(case: Case) -> str:
    name = max(case.candidate.parts, key=case.candidate.layer_us)
    share = case.layers_share([name])
    if not name or share < DECISIVE:
        return ""
    before = case.original.layer_us(name) / case.original.whole_us
    return (
        f"The longest layer is {name}: {format_share(share, 0)}, in the original "
        f"{format_share(before, 0)}."
    )


def _slower(case: Case) -> str:
    if not case.slower:
        return ""
    told = [_lost(case, name) for name in case.slower]
    return f"Slower than in the original: {_listed(told)}."


def _lost(case: Case, name: str) -> str:
    candidate, original = case.candidate, case.original
    now_us, before_us = candidate.layer_us(name), original.layer_us(name)
    # What takes no longer than looking at it counts as nothing.
    times = f"{now_us / before_us:.1f}{TIMES}" if before_us else "too short to be seen before"
    now, before = candidate.main(name).kernel.operator, original.main(name).kernel.operator
    why = f", {now} for {before}" if now != before else ""
    return f"{name or 'what comes before the first layer'} ({times}{why})"


def _float(case: Case) -> str:
    computing = [one for one in case.candidate.spent if one.computes]
    if case.format.is_unpacked and all(is_float(one.kernel) for one in computing):
        return (
            f"Its {case.format.bits}-bit weights are computed as float, in all {len(computing)} "
            "convolutions and matrix products: they save storage, not time."
        )
    if not case.in_float:
        return ""
    share = format_share(case.candidate.share(case.in_float), 0)
    names = [f"{one.kernel.operator} in {one.kernel.layer}" for one in case.in_float]
    return f"In float though stored in 8 bits: {_listed(names)} ({share} of the time)."


def _unfused(case: Case) -> str:
    share = case.candidate.share(case.unfused)
    if share < SLOWER_SHARE:
        return ""
    return (
        f"Not fused into the layers before them: {_count(case.unfused)} "
        f"({format_share(share, 0)} of the time)."
    )


def _lanes(case: Case) -> str:
    share = case.layers_share(case.uneven)
    if share < WORTH_SAYING:
        return ""
    order = sorted(case.uneven, key=lambda name: -case.candidate.layer_us(name))
    named = [f"{name} (fills {case.uneven[name][0]} of {case.uneven[name][1]})" for name in order]
    why = "" if case.format.computes == "integers" else ", for empty lanes are computed too"
    return (
        f"Layers with channels off the SIMD width take {format_share(share, 0)}{why}: "
        f"{_listed(named)}."
    )


def _depthwise(case: Case) -> str:
    share = case.layers_share(case.depthwise)
    if share < WORTH_SAYING:
        return ""
    take = "takes" if len(case.depthwise) == 1 else "take"
    return (
        f"Its {format_counted(len(case.depthwise), 'depthwise layer')} {take} "
        f"{format_share(share, 0)}: so little is multiplied there for what is loaded that fewer "
        "bits hardly help."
    )


def _scaling(case: Case) -> str:
    profile = case.comparison.candidate
    counts = sorted(profile.latency_ms)
    if len(counts) == 1:
        return ""
    one, best = counts[0], min(counts, key=profile.latency_ms.__getitem__)
    if best == one:
        more = counts[1]
        slower = profile.latency_ms[more] / profile.latency_ms[one]
        return (
            f"{more} threads take {slower:.2f}{TIMES} the time of {one}: there is too little to "
            "share."
        )
    faster = profile.latency_ms[one] / profile.latency_ms[best]
    latency_ms = case.comparison.original.latency_ms
    other = f", the original {latency_ms[one] / latency_ms[best]:.2f}{TIMES}"
    return f"{best} threads make it {faster:.2f}{TIMES} as fast as {one}{other}."


def _cold_start(case: Case) -> str:
    candidate, original = case.comparison.candidate, case.comparison.original
    times = candidate.cold_start_ms / original.cold_start_ms
    if times < COLDER:
        return ""
    why = ""
    if case.format.is_unpacked:
        why = ": weights are unpacked when it is loaded"
    elif case.format.computes == "integers":
        why = ": its quantized operators are put together when it is loaded"
    return f"A cold start takes {times:.1f}{TIMES} the original's{why}."


FINDINGS: tuple[Callable[[Case], str], ...] = (
    _headline, _agreement, _call, _not_computing, _longest, _slower, _float, _unfused, _lanes,
    _depthwise, _scaling, _cold_start,
)  # fmt: skip


def _other_threads(case: Case) -> str:
    profile = case.comparison.candidate
    best = min(profile.latency_ms, key=profile.latency_ms.__getitem__)
    saves = 1 - profile.latency_ms[best] / profile.own_latency_ms
    if saves < WORTH_SAYING:
        return ""
    threads = format_counted(best, "thread")
    return f"{threads} (space.threads), which here took {format_share(saves, 0)} less"


def _other_bits(case: Case) -> str:
    if case.format.is_unpacked:
        return "32 bits (space.bits) where storage does not matter"
    lost = [name for name in case.slower if name]
    if case.format.computes == "float" or not lost or not case.lags:
        return ""
    return f"float (space.bits=[32]), in which {_listed(lost)} took less"


def _other_widths(case: Case) -> str:
    # What is so in the original too no pruning can mend.
    pruned = [
        name
        for name, filled in case.uneven.items()
        if name not in case.original.parts or lanes(case.original, name, case.round_to) != filled
    ]
    # How integers are padded the runtime's shapes do not tell.
    if case.format.computes == "integers" or case.layers_share(pruned) < DECISIVE:
        return ""
    return (
        "channels up to whole vectors (a smaller space.prune_ratio), which would take no more time"
    )


def _other_layer(case: Case) -> str:
    name = max(case.candidate.parts, key=case.candidate.layer_us)
    share = case.layers_share([name])
    return f"a model with less in {name}" if name and share > MOST else ""


def _larger_calls(case: Case) -> str:
    share = case.candidate.call_us / case.candidate.whole_us
    return "several images in a call (device.batch_size)" if share > DECISIVE else ""


ADVICE = (_other_threads, _other_bits, _other_widths, _other_layer, _larger_calls)
