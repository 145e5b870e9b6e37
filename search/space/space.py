"""A checked search space; an Optuna trial becomes a ``Point``."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from typing import TYPE_CHECKING, Any

from search.records.network import Network
from search.records.point import Choices, Point, Value
from search.space.dimension import Dimension
from search.space.domains import AUTO, Axis, Choice, Range, only_value

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

AROUND = 10.0  # times as low and as high as the found rate
RATIO, BITS, THREADS, RATE = "prune_ratio", "bits", "threads", "learning_rate"


@dataclass(frozen=True)
class Space:
    """A checked search space.

    Optuna's parameters are not yet a point: fixed dimensions are missing from them, and
    ``Study.ask`` ignores what was enqueued for a dimension that it does not sample.

    Attributes:
        axes: What every dimension may be, by name, in the order in which they are sampled.
        dimensions: The same dimensions.
        is_scaled: Whether the range of learning rates is the network's, found with ``around``.
    """

    axes: Mapping[str, Axis]
    dimensions: tuple[Dimension, ...] = field(repr=False)
    is_scaled: bool = False

    def distributions(self) -> dict[str, BaseDistribution]:
        """Returns what ``Study.ask`` samples from: every dimension that is not fixed."""
        return {
            name: axis.distribution()
            for name, axis in self.axes.items()
            if only_value(axis) is None
        }

    @cached_property
    def _known(self) -> Mapping[str, Dimension]:
        return {one.name: one for one in self.dimensions}

    @cached_property
    def conditional(self) -> frozenset[str]:
        """The dimensions that matter only beside some choices of others."""
        return frozenset(one.name for one in self.dimensions if one.when is not None)

    def depth(self, name: str) -> int:
        """Returns beside how many others, each beside the next, a dimension matters."""
        when = self._known[name].when
        return 0 if when is None else 1 + self.depth(when.name)

    def applies(self, name: str, choices: Mapping[str, Value]) -> bool:
        """Tells whether a dimension matters beside other choices, those of fixed ones included."""
        when = self._known[name].when
        if when is None:
            return True
        return self.applies(when.name, choices) and when.holds({**self._fixed, **choices})

    def fix(self, **values: Value) -> Space:
        """Returns the space with some dimensions fixed."""
        return replace(self, axes={**self.axes, **{n: Choice((v,)) for n, v in values.items()}})

    def around(self, learning_rate: float) -> Space:
        """Returns the space with learning rates around one, unless they were given."""
        domain = self.axes[RATE]
        if not self.is_scaled or not isinstance(domain, Range):
            return self
        low, high = (
            float(domain.nearest(end)) for end in (learning_rate / AROUND, learning_rate * AROUND)
        )
        own = replace(domain, low=low, high=high)
        return replace(self, axes={**self.axes, RATE: own})

    def only(self, names: Container[str]) -> Space:
        """Returns the space of some dimensions."""
        kept = tuple(one for one in self.dimensions if one.name in names)
        return replace(self, axes={one.name: self.axes[one.name] for one in kept}, dimensions=kept)

    def unpruned(self) -> Space:
        """Returns the space for a network that cannot lose channels, if it holds such points."""
        return self._without([RATIO])

    def suited(self, network: Network) -> Space:
        """Returns the space without what does not suit a network, if it holds such points."""
        return self._without([one.name for one in self.dimensions if not one.suits(network)])

    def _without(self, names: Sequence[str]) -> Space:
        sound = {name: self._known[name].sound for name in names}
        return self.fix(**{n: v for n, v in sound.items() if self.axes[n].nearest(v) == v})

    @property
    def prunes(self) -> bool:
        """Whether any point may lose channels."""
        return self._may_change(RATIO)

    @property
    def changes(self) -> bool:
        """Whether any point may change the network, so that it has to be trained."""
        return any(self._may_change(d.name) for d in self.dimensions if d.group == "compression")

    def _may_change(self, name: str) -> bool:
        axis, sound = self.axes[name], self._known[name].sound
        ends = axis.values if isinstance(axis, Choice) else (axis.low, axis.high)
        return any(end != sound for end in ends)

    def make(self, values: Mapping[str, Value]) -> Point:
        """Returns the point of some values, without those that do not matter beside the others.

        Raises:
            KeyError: If the value of a dimension that matters is missing.
        """
        found = {name: values[name] for name in self.axes if self.applies(name, values)}
        groups: dict[str, Choices] = {"compression": (), "training": (), "deployment": ()}
        for one in self.dimensions:
            if one.name in found:
                groups[one.group] += ((one.name, found[one.name]),)
        return Point(**groups)

    def point(self, params: Mapping[str, Any]) -> Point:
        """Completes a trial's parameters with the fixed dimensions.

        Args:
            params: ``params`` of a trial that was asked with ``distributions()``.

        Raises:
            KeyError: If a dimension that is not fixed is missing.
            ValueError: If a value is not among the choices.
        """
        typed = {
            name: self.axes[name].typed(value)
            for name, value in params.items()
            if name in self.axes
        }
        return self.make({**typed, **self._fixed})

    def moved(self, point: Point, **changes: Value) -> Point:
        """Returns a point with other values of some of its dimensions.

        What matters beside them only is as near as the space allows to what is sound.
        """
        if not self.conditional:
            return point.replaced(**changes)  # many times quicker
        return self.make({**self._sound, **point.values, **changes})

    @cached_property
    def _sound(self) -> Mapping[str, Value]:
        sound = sound_values(self.dimensions)
        return {name: axis.nearest(sound[name]) for name, axis in self.axes.items()}

    def params(self, point: Point) -> dict[str, Any]:
        """Returns the parameters to enqueue for a point inside of the space.

        Raises:
            ValueError: If the point lies outside; ``starting_points`` says what to do then.
        """
        if not self.contains(point):
            raise ValueError(f"{point} lies outside of the space {self.describe()}")
        values, fixed = point.values, self._fixed
        return {name: values[name] for name in self.axes if name in values and name not in fixed}

    @cached_property
    def _fixed(self) -> Mapping[str, Value]:
        values = {name: only_value(axis) for name, axis in self.axes.items()}
        return {name: value for name, value in values.items() if value is not None}

    def thread_counts(self) -> tuple[int, ...]:
        """Returns every number of threads that a point may have, rising."""
        axis = self.axes[THREADS]
        if isinstance(axis, Choice):
            return tuple(sorted(int(value) for value in axis.values))
        return tuple(range(int(axis.low), int(axis.high) + 1))

    def bit_widths(self) -> tuple[int, ...]:
        """Returns every number of bits that a point may have."""
        axis = self.axes[BITS]
        assert isinstance(axis, Choice), "bits have no range"
        return tuple(int(value) for value in axis.values)

    def deployments(self) -> list[tuple[int, int]]:
        """Returns every pair of bits and threads that a point may have."""
        return list(product(self.bit_widths(), self.thread_counts()))

    def contains(self, point: Point) -> bool:
        """Tells whether a point is in the space in every dimension, and has no others."""
        values = point.values
        wanted = {name for name in self.axes if self.applies(name, values)}
        return values.keys() == wanted and all(
            self.axes[name].contains(value) for name, value in values.items()
        )

    def nearest(self, point: Point) -> Point:
        """Moves a point into the space, each dimension by itself.

        A number goes to the nearest that is allowed, a word that is not allowed to the first
        choice, and what the point does not have to what is sound.
        """
        values = {n: axis.nearest(point.values[n]) for n, axis in self.axes.items() if n in point}
        return self.make({**self._sound, **values})

    def describe(self) -> dict[str, Any]:
        """Returns the space in its one canonical form, as JSON values.

        Two declarations mean the same space exactly when their descriptions are equal, and
        ``parse_space`` reads a description back.
        """
        found = {RATE: AUTO} if self.is_scaled else {}
        return {name: axis.describe() for name, axis in self.axes.items()} | found


def sound_values(dimensions: Sequence[Dimension]) -> dict[str, Value]:
    """Returns the recipe that a study begins with, whatever a space allows."""
    return {one.name: one.sound for one in dimensions}
