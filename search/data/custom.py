"""The user's own data function; knows nothing of what it reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from search.data.source import Source
from search.errors import ConfigError, SearchError, one_line
from search.factory import contained, load_factory


def open_source(factory: str, arguments: Mapping[str, Any]) -> Source:
    """Calls ``package.module:function`` with ``arguments``.

    Raises:
        ConfigError: It cannot be imported, raises, or returns something else than a ``Source``.
    """
    function = load_factory(factory, "data.factory")
    origin = f"data.factory={factory!r}"
    try:
        with contained(origin):
            source = function(**arguments)
    except SearchError:
        raise
    except (Exception, SystemExit) as error:
        raise ConfigError(
            f"{origin}: called with data.arguments={dict(arguments)} it raised {one_line(error)}; "
            "correct the function or data.arguments"
        ) from error
    if not isinstance(source, Source):
        raise ConfigError(
            f"{origin}: returned {type(source).__name__}; return a search.data.Source"
        )
    return source
