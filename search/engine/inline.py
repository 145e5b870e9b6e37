"""Runs steps one after another in this process; knows nothing of trials."""

from __future__ import annotations

import importlib
import logging
import time
from collections.abc import Callable
from typing import Any

from search.engine.base import Done
from search.engine.store import Store
from search.errors import SearchError, StageFailed, one_line
from search.steps import Step

log = logging.getLogger(__name__)


class InlineEngine:
    """Answers steps from the store, or computes them here.

    One step runs at a time, so training stands still while the device is measured.
    """

    def __init__(self, store: Store, on_start: Callable[[Step[Any]], None]) -> None:
        self._store = store
        self._on_start = on_start

    def run(self, step: Step[Any]) -> Done:
        """Runs ``step`` unless its result is known.

        Raises:
            SearchError: As the stage raised it; whatever else goes wrong inside a stage becomes
                ``StageFailed`` with its cause chained. Files that cannot be written are not the
                stage's fault: OSError passes through.
        """
        known = self._store.load(step)
        if known is not None:
            return Done(known.result, known.seconds, reused=True)
        self._on_start(step)
        stage = importlib.import_module(f"search.stages.{step.kind}")
        started = time.perf_counter()
        try:
            result = stage.run(step, self._store)
        except (SearchError, OSError):
            raise
        except Exception as error:
            log.debug("stage %s failed", step.kind, exc_info=True)
            raise StageFailed(step.kind, one_line(error)) from error
        seconds = time.perf_counter() - started
        self._store.save(step, result, seconds)
        return Done(result, seconds, reused=False)
