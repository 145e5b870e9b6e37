"""What techniques and runtimes promise of the dimensions that they add."""

from __future__ import annotations

from collections.abc import Sequence

from search.records.point import Value
from search.space.dimension import RUNTIME, Dimension, dimensions
from search.space.domains import Axis, Choice

CORES = (1, 4)


def check_sound(added: Sequence[Dimension]) -> None:
    """A study begins with what is sound, on whatever device."""
    for one in added:
        assert all(one.domain(cores).contains(one.sound) for cores in CORES), one.name


def check_words(added: Sequence[Dimension]) -> None:
    """Every value has words, and no two of them the same."""
    for one in added:
        values = ends(one.domain(max(CORES)))
        assert len({one.describe(value) for value in values}) == len(set(values)), one.name


def check_registered(added: Sequence[Dimension], runtime: str = RUNTIME) -> None:
    """Their names are nobody else's beside a runtime, so that configurations can name them."""
    known = {one.name: one for one in dimensions(runtime)}
    assert all(known[one.name] is one for one in added)


def ends(axis: Axis) -> list[Value]:
    """Returns the choices of an axis, or the ends of its range and something between them."""
    if isinstance(axis, Choice):
        return list(axis.values)
    middle = (axis.low * axis.high) ** 0.5 if axis.log else (axis.low + axis.high) / 2
    return list(dict.fromkeys([axis.typed(axis.low), axis.typed(middle), axis.typed(axis.high)]))
