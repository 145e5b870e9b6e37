"""What plug-ins add to a command line: options of groups of ``conf/``, and dimensions."""

from __future__ import annotations

import json
from collections.abc import Mapping

from search.cli.remarks import CONF, comments
from search.errors import ConfigError
from search.process import registry
from search.space.dimension import dimensions
from search.space.parsing import allowed

GROUPS: Mapping[str, registry.Kind] = {
    "data": "data", "model": "models", "sampler": "samplers", "device": "devices"
}  # fmt: skip


def offer() -> None:
    """Adds the options of plug-ins to the groups of ``conf/``.

    Raises:
        ConfigError: When one has the name of an option of our own, which would hide it.
    """
    from hydra.core.config_store import ConfigStore

    for group, kind in GROUPS.items():
        for name, option in registry.load_all(kind).items():
            if (CONF / group / f"{name}.yaml").is_file():
                raise ConfigError(
                    f"{group}={name}: {registry.GROUP}{kind} of a plug-in has an option of that "
                    "name too; remove the plug-in, or have its author rename it"
                )
            ConfigStore.instance().store(name, dict(option), group, provider="plug-in")


def options(group: str) -> set[str]:
    """Returns the names of the options that plug-ins add to a group of ``conf/``."""
    return set(registry.load_all(GROUPS[group])) if group in GROUPS else set()


def dimension_defaults() -> list[str]:
    """Returns overrides that give plug-ins' dimensions their defaults."""
    own = comments()["space", "default"]
    return [
        f"++space.{one.name}={_written(one.default)}"
        for one in dimensions()
        if not any(key.split(".")[1] == one.name for key in own)
    ]


def remarks() -> dict[str, str]:
    """Returns what is to be said of the keys of plug-ins' dimensions: what they may be."""
    own = {key.split(".")[1] for key in comments()["space", "default"]}
    return {
        f"space.{one.name}": f"{one.label}: {allowed(one.domain(1))}"
        for one in dimensions()
        if one.name not in own
    }


def ranges() -> set[str]:
    """Returns the keys whose default is a range, of plug-ins' dimensions too."""
    own = {key for option in comments().values() for key in option if key.endswith(".low")}
    others = {f"space.{one.name}.low" for one in dimensions() if isinstance(one.default, Mapping)}
    return {key.removesuffix(".low") for key in own | others}


def _written(value: object) -> str:
    """Writes a value as Hydra reads it."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_written(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_written, value))}]"
    return json.dumps(value)
