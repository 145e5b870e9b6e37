"""Answers steps from memory alone."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

from search.config.device import DeviceConfig
from search.engine.base import Done, answered
from search.engine.store import Store
from search.errors import NotRemembered
from search.records.device import DeviceProfile
from search.records.steps.step import Step


class RememberedSteps:
    """An engine that computes nothing.

    Args:
        store: Remembers finished steps.
    """

    slots = 1

    def __init__(self, store: Store) -> None:
        self._store = store

    def describe(self, config: DeviceConfig) -> DeviceProfile:
        """Knows no device.

        Raises:
            NotRemembered: Always.
        """
        raise NotRemembered(f"device={config.name}: no device is asked here")

    def submit(self, step: Step[Any], title: str = "") -> Future[Done]:
        """Returns what ``step`` answered before; the future raises NotRemembered if nothing."""
        return answered(lambda: self._look_up(step))

    def _look_up(self, step: Step[Any]) -> Done:
        known = self._store.load(step)
        if known is None:
            raise NotRemembered(f"{step.kind}: this step was not computed here")
        return Done(known.result, known.seconds, reused=True)
