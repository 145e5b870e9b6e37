"""What every engine promises."""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

from search.config.device import DeviceConfig
from search.engine.store import Store
from search.errors import SearchError, StageFailed, one_line
from search.process import registry
from search.process.activity import Activity, Listener, listening
from search.records.device import DeviceProfile
from search.records.steps.step import Step

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Done:
    """A step's result, and what it took.

    Attributes:
        result: What the step answers.
        seconds: It cost when it was computed.
        reused: Whether it was known already, or computed for somebody else.
        peak_rss_bytes: Most memory that the worker process held so far; None if in this process.
    """

    result: Any
    seconds: float
    reused: bool
    peak_rss_bytes: int | None = None


@dataclass(frozen=True)
class Event:
    """What happens to a step that is being computed; what was known is answered without one.

    Attributes:
        state: Whether it begins, goes on or has ended, well or not.
        step: Which one.
        title: What it is done for, such as ``trial 7``.
        activity: How far it is, where it goes on.
    """

    state: Literal["began", "goes on", "ended"]
    step: Step[Any]
    title: str
    activity: Activity | None = None


OnEvent = Callable[[Event], None]


@contextmanager
def announced(step: Step[Any], title: str, on_event: OnEvent) -> Iterator[Listener]:
    """Tells of the beginning and the end of a step, and yields what tells how far it is."""
    on_event(Event("began", step, title))
    try:
        yield lambda activity: on_event(Event("goes on", step, title, activity))
    finally:
        on_event(Event("ended", step, title))


class Engine(Protocol):
    """Answers steps, from memory or by doing them.

    Attributes:
        slots: Recipes that it can go on with at a time.
    """

    slots: int

    def describe(self, config: DeviceConfig) -> DeviceProfile:
        """Asks the device what it is, from where steps on it are done.

        Raises:
            ConfigError: If it cannot be reached as configured.
        """

    def submit(self, step: Step[Any], title: str = "") -> Future[Done]:
        """Returns what ``step`` will answer; ``title`` says what it is done for.

        The future raises SearchError as the stage raised it; whatever else goes wrong inside a
        stage becomes ``StageFailed``. Files that cannot be written are not the stage's fault:
        OSError passes through.
        """


def compute(step: Step[Any], store: Store, listener: Listener) -> Done:
    """Does ``step`` in this process and remembers its result.

    Args:
        step: To be done.
        store: Remembers it.
        listener: Told how far it is.

    Raises:
        SearchError: As the stage raised it; whatever else goes wrong inside a stage becomes
            ``StageFailed`` with its cause chained. Files that cannot be written are not the
            stage's fault: OSError passes through.
    """
    run = _load(step)
    started = time.perf_counter()
    try:
        with listening(listener):
            result = run(step, store)
    except Exception as error:
        log.debug("stage %s failed", step.kind, exc_info=True)
        # What its frames hold, such as a loader's processes, would live as long as the error.
        traceback.clear_frames(error.__traceback__)
        if isinstance(error, SearchError | OSError):
            raise
        raise StageFailed(step.kind, one_line(error)) from error
    seconds = time.perf_counter() - started
    store.save(step, result, seconds)
    log.debug("stage %s took %.2f s", step.kind, seconds)
    return Done(result, seconds, reused=False)


def _load(step: Step[Any]) -> Callable[[Step[Any], Store], Any]:
    """Returns the function that does ``step``.

    Raises:
        StageFailed: When it cannot be imported, as a plug-in's may be.
    """
    try:
        function: Callable[[Step[Any], Store], Any] = registry.load(step.runs)
    except Exception as error:
        log.debug("stage %s cannot be imported", step.kind, exc_info=True)
        reason = f"{step.runs} cannot be imported ({one_line(error)}); mend its package here"
        raise StageFailed(step.kind, reason) from error
    return function


def answered(answer: Callable[[], Done]) -> Future[Done]:
    """Calls ``answer`` and returns its outcome."""
    future: Future[Done] = Future()
    try:
        future.set_result(answer())
    except Exception as error:
        future.set_exception(error)
    return future


class StepCache:
    """Answers steps that were done before, or that are being done for somebody else.

    Args:
        store: Remembers finished steps.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._under_way: dict[str, Future[Done]] = {}

    def answer(self, step: Step[Any], start: Callable[[], Future[Done]]) -> Future[Done]:
        """Returns what ``step`` answers; ``start`` begins it where nobody knows and does it."""
        self._under_way = {key: one for key, one in self._under_way.items() if not one.done()}
        shared = self._under_way.get(step.key)
        if shared is not None:
            return _reuse(shared)
        known = self._store.load(step)
        if known is not None:
            return answered(lambda: Done(known.result, known.seconds, reused=True))
        self._under_way[step.key] = begun = start()
        return begun


def _reuse(shared: Future[Done]) -> Future[Done]:
    """Returns a future of the same answer, for which somebody else pays."""
    own: Future[Done] = Future()

    def pass_on(finished: Future[Done]) -> None:
        if finished.cancelled():
            own.cancel()
            return
        error = finished.exception()
        if error is None:
            own.set_result(replace(finished.result(), reused=True))
        else:
            own.set_exception(error)

    shared.add_done_callback(pass_on)
    return own
