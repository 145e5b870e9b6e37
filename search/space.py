"""The search space as data: an Optuna trial becomes a ``Point``; knows not what the values do.

``conf/space`` declares for each dimension a range, a list of choices or one value. This module
holds which of them are legal, and translates between Optuna's parameters and points.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain, product, repeat
from typing import TYPE_CHECKING, Any, TypeAlias

from search.errors import ConfigError
from search.records import Point
from search.steps import SOUND_TEMPERATURE, SOUND_WEIGHT

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

Value: TypeAlias = float | int | str
CORES = "cores"  # in a configuration: as many threads as the device has usable cores
AUTO = "auto"  # in a configuration: a range around the learning rate found for the network
AROUND = 10.0  # times as low and as high as the found rate


@dataclass(frozen=True)
class Range:
    """All numbers from ``low`` to ``high``, ends included.

    Attributes:
        low: Smallest value.
        high: Largest value, not below ``low``.
        log: Whether samplers look at it in logarithms.
        whole: Whether only whole numbers belong to it; so far these are numbers of cores.
    """

    low: float
    high: float
    log: bool = False
    whole: bool = False

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


def legal_domains(usable_cores: int) -> dict[str, Axis]:
    """Returns what each dimension may take on a device with ``usable_cores``, in order."""
    return {
        "prune_ratio": Range(0.0, 0.9),
        "bits": Choice((32, 16, 8, 4)),
        "distill_temperature": Range(1.0, 10.0, log=True),
        "distill_weight": Range(0.0, 1.0),
        "optimizer": Choice(("sgd", "adam", "adamw", "rmsprop")),
        "learning_rate": Range(1e-6, 1.0, log=True),
        "schedule": Choice(("constant", "step", "cosine", "one_cycle", "plateau")),
        "threads": Range(1, usable_cores, whole=True),
    }


# Where bits and threads are sampled too: how the first cut is deployed, the second, and the others.
MOST, FEWEST = "as the original", "fewest"
DEPLOYED = (
    ((32, MOST), (8, MOST), (32, FEWEST)),
    ((32, FEWEST), (8, MOST)),
    ((32, FEWEST),),
)


@dataclass(frozen=True)
class Space:
    """A checked search space.

    Optuna's parameters are not yet a point: fixed dimensions are missing from them, and
    ``Study.ask`` ignores what was enqueued for a dimension that it does not sample.

    Attributes:
        axes: Every field of ``Point`` by name, in order.
        is_scaled: Whether the range of learning rates is the network's, found with ``around``.
    """

    axes: Mapping[str, Axis]
    is_scaled: bool = False

    def distributions(self) -> dict[str, BaseDistribution]:
        """Returns what ``Study.ask`` samples from: every dimension that is not fixed."""
        return {
            name: axis.distribution() for name, axis in self.axes.items() if _fixed(axis) is None
        }

    def fix(self, **values: Value) -> Space:
        """Returns the space with some dimensions fixed."""
        return replace(self, axes={**self.axes, **{n: Choice((v,)) for n, v in values.items()}})

    def around(self, learning_rate: float) -> Space:
        """Returns the space with learning rates around one, unless they were given."""
        domain = self.axes["learning_rate"]
        if not self.is_scaled or not isinstance(domain, Range):
            return self
        low, high = (
            float(domain.nearest(end)) for end in (learning_rate / AROUND, learning_rate * AROUND)
        )
        own = replace(domain, low=low, high=high)
        return replace(self, axes={**self.axes, "learning_rate": own})

    def unpruned(self) -> Space:
        """Returns the space for a network that cannot lose channels, if it holds such points."""
        return self.fix(prune_ratio=0.0) if self.axes["prune_ratio"].nearest(0.0) == 0 else self

    @property
    def prunes(self) -> bool:
        """Whether any point may lose channels."""
        axis = self.axes["prune_ratio"]
        return (max(axis.values, key=float) if isinstance(axis, Choice) else axis.high) != 0

    def point(self, params: Mapping[str, Any]) -> Point:
        """Completes a trial's parameters with the fixed dimensions.

        Args:
            params: ``params`` of a trial that was asked with ``distributions()``.

        Raises:
            KeyError: If a dimension that is not fixed is missing.
            ValueError: If a value is not among the choices.
        """
        values: dict[str, Any] = {}
        for name, axis in self.axes.items():
            fixed = _fixed(axis)
            values[name] = axis.typed(params[name]) if fixed is None else fixed
        return Point(**values)

    def params(self, point: Point) -> dict[str, Any]:
        """Returns the parameters to enqueue for a point inside of the space.

        Raises:
            ValueError: If the point lies outside; ``starting_points`` says what to do then.
        """
        if not self.contains(point):
            raise ValueError(f"{point} lies outside of the space {self.describe()}")
        values = asdict(point)
        return {name: values[name] for name, axis in self.axes.items() if _fixed(axis) is None}

    def thread_counts(self) -> tuple[int, ...]:
        """Returns every number of threads that a point may have, rising."""
        axis = self.axes["threads"]
        if isinstance(axis, Choice):
            return tuple(sorted(int(value) for value in axis.values))
        return tuple(range(int(axis.low), int(axis.high) + 1))

    def bit_widths(self) -> tuple[int, ...]:
        """Returns every number of bits that a point may have."""
        axis = self.axes["bits"]
        assert isinstance(axis, Choice), "bits have no range"
        return tuple(int(value) for value in axis.values)

    def deployments(self) -> list[tuple[int, int]]:
        """Returns every pair of bits and threads that a point may have."""
        return list(product(self.bit_widths(), self.thread_counts()))

    def contains(self, point: Point) -> bool:
        """Tells whether a point is in the space in every dimension."""
        return all(axis.contains(getattr(point, name)) for name, axis in self.axes.items())

    def nearest(self, point: Point) -> Point:
        """Moves a point into the space, each dimension by itself.

        A number goes to the nearest that is allowed, a word that is not allowed to the first
        choice.
        """
        moved: dict[str, Any] = {
            name: axis.nearest(getattr(point, name)) for name, axis in self.axes.items()
        }
        return Point(**moved)

    def describe(self) -> dict[str, Any]:
        """Returns the space in its one canonical form, as JSON values.

        Two declarations mean the same space exactly when their descriptions are equal, and
        ``parse_space`` reads a description back.
        """
        found = {"learning_rate": AUTO} if self.is_scaled else {}
        return {name: axis.describe() for name, axis in self.axes.items()} | found


def _fixed(axis: Axis) -> Value | None:
    """Returns the only value of an axis, None if there are several."""
    return axis.values[0] if isinstance(axis, Choice) and len(axis.values) == 1 else None


def starting_points(
    space: Space,
    threads: int,
    names_deployments: bool,
    cuts: Sequence[float],
    rate: Callable[[float], float],
) -> list[Point]:
    """Chooses the points that a study tries before its sampler knows anything.

    The first is the uncompressed network, the yardstick, which stays uncompressed even where the
    space does not hold it. Then come other shares of its cost; with these the front has its shape
    before the sampler refines it. Where points name their bits and threads, 8 bits and the fewest
    threads are tried too, because small networks often gain nothing from more. Each is there only
    if the space holds it. The recipe is a sound one, moved into the space.

    A yardstick for which ``space.contains`` is false must not be enqueued: ``Study.ask`` raises
    on an unknown choice and leaves the trial running, and a trial told as complete (for TPE also
    pruned) without all parameters ends joint sampling for the rest of the study, because samplers
    intersect the parameters of all trials. Ask for it without distributions, note the point in
    its user attributes, and tell the state FAIL, which every sampler passes over.

    Args:
        space: Where points are chosen from.
        threads: At which the uncompressed network is fastest.
        names_deployments: Whether points differ in bits and threads too.
        cuts: Shares of the channels to prune, in the order in which they are tried.
        rate: Gives a sound learning rate for what a share leaves.

    Returns:
        Different points.
    """
    sound = Point(
        prune_ratio=0.0,
        bits=32,
        distill_temperature=SOUND_TEMPERATURE,
        distill_weight=SOUND_WEIGHT,
        optimizer="adamw",
        learning_rate=rate(0.0),
        schedule="one_cycle",
        threads=threads,
    )
    yardstick = replace(space.nearest(sound), prune_ratio=sound.prune_ratio, bits=sound.bits)
    most, fewest = yardstick.threads, int(space.axes["threads"].nearest(1))
    ratios = dict.fromkeys(float(space.axes["prune_ratio"].nearest(cut)) for cut in cuts)
    deployments = [(ratio, space.bit_widths()[0], most) for ratio in ratios]
    if names_deployments:
        deployments = [(0.0, 8, most)]
        for ratio, ways in zip(ratios, chain(DEPLOYED, repeat(DEPLOYED[-1])), strict=False):
            deployments += [(ratio, bits, most if at == MOST else fewest) for bits, at in ways]
    compressed = [
        replace(
            yardstick,
            prune_ratio=ratio,
            bits=bits,
            threads=count,
            learning_rate=float(space.axes["learning_rate"].nearest(rate(ratio))),
        )
        for ratio, bits, count in deployments
    ]
    # Each once: with the fewest threads for the yardstick too, the first cut comes twice.
    return list(dict.fromkeys([yardstick, *(p for p in compressed if space.contains(p))]))


def parse_space(raw: Mapping[str, Any], usable_cores: int) -> Space:
    """Checks a declared space.

    Args:
        raw: For every dimension a mapping of ``low`` and ``high``, a list of choices or one
            value. For threads the word ``cores`` stands for ``usable_cores``; the learning rate
            may be ``auto``: any, until ``Space.around`` says which.
        usable_cores: Cores of the device that affinity and quota leave, at least 1.

    Raises:
        ConfigError: With every fault by its dotted key, joined in one line.
    """
    domains = legal_domains(usable_cores)
    faults = [_unknown(name, list(domains)) for name in raw if name not in domains]
    axes: dict[str, Axis] = {}
    is_scaled = raw.get("learning_rate") == AUTO
    for name, domain in domains.items():
        if name == "learning_rate" and is_scaled:
            axes[name] = domain
            continue
        axis = _parse_axis(f"space.{name}", raw.get(name), domain, faults)
        if axis is not None:
            axes[name] = axis
    if faults:
        raise ConfigError("; ".join(faults))
    return Space(axes, is_scaled)


def _unknown(name: object, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(str(name), known, n=1)
    remedy = f"did you mean {close[0]}?" if close else "remove it."
    return f"space.{name}: unknown dimension; {remedy} Allowed are {', '.join(known)}"


def _parse_axis(key: str, raw: object, domain: Axis, faults: list[str]) -> Axis | None:
    """Returns the axis that ``raw`` declares, or None after adding to ``faults``."""
    if raw is None:
        faults.append(f"{key}: missing; give {_allowed(domain)}")
        return None
    if isinstance(raw, Mapping):
        return _parse_range(key, raw, domain, faults)
    if isinstance(raw, list | tuple):
        return _parse_choice(key, raw, domain, faults)
    value = _parse_value(key, raw, domain, faults)
    return None if value is None else Choice((value,))


def _parse_range(key: str, raw: Mapping[Any, Any], domain: Axis, faults: list[str]) -> Axis | None:
    if isinstance(domain, Choice):
        faults.append(f"{key}={_shown(raw)}: takes no range; give {_allowed(domain)}")
        return None
    before = len(faults)
    faults.extend(
        f"{key}.{end}: unknown key; a range has low and high"
        for end in raw
        if end not in ("low", "high")
    )
    ends: dict[str, Any] = {}
    for end in ("low", "high"):
        if raw.get(end) is None:
            faults.append(f"{key}.{end}: missing; give {_allowed(domain)}")
        else:
            ends[end] = _parse_value(f"{key}.{end}", raw[end], domain, faults)
    if len(faults) > before:
        return None
    if ends["low"] > ends["high"]:
        faults.append(f"{key}={_shown(raw)}: low is above high; lower it or raise high")
        return None
    return Choice((ends["low"],)) if ends["low"] == ends["high"] else replace(domain, **ends)


def _shown(raw: Mapping[Any, Any]) -> str:
    """Writes a range as the command line takes it."""
    return "{" + ", ".join(f"{end}: {value}" for end, value in raw.items()) + "}"


def _parse_choice(key: str, raw: Sequence[Any], domain: Axis, faults: list[str]) -> Choice | None:
    before = len(faults)
    values = [_parse_value(f"{key}[{i}]", item, domain, faults) for i, item in enumerate(raw)]
    if len(faults) > before:
        return None
    # Compared before "cores" becomes a number: [1, cores] is no mistake on a single core.
    if len(set(raw)) < len(raw):
        faults.append(f"{key}={list(raw)!r}: has a value twice; remove one")
    elif not raw:
        faults.append(f"{key}=[]: empty; give {_allowed(domain)}")
    else:
        distinct = {value for value in values if value is not None}
        if isinstance(domain, Choice):
            return Choice(tuple(value for value in domain.values if value in distinct))
        return Choice(tuple(sorted(distinct, key=float)))
    return None


def _parse_value(key: str, raw: object, domain: Axis, faults: list[str]) -> Value | None:
    """Returns one legal value in its field's type, or None after adding to ``faults``."""
    if isinstance(domain, Range) and domain.whole and raw == CORES:
        return domain.typed(domain.high)
    complaint = _complaint(raw, domain)
    if complaint:
        faults.append(f"{key}={raw!r}: {complaint}; give {_allowed(domain)}")
        return None
    return domain.typed(raw)


def _complaint(raw: Any, domain: Axis) -> str | None:
    """Says what is wrong with one value, if anything."""
    if isinstance(domain, Choice):
        # Compared with the type, because True == 1 and 8.0 == 8.
        legal = any(type(raw) is type(value) and raw == value for value in domain.values)
        return None if legal else "not one of the choices"
    if isinstance(raw, bool) or not isinstance(raw, int | float):
        return "not a number"
    if isinstance(raw, float) and not math.isfinite(raw):
        return "not finite"
    if domain.whole and not isinstance(raw, int):
        return "not a whole number"
    if domain.contains(raw):
        return None
    if domain.whole and raw > domain.high:
        cores = "core" if domain.high == 1 else "cores"
        return f"this device has {domain.high} usable {cores}"
    return "out of range"


def _allowed(domain: Axis) -> str:
    if isinstance(domain, Choice):
        return f"{', '.join(str(value) for value in domain.values)}, or a list of some"
    if domain.low == domain.high:
        return f"{domain.low:g}"
    return f"{domain.low:g} to {domain.high:g}"
