"""The user's own data function."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from search.config.factory import call_factory
from search.data.source import Source
from search.errors import ConfigError


def open_source(factory: str, arguments: Mapping[str, Any]) -> Source:
    """Calls ``package.module:function`` with ``arguments``.

    Raises:
        ConfigError: It cannot be imported, raises, or returns something else than a ``Source``.
    """
    source = call_factory(factory, "data", arguments)
    if not isinstance(source, Source):
        raise ConfigError(
            f"data.factory={factory!r}: returned {type(source).__name__}; "
            "return a search.data.Source"
        )
    return source
