"""Runs steps one after another in this process."""

from __future__ import annotations

from concurrent.futures import Future
from contextlib import AbstractContextManager
from typing import Any

from search.config.device import DeviceConfig
from search.devices.reaching import describe_device
from search.engine.base import Done, OnEvent, StepCache, announced, answered, compute
from search.engine.store import Store
from search.records.device import DeviceProfile
from search.records.steps.step import Step


class InlineEngine(AbstractContextManager["InlineEngine"]):
    """Answers steps from the store, or computes them here.

    One step runs at a time, so training stands still while the device is measured.

    Args:
        store: Remembers finished steps.
        on_event: Told of every step that is computed.
    """

    slots = 1

    def __init__(self, store: Store, on_event: OnEvent) -> None:
        self._store = store
        self._on_event = on_event
        self._memory = StepCache(store)

    def describe(self, config: DeviceConfig) -> DeviceProfile:
        """Asks the device what it is.

        Raises:
            ConfigError: If it cannot be reached as configured.
        """
        return describe_device(config)

    def submit(self, step: Step[Any], title: str = "") -> Future[Done]:
        """Runs ``step`` to its end unless its result is known."""
        return self._memory.answer(step, lambda: answered(lambda: self._compute(step, title)))

    def run(self, step: Step[Any]) -> Done:
        """Returns what ``step`` answers, and raises what it raises."""
        return self.submit(step).result()

    def _compute(self, step: Step[Any], title: str) -> Done:
        with announced(step, title, self._on_event) as listener:
            return compute(step, self._store, listener)

    def __exit__(self, *_: object) -> None:
        """Does nothing: all it began has ended."""
