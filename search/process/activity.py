"""How far the work of this process is, told to whoever listens."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import SupportsFloat

LEAST_S = 0.5  # between two tellings, so that telling costs nothing


@dataclass(frozen=True)
class Activity:
    """How far a piece of work is.

    Attributes:
        done: Units that are done.
        total: Units of the whole; 0 where nobody knows.
        unit: What is counted, such as ``step``.
        loss: Of the training, where it is one.
        what: What goes on, where the step's own name does not say it.
    """

    done: int = 0
    total: int = 0
    unit: str = "step"
    loss: float | None = None
    what: str = ""


Listener = Callable[[Activity], None]

_listener: Listener | None = None
_told_s = 0.0


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Has ``listener`` told of this process's work; an outer listener is not told meanwhile."""
    global _listener
    before, _listener = _listener, listener
    try:
        yield
    finally:
        _listener = before


def tell(
    unit: str, done: int, total: int, loss: SupportsFloat | None = None, what: str = ""
) -> None:
    """Tells the listener, if there is one, and if the last time was a while ago.

    Args:
        unit: What is counted, such as ``step``.
        done: Units that are done.
        total: Units of the whole; 0 where nobody knows.
        loss: Of the training; read only where it is told, because reading waits for a GPU.
        what: What goes on, where the step's own name does not say it.
    """
    global _told_s
    now = time.monotonic()
    if _listener is None or now - _told_s < LEAST_S:
        return
    _told_s = now
    _listener(Activity(done, total, unit, None if loss is None else float(loss), what))
