"""Runs steps and remembers their results."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager

from search.config.engine import EngineConfig, InlineEngineConfig, LocalEngineConfig
from search.engine.base import Engine, OnEvent
from search.engine.store import Store
from search.errors import ConfigError


def make_engine(
    config: EngineConfig, store: Store, on_event: OnEvent
) -> AbstractContextManager[Engine]:
    """Returns the configured engine; leaving it gives up what is still under way.

    Args:
        config: Which one, and what it may use.
        store: Remembers finished steps.
        on_event: Told of every step that is computed, perhaps from another thread.

    Raises:
        ConfigError: When Ray is wanted and not installed.
    """
    # Imported here: each brings libraries of its own.
    if isinstance(config, InlineEngineConfig):
        from search.engine.inline import InlineEngine

        return InlineEngine(store, on_event)
    if isinstance(config, LocalEngineConfig):
        from search.engine.local import LocalEngine

        return LocalEngine(store, config, on_event)
    if config.address is None:
        # Named after the systems where it is the default, it makes Ray listen on 127.0.0.1 alone;
        # Ray looks at it when it is imported.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    try:
        from search.engine.cluster import RayEngine
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise ConfigError(
            "engine=ray needs the package ray: pip install 'cnn-search[cluster]'"
        ) from error
    return RayEngine(store, config, on_event)
