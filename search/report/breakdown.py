"""Splits two models' latency by layer, side by side."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property

from search.records.profile import Comparison, Kernel, Layer, ModelProfile
from search.runtimes import runtimes

FLOAT = ("float", "float16", "double")


@cache
def _computing() -> frozenset[str]:
    """Returns the operator types of all runtimes that convolve or multiply matrices."""
    known = runtimes().values()
    return frozenset({"ConvTranspose"}).union(
        *(runtime.integer_operators | runtime.float_operators for runtime in known)
    )


@dataclass(frozen=True)
class Spending:
    """A kernel and what it takes of its model's latency, in microseconds."""

    kernel: Kernel
    us: float

    @property
    def computes(self) -> bool:
        """Whether it convolves or multiplies matrices."""
        return self.kernel.operator in _computing()


@dataclass(frozen=True)
class Budget:
    """Where a model's latency goes.

    Attributes:
        profile: Of the model.
        call_us: What the call itself takes.
        spent: By kernel, in the order of execution; with the call they add up to the latency.
    """

    profile: ModelProfile
    call_us: float
    spent: tuple[Spending, ...]

    @property
    def whole_us(self) -> float:
        """The model's latency."""
        return 1e3 * self.profile.own_latency_ms

    @cached_property
    def layers(self) -> Mapping[str, Layer]:
        """Layers with weights, by name."""
        return {layer.name: layer for layer in self.profile.layers}

    @cached_property
    def parts(self) -> Mapping[str, tuple[Spending, ...]]:
        """Kernels by the layer they belong to, in the order of execution."""
        names = dict.fromkeys(one.kernel.layer for one in self.spent)
        return {n: tuple(one for one in self.spent if one.kernel.layer == n) for n in names}

    def layer_us(self, name: str) -> float:
        """What a layer takes, with all that belongs to it; 0 where there is none."""
        return total_us(self.parts.get(name, ()))

    def share(self, spent: Iterable[Spending]) -> float:
        """What kernels take of the latency, 0..1."""
        return total_us(spent) / self.whole_us

    def main(self, name: str) -> Spending:
        """The kernel of a layer that computes; the longest where none or several do."""
        part = self.parts[name]
        return max([one for one in part if one.computes] or part, key=lambda one: one.us)


def total_us(spent: Iterable[Spending]) -> float:
    """Adds up microseconds."""
    return sum(one.us for one in spent)


def draw_up(profile: ModelProfile, comparison: Comparison) -> Budget:
    """Says what a run takes that nobody looks at.

    To be looked at costs every kernel about the same: that is taken off, and what remains is
    scaled so that with the call's own time it adds up to the latency.
    """
    whole_us = 1e3 * profile.own_latency_ms
    call_us = min(1e3 * comparison.call_ms, whole_us)
    looked_at = [kernel.microseconds for kernel in profile.kernels]
    looking_us = min([comparison.looking_us, *looked_at])  # no kernel takes less than nothing
    left = [us - looking_us for us in looked_at]
    left = left if any(left) else looked_at
    factor = (whole_us - call_us) / (sum(left) or 1.0)
    spent = tuple(
        Spending(kernel, us * factor) for kernel, us in zip(profile.kernels, left, strict=True)
    )
    return Budget(profile, call_us, spent)


def lanes(budget: Budget, name: str, round_to: int) -> tuple[int, int] | None:
    """Returns how many lanes of its vectors a convolution fills, and how many it computes.

    Where the runtime pads channels to whole vectors its own shapes say so; elsewhere the device's
    rounding does.

    Args:
        budget: Of the model.
        name: Of the layer.
        round_to: Multiples of channels that suit the device.

    Returns:
        None where all lanes are filled, and for what is no convolution.
    """
    layer, kernel = budget.layers.get(name), budget.main(name).kernel
    if layer is None or "Conv" not in kernel.operator:
        return None
    padded = -(-layer.outputs // round_to) * round_to
    if kernel.operator == "Conv":  # keeps channels second, blocked or not; others may not
        padded = max(padded, *(shape[1] for _, shape in kernel.outputs))
    return None if padded == layer.outputs else (layer.outputs, padded)


def is_float(kernel: Kernel) -> bool:
    """Whether a kernel reads floating-point numbers."""
    return bool(kernel.inputs) and kernel.inputs[0][0] in FLOAT
