"""What a point chooses, one dimension at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from search.errors import ConfigError
from search.process import registry
from search.records.network import Network
from search.records.point import Group, Value
from search.space.domains import Axis, Range

RUNTIME = "onnxruntime"  # every device has it


def _any(_: Network) -> bool:
    return True


@dataclass(frozen=True)
class When:
    """A dimension that matters only where another one matters and has one of these values."""

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
        suits: Tells of which networks it can be searched; for others it stays what is sound.
    """

    name: str
    group: Group
    domain: Callable[[int], Axis]
    sound: Value
    label: str
    phrase: str
    default: object = None
    when: When | None = None
    suits: Callable[[Network], bool] = _any

    def describe(self, value: Value) -> str:
        """Writes a value in a sentence."""
        return self.phrase.format(value, s="" if value == 1 else "s")


def dimensions(runtime: str = RUNTIME) -> tuple[Dimension, ...]:
    """Returns the dimensions that all techniques and one runtime add, plug-ins' included.

    Args:
        runtime: Name of the device's, which alone opens models there.

    Raises:
        ConfigError: When two of them have one name, or one matters only beside one that is not
            there or beside itself.
    """
    adding = [*registry.load_all("techniques").items()]
    adding.append((runtime, registry.load_all("runtimes")[runtime]))
    owners: dict[str, str] = {}
    found: list[Dimension] = []
    for name, owner in adding:
        for one in owner.dimensions:
            if one.name in owners:
                raise ConfigError(
                    f"space.{one.name}: both {owners[one.name]} and {name} add it; remove one"
                )
            owners[one.name] = name
            found.append(one)
    for one in found:
        _check_parents(one, found)
    return tuple(found)


def _check_parents(one: Dimension, others: Sequence[Dimension]) -> None:
    known = {other.name: other for other in others}
    above, passed = one, [one.name]
    while above.when is not None:
        name = above.when.name
        if name not in known or name in passed:
            what = "itself" if name in passed else f"{name}, which nothing adds"
            raise ConfigError(f"space.{one.name}: matters only beside {what}; mend its When")
        above = known[name]
        passed.append(name)


def known_dimensions() -> Mapping[str, Dimension]:
    """Returns the dimensions by name."""
    return {one.name: one for one in dimensions()}


def is_logarithmic(name: str) -> bool:
    """Tells whether samplers and plots look at a dimension in logarithms."""
    one = known_dimensions().get(name)
    axis = None if one is None else one.domain(1)
    return isinstance(axis, Range) and axis.log
