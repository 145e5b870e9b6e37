"""Ways to make a network cheaper or its training better: the dimensions that each adds.

One file per technique, found by ``process.registry``. Those that change the network turn a point
into a step, which yields an ``Edited`` network.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from search.process import registry
from search.records.bench import Bench
from search.records.network import Network
from search.records.point import Point
from search.records.steps.step import Step
from search.space.dimension import Dimension

Edit = Callable[[Point, Network, Bench], Step[Any] | None]


@dataclass(frozen=True)
class Technique:
    """A technique.

    Attributes:
        name: As it is registered.
        dimensions: That it adds to the space.
        edit: Returns the step that changes the network as a point asks, and None where it asks for
            nothing; None for techniques that change no network.
    """

    name: str
    dimensions: tuple[Dimension, ...]
    edit: Edit | None = None

    def step(self, point: Point, network: Network, bench: Bench) -> Step[Any] | None:
        """Returns the step that a point asks for; None also where none of its dimensions apply."""
        if self.edit is None or not any(one.name in point for one in self.dimensions):
            return None
        return self.edit(point, network, bench)


def techniques() -> tuple[Technique, ...]:
    """Returns all techniques, in the order in which they change a network."""
    return tuple(registry.load_all("techniques").values())
