"""Checks a declared space.

``conf/space`` declares for each dimension a range, a list of choices or one value.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from search.errors import ConfigError
from search.records.point import Value
from search.space.dimension import RUNTIME, dimensions
from search.space.domains import AUTO, Axis, Choice, Range
from search.space.space import RATE, Space

CORES = "cores"  # in a configuration: as many threads as the device has usable cores


def parse_space(raw: Mapping[str, Any], usable_cores: int, runtime: str = RUNTIME) -> Space:
    """Checks a declared space.

    Args:
        raw: For every dimension a mapping of ``low`` and ``high``, a list of choices or one
            value. For threads the word ``cores`` stands for ``usable_cores``; the learning rate
            may be ``auto``: any, until ``Space.around`` says which.
        usable_cores: Cores of the device that affinity and quota leave, at least 1.
        runtime: Name of the device's runtime.

    Raises:
        ConfigError: With every fault by its dotted key, joined in one line.
    """
    known = {one.name: one for one in dimensions(runtime)}
    # In the order of the declaration, in which they are sampled.
    names = list(dict.fromkeys([*(name for name in raw if name in known), *known]))
    faults = [_unknown(name, names) for name in raw if name not in known]
    axes: dict[str, Axis] = {}
    is_scaled = raw.get(RATE) == AUTO
    for name in names:
        domain = known[name].domain(usable_cores)
        if name == RATE and is_scaled:
            axes[name] = domain
            continue
        axis = _parse_axis(f"space.{name}", raw.get(name, known[name].default), domain, faults)
        if axis is not None:
            axes[name] = axis
    if faults:
        raise ConfigError("; ".join(faults))
    return Space(axes, tuple(known.values()), is_scaled)


def _unknown(name: object, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(str(name), known, n=1)
    remedy = f"did you mean {close[0]}?" if close else "remove it."
    return f"space.{name}: unknown dimension; {remedy} Allowed are {', '.join(known)}"


def _parse_axis(key: str, raw: object, domain: Axis, faults: list[str]) -> Axis | None:
    """Returns the axis that ``raw`` declares, or None after adding to ``faults``."""
    if raw is None:
        faults.append(f"{key}: missing; give {allowed(domain)}")
        return None
    if isinstance(raw, Mapping):
        return _parse_range(key, raw, domain, faults)
    if isinstance(raw, list | tuple):
        return _parse_choice(key, raw, domain, faults)
    value = _parse_value(key, raw, domain, faults)
    return None if value is None else Choice((value,))


def _parse_range(key: str, raw: Mapping[Any, Any], domain: Axis, faults: list[str]) -> Axis | None:
    if isinstance(domain, Choice):
        faults.append(f"{key}={_shown(raw)}: takes no range; give {allowed(domain)}")
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
            faults.append(f"{key}.{end}: missing; give {allowed(domain)}")
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
        faults.append(f"{key}=[]: empty; give {allowed(domain)}")
    else:
        distinct = {value for value in values if value is not None}
        if isinstance(domain, Choice):
            return Choice(tuple(value for value in domain.values if value in distinct))
        return Choice(tuple(sorted(distinct, key=float)))
    return None


def _parse_value(key: str, raw: object, domain: Axis, faults: list[str]) -> Value | None:
    """Returns one legal value in its field's type, or None after adding to ``faults``."""
    if isinstance(domain, Range) and domain.counts_cores and raw == CORES:
        return domain.typed(domain.high)
    complaint = _complaint(raw, domain)
    if complaint:
        faults.append(f"{key}={raw!r}: {complaint}; give {allowed(domain)}")
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
    if domain.counts_cores and raw > domain.high:
        cores = "core" if domain.high == 1 else "cores"
        return f"this device has {domain.high} usable {cores}"
    return "out of range"


def allowed(domain: Axis) -> str:
    """Says what a dimension may be."""
    if isinstance(domain, Choice):
        return f"{', '.join(str(value) for value in domain.values)}, or a list of some"
    if domain.low == domain.high:
        return f"{domain.low:g}"
    return f"{domain.low:g} to {domain.high:g}"
