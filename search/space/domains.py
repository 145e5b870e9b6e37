"""What a dimension may take: a range or a choice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from search.records.point import Value

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

AUTO = "auto"  # in a configuration: a range around the learning rate found for the network


@dataclass(frozen=True)
class Range:
    """All numbers from ``low`` to ``high``, ends included.

    Attributes:
        low: Smallest value.
        high: Largest value, not below ``low``.
        log: Whether samplers look at it in logarithms.
        whole: Whether only whole numbers belong to it.
        counts_cores: Whether ``high`` is what the device has of usable cores.
    """

    low: float
    high: float
    log: bool = False
    whole: bool = False
    counts_cores: bool = False

    def typed(self, value: Any) -> Value:
        """Returns a number in the type that its field of ``Point`` has.

        Whole floats and integers are equal but hash differently in the store.
        """
        return int(value) if self.whole else float(value)

    def contains(self, value: Any) -> bool:
        """Tells whether a number of the right type lies within."""
        return bool(self.low <= value <= self.high)

    def nearest(self, value: Any) -> Value:
        """Clips a number."""
        return self.typed(min(max(value, self.low), self.high))

    def distribution(self) -> BaseDistribution:
        """Returns the same in Optuna's terms."""
        # Imported here, because a mistyped space is refused in less time than this takes.
        from optuna.distributions import FloatDistribution, IntDistribution

        if self.whole:
            return IntDistribution(int(self.low), int(self.high), log=self.log)
        return FloatDistribution(self.low, self.high, log=self.log)

    def describe(self) -> dict[str, Value]:
        """Returns the range as a configuration declares it."""
        return {"low": self.typed(self.low), "high": self.typed(self.high)}


@dataclass(frozen=True)
class Choice:
    """A few values, sorted as their domain is; a single one makes the dimension fixed."""

    values: tuple[Value, ...]

    def typed(self, value: Any) -> Value:
        """Returns the equal value of this choice; ValueError if there is none."""
        return self.values[self.values.index(value)]

    def contains(self, value: Any) -> bool:
        """Tells whether a value is among the choices."""
        return value in self.values

    def nearest(self, value: Any) -> Value:
        """Returns the nearest number; of words the same one, or else the first."""
        if self.contains(value):
            return self.typed(value)
        if isinstance(value, str):
            return self.values[0]
        return min(self.values, key=lambda own: abs(float(own) - value))

    def distribution(self) -> BaseDistribution:
        """Returns the same in Optuna's terms."""
        from optuna.distributions import CategoricalDistribution

        return CategoricalDistribution(self.values)

    def describe(self) -> Value | list[Value]:
        """Returns the choices as a configuration declares them."""
        return list(self.values) if len(self.values) > 1 else self.values[0]


Axis: TypeAlias = Range | Choice


def only_value(axis: Axis) -> Value | None:
    """Returns the only value of an axis, None if there are several."""
    return axis.values[0] if isinstance(axis, Choice) and len(axis.values) == 1 else None
