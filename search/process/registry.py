"""Finds by name what there may be more of: techniques, runtimes and the like, plug-ins' too.

Everything that is imported by a string goes through here. Another package adds its own by an entry
point of the group ``cnn_search.<kind>``, whose name is the thing's.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points, packages_distributions, version
from typing import Any, Literal

from search.errors import ConfigError, one_line

Kind = Literal["techniques", "runtimes", "devices", "samplers", "models", "data"]
GROUP = "cnn_search."
OWN = "search"
BUILT_IN: Mapping[Kind, Mapping[str, str]] = {
    "techniques": {
        "pruning": "search.techniques.pruning:TECHNIQUE",
        "distillation": "search.techniques.distillation:TECHNIQUE",
        "fine-tuning": "search.techniques.finetuning:TECHNIQUE",
    },
    "runtimes": {"onnxruntime": "search.runtimes.onnxruntime:RUNTIME"},
    # Options of conf/ are our own ones of these.
    "devices": {},
    "samplers": {},
    "models": {},
    "data": {},
}


# Of the other kinds a plug-in adds an option of conf/.
OBJECTS = ("techniques", "runtimes")


def load(reference: str) -> Any:
    """Returns what ``package.module:name`` names."""
    module, _, name = reference.partition(":")
    return getattr(importlib.import_module(module), name)


@functools.cache
def load_all(kind: Kind) -> Mapping[str, Any]:
    """Returns everything of a kind by name, our own first.

    Raises:
        ConfigError: When a plug-in cannot be imported, is something else than its kind wants, or
            takes a name that is taken.
    """
    found = {name: load(reference) for name, reference in BUILT_IN[kind].items()}
    for point in sorted(entry_points(group=GROUP + kind), key=lambda one: one.name):
        if point.name in found:
            raise ConfigError(f"{_describe(point)}: there is a {point.name} already; remove one")
        try:
            thing = point.load()
        except Exception as error:
            raise ConfigError(
                f"{_describe(point)}: cannot be imported ({one_line(error)}); mend or remove it"
            ) from error
        found[point.name] = _checked(kind, thing, point)
    return found


def _checked(kind: Kind, thing: Any, point: EntryPoint) -> Any:
    """Returns what a plug-in adds; an option of ``conf/`` gets the name of its entry point."""
    if kind in OBJECTS:
        if getattr(thing, "name", None) != point.name:
            raise ConfigError(f"{_describe(point)}: its name is not {point.name}; give it that")
        return thing
    if not isinstance(thing, Mapping) or "factory" not in thing:
        raise ConfigError(f"{_describe(point)}: is no mapping with a factory; make it one")
    return {**thing, "name": point.name}


def _describe(point: EntryPoint) -> str:
    owner = "a package" if point.dist is None else f"the package {point.dist.name}"
    return f"{owner}, {GROUP}{point.group.removeprefix(GROUP)}.{point.name}"


@functools.cache
def origin(module: str) -> str:
    """Returns the package that a module comes from, with its version; empty for our own.

    What a plug-in computes depends on its version as what we compute depends on a step's.
    """
    top = module.partition(".")[0]
    if top == OWN:
        return ""
    owners = packages_distributions().get(top, [])
    return ", ".join(f"{owner} {version(owner)}" for owner in sorted(set(owners))) or top
