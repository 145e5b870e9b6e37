"""What a study must keep from one run to the next, and what is said where it did not."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from search.errors import ConfigError

SPACE = "space."  # begins the settings of dimensions
# Settings that are digests, which nobody can give, and what has them.
CONTENTS = {
    "model.checkpoint": "the weights of model.checkpoint are",
    "model.source": "the source files of model.factory are",
    "data.content": "the images are",
}
# Settings that nobody gives as they are: they say where and how was measured and scored.
THE_DEVICE = {
    "device.name": "the device is",
    "device.cpu": "the device's processor is",
    "device.arch": "the device's architecture is",
    "device.flags": "the device's instruction sets are",
    "device.runtime": "the device's runtime is",
    "device.protocol": "the version of the measurements is",
}


def dimensions_of(settings: Mapping[str, Any]) -> set[str]:
    """Returns the names of the dimensions that settings have."""
    return {key.removeprefix(SPACE) for key in settings if key.startswith(SPACE)}


def compare(study: str, begun: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Compares the settings of this run with those that a study was begun with.

    Args:
        study: Its name.
        begun: Settings by dotted key.
        settings: Likewise.

    Raises:
        ConfigError: About the first that differs.
    """
    other = "or start another one with study.name=..."
    # Names first: they say more than what follows from them.
    for key in sorted({*begun, *settings}, key=lambda key: (not key.endswith(".name"), key)):
        if begun.get(key) == settings.get(key):
            continue
        now, then = _shown(settings.get(key)), _shown(begun.get(key))
        if key.startswith(SPACE) and key not in settings:
            raise ConfigError(
                f"{key}={then}: the study {study} was begun with this dimension, which no "
                f"installed package adds; install the one that does, {other}"
            )
        if key in THE_DEVICE:
            raise ConfigError(
                f"{THE_DEVICE[key]} {now}, but the study {study} was begun on {then}; figures do "
                f"not compare: go on there, {other}"
            )
        if key in CONTENTS and None not in (begun.get(key), settings.get(key)):
            raise ConfigError(
                f"{CONTENTS[key]} not those that the study {study} was begun with (SHA-256 "
                f"{now[:8]}, then {then[:8]}); give those, {other}"
            )
        raise ConfigError(
            f"{key}={now}: the study {study} was begun with {then}; give that, {other}"
        )


def _shown(value: object) -> str:
    """Writes a setting as the command line takes it."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}: {_shown(item)}" for key, item in value.items()) + "}"
    return value if isinstance(value, str) else json.dumps(value)
