"""One choice in the search space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

Value: TypeAlias = float | int | str
Group = Literal["compression", "training", "deployment"]
Choices: TypeAlias = tuple[tuple[str, Value], ...]


@dataclass(frozen=True, slots=True)
class Point:
    """One choice in the search space: values of its dimensions by name, in three groups.

    Attributes:
        compression: What decides the network's structure.
        training: What decides its weights.
        deployment: How it is stored and run.
    """

    compression: Choices
    training: Choices
    deployment: Choices

    @property
    def values(self) -> dict[str, Value]:
        """All values by dimension."""
        return dict((*self.compression, *self.training, *self.deployment))

    def __getitem__(self, name: str) -> Value:
        """Returns the value of a dimension; KeyError where it does not apply."""
        return self.values[name]

    def __contains__(self, name: str) -> bool:
        """Tells whether a dimension applies."""
        return name in self.values

    def number(self, name: str) -> float:
        """Returns the value of a dimension of numbers."""
        return float(self[name])

    def whole(self, name: str) -> int:
        """Returns the value of a dimension of whole numbers."""
        return int(self[name])

    def word(self, name: str) -> str:
        """Returns the value of a dimension of words."""
        return str(self[name])

    def replaced(self, **changes: Value) -> Point:
        """Returns the point with other values of some of its dimensions.

        Raises:
            KeyError: If one of them is none of the point's.
        """
        if missing := changes.keys() - self.values.keys():
            raise KeyError(f"{', '.join(sorted(missing))}: the point has {', '.join(self.values)}")

        def moved(choices: Choices) -> Choices:
            return tuple((name, changes.get(name, value)) for name, value in choices)

        return Point(moved(self.compression), moved(self.training), moved(self.deployment))


def shared_dimensions(points: Sequence[Point]) -> list[str]:
    """Returns the dimensions that all points have, in order; none of no points."""
    values = [point.values for point in points]
    return [name for name in (values[0] if values else ()) if all(name in v for v in values)]
