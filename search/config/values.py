"""Kinds of values that configurations hold."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
)

from search.errors import SECRET, hide_passwords
from search.process import registry

T = TypeVar("T")


def _not_bool(value: T) -> T:
    """Refuses true and false, which Python takes for 1 and 0."""
    if isinstance(value, bool):
        raise ValueError("input should be a number")
    return value


# A folder or a study may well be called 2024.
strict = ConfigDict(extra="forbid", allow_inf_nan=False, coerce_numbers_to_str=True)
Whole = Annotated[int, BeforeValidator(_not_bool)]
Number = Annotated[float, BeforeValidator(_not_bool)]
Share = Annotated[Number, Field(gt=0, lt=1)]
Positive = Annotated[Number, Field(gt=0)]
NonNegative = Annotated[Number, Field(ge=0)]
Count = Annotated[Whole, Field(ge=1)]
# The data's own check explains these better, NaN and infinity as well.
Statistic = Annotated[float, Field(allow_inf_nan=True), BeforeValidator(_not_bool)]
Statistics = tuple[Statistic, ...] | None


def named(kind: registry.Kind, others: str, *own: str) -> Discriminator:
    """Tells options of a group apart by their names.

    Args:
        kind: Of which plug-ins may have options too.
        others: Name of our own option whose keys those of plug-ins have.
        own: Names of our options.
    """

    def tag(value: Any) -> Any:
        keys = value if isinstance(value, Mapping) else getattr(value, "__dict__", {})
        name = keys.get("name")
        # Whoever reads a study that a plug-in's option was used in need not have the plug-in.
        is_other = "factory" in keys or name in registry.load_all(kind)
        return others if name not in own and is_other else name

    return Discriminator(tag)


SECRET_NAME = re.compile(rf"(?i)(.*[_.-])?({SECRET})")


def _keep_no_secret(arguments: Mapping[str, Any]) -> Mapping[str, Any]:
    """Refuses what looks like a secret, because arguments are kept with the study, in clear."""
    for name, value in arguments.items():
        _hold_no_secret(name, value)
    return arguments


def _hold_no_secret(name: str, value: Any) -> None:
    if isinstance(value, Mapping):
        _keep_no_secret(value)
    elif isinstance(value, list | tuple):
        for item in value:
            _hold_no_secret(name, item)
    elif value is not None and not isinstance(value, bool):
        is_named = SECRET_NAME.fullmatch(str(name)) is not None
        if is_named or hide_passwords(str(value)) != str(value):
            raise ValueError(
                f"{name} {'looks like' if is_named else 'seems to hold'} a secret, and arguments "
                "are written down with the study; have the function read it from the environment"
            )


Arguments = Annotated[Mapping[str, Any], AfterValidator(_keep_no_secret)]
