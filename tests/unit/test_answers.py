"""The store holds what steps answered before: what they answer now must be read from it rightly."""

from __future__ import annotations

import hashlib
import importlib
import pkgutil
from dataclasses import fields, is_dataclass
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import search.records.steps
from search.records.steps.step import Step

# By kind: the step's version, and the digest of its answer's shape. Where a digest changes raise
# the version, unless an answer that was stored before is still read as what it was.
KNOWN = {
    "trace": (2, "0c6022af"),
    "export": (2, "5ad3971f"),
    "quantize": (3, "40003288"),
    "probe": (4, "67ef0642"),
    "measure": (4, "ebad476a"),
    "confirm": (3, "4714736e"),
    "profile": (4, "0c5a79e8"),
    "prune": (5, "33f332bf"),
    "sweep": (3, "b7331b98"),
    "evaluate": (4, "921da4b1"),
    "evaluate_on_device": (1, "921da4b1"),
    "placement": (4, "3484357f"),
    "teacher": (4, "498e66c7"),
    "reestimate": (2, "f83373fb"),
    "rate": (2, "d385c08a"),
    "finetune": (4, "f83373fb"),
}


def shape(kind: Any) -> str:
    """Writes down the fields of a type, and of what it holds."""
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        # In whichever order: they are read by their names.
        return f"({', '.join(sorted(f'{f.name}: {shape(hints[f.name])}' for f in fields(kind)))})"
    held = [shape(one) for one in get_args(kind)]
    if get_origin(kind) in (Union, UnionType):
        return " | ".join(held)
    name = getattr(get_origin(kind) or kind, "__name__", repr(kind))
    return f"{name}[{', '.join(held)}]" if held else name


def test_answers_are_read_as_what_they_were() -> None:
    for module in pkgutil.iter_modules(search.records.steps.__path__):
        importlib.import_module(f"search.records.steps.{module.name}")
    own = [step for step in Step.__subclasses__() if step.__module__.startswith("search.")]
    found = {
        step.kind: (step.version, hashlib.sha256(shape(step.result).encode()).hexdigest()[:8])
        for step in own
    }
    assert found == KNOWN
