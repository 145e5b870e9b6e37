"""Turns a composed configuration into its types, or says in one line what is wrong with it."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Collection, Sequence
from dataclasses import is_dataclass
from typing import Any, TypeVar, get_args, get_type_hints

from pydantic import TypeAdapter, ValidationError

from search.errors import ConfigError, hide_password

T = TypeVar("T")


def parse(raw: object, shape: type[T]) -> T:
    """Checks a composed configuration.

    Args:
        raw: Nested dictionaries and lists, interpolations resolved.
        shape: What it should be, such as ``SearchConfig``.

    Raises:
        ConfigError: With every fault by its dotted key, joined in one line.
    """
    try:
        return TypeAdapter(shape).validate_python(raw)
    except ValidationError as error:
        faults = _telling(error.errors(include_url=False))
        strangers = {_key(f) for f in faults if f["type"] == "unexpected_keyword_argument"}
        raise ConfigError("; ".join(_describe(f, raw, strangers, shape) for f in faults)) from None


CHOSEN_BY_NAME = ("model", "data", "sampler", "device", "engine", "storage")
MESSAGES = {
    "bool_parsing": "input should be true or false",
    "bool_type": "input should be true or false",
    "dataclass_type": "is a section; give single keys of it",
    "float_parsing": "input should be a number",
    "float_type": "input should be a number",
    "int_from_float": "input should be a whole number",
    "int_parsing": "input should be a whole number",
    "int_type": "input should be a whole number",
    "mapping_type": "is a section; give single keys of it",
    "missing": "is missing; give it a value",
    "string_type": "input should be text",
    "too_long": "has too many entries, takes {max_length}",
    "too_short": "has too few entries, needs at least {min_length}",
    "tuple_type": "input should be a list in brackets",
    "union_tag_invalid": "no such choice; give one of {expected_tags}",
    "union_tag_not_found": "is missing; give it a value",
}


def _telling(faults: Sequence[Any]) -> list[Any]:
    """Leaves out that a list is too short where that is because an entry was refused."""
    places = [fault["loc"] for fault in faults]
    return [
        fault
        for fault in faults
        if fault["type"] != "too_short"
        or not any(p != fault["loc"] and p[: len(fault["loc"])] == fault["loc"] for p in places)
    ]


def _key(fault: Any) -> str:
    location = [str(part) for part in fault["loc"]]
    if fault["type"] in ("union_tag_invalid", "union_tag_not_found"):
        location.append("name")
    # The discriminator's value stands in the location ("model", "cnn", "width"): not a key.
    elif len(location) > 2 and location[0] in CHOSEN_BY_NAME:
        del location[1]
    return re.sub(r"\.(\d+)(?=\.|$)", r"[\1]", ".".join(location))


def _describe(fault: Any, raw: Any, strangers: Collection[str], shape: type) -> str:
    """Returns key, what was given, and what is allowed."""
    key, kind, details = _key(fault), fault["type"], fault.get("ctx", {})
    given = details.get("tag", fault["input"])
    shown = "" if isinstance(given, dict) or kind == "missing" else f"={_show(given)}"
    if kind == "unexpected_keyword_argument":
        return f"{key}{shown}: {_explain_stranger(key, raw, strangers, shape)}"
    if kind in MESSAGES:
        return f"{key}{shown}: {MESSAGES[kind].format(**details)}"
    text = fault["msg"].removeprefix("Value error, ")
    return f"{key}{shown}: {text[0].lower()}{text[1:]}"


def _explain_stranger(key: str, raw: Any, strangers: Collection[str], shape: type) -> str:
    """Says which keys stand where one does that nobody knows."""
    section, dot, name = key.rpartition(".")
    present = raw[section] if section else raw
    known = sorted(other for other in present if f"{section}{dot}{other}" not in strangers)
    close = difflib.get_close_matches(name, known, n=1)
    hint = f" (did you mean {section}{dot}{close[0]}?)" if close else ""
    hint = hint or _have_it(section, name, shape)
    first = min(other for other in strangers if other.rpartition(".")[0] == section)
    if key != first:  # the first of a section lists what there is
        return f"there is no such key{hint}"
    owner = f"{section}={present['name']}" if section in CHOSEN_BY_NAME else section
    there = f"{owner} has" if owner else "there are"
    return f"there is no such key{hint}; {there} {', '.join(known)}"


def _have_it(section: str, name: str, shape: type) -> str:
    """Says which other choices of a section have a key."""
    choices = get_args(get_type_hints(shape).get(section))
    hints = [h for h in map(get_type_hints, filter(is_dataclass, choices)) if name in h]
    there = [f"{section}={word}" for h in hints for word in get_args(h.get("name")) or ("custom",)]
    if not there:
        return ""
    verb = "has" if len(there) == 1 else "have"
    return f" ({' and '.join(there)} {verb} it)"


def _show(value: Any) -> str:
    """Writes a value as configurations do."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_show, value))}]"
    if isinstance(value, str):
        return repr(hide_password(value))
    return json.dumps(value) if value is None or isinstance(value, bool) else repr(value)
