"""What a point chooses, one dimension at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from search.errors import ConfigError
from search.process import registry
from search.records.point import Group, Value
from search.space.domains import Axis, Range


@dataclass(frozen=True)
class When:
    """A dimension that matters only where another one has one of these values."""

    name: str
    values: tuple[Value, ...]

    def holds(self, choices: Mapping[str, Value]) -> bool:
        """Tells whether it matters beside what else is chosen."""
        return choices.get(self.name) in self.values


@dataclass(frozen=True)
class Dimension:
    """One thing that a point chooses, with all that anybody needs to know of it.

    Attributes:
        name: In configurations, in MLflow and in points.
        group: Whether it decides the structure, the weights, or how both are run.
        domain: What it may be on a device with so many usable cores.
        sound: What it is in the recipe that a study begins with.
        label: On axes and in tables.
        phrase: In sentences, with ``{}`` for the value, such as ``prune ratio {:.3g}``, and ``{s}``
            where a word's plural ends, as in ``{} thread{s}``.
        default: What ``conf/space`` would say of it, for those of plug-ins.
        when: Beside which other choices it matters; None for always.
    """

    name: str
    group: Group
    domain: Callable[[int], Axis]
    sound: Value
    label: str
    phrase: str
    default: object = None
    when: When | None = None

    def describe(self, value: Value) -> str:
        """Writes a value in a sentence."""
        return self.phrase.format(value, s="" if value == 1 else "s")


def dimensions() -> tuple[Dimension, ...]:
    """Returns the dimensions that techniques and runtimes add, plug-ins' included.

    Raises:
        ConfigError: When two of them have one name.
    """
    owners: dict[str, str] = {}
    found: list[Dimension] = []
    for kind in ("techniques", "runtimes"):
        for name, owner in registry.load_all(kind).items():
            for one in owner.dimensions:
                if one.name in owners:
                    raise ConfigError(
                        f"space.{one.name}: both {owners[one.name]} and {name} add it; remove one"
                    )
                owners[one.name] = name
                found.append(one)
    return tuple(found)


def known_dimensions() -> Mapping[str, Dimension]:
    """Returns the dimensions by name."""
    return {one.name: one for one in dimensions()}


def is_logarithmic(name: str) -> bool:
    """Tells whether samplers and plots look at a dimension in logarithms."""
    one = known_dimensions().get(name)
    axis = None if one is None else one.domain(1)
    return isinstance(axis, Range) and axis.log
