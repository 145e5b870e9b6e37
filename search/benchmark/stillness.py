"""Keeps work on this machine still while somebody measures here; knows nothing of either."""

from __future__ import annotations

import fcntl
import os
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Self

from search.benchmark.agent import DEVICE_LOCK, QUEUE_LOCK, open_lock


class Stillness(AbstractContextManager["Stillness"]):
    """Held by work that would disturb a measurement, of any process and any user here.

    Work shares the device with other work. Whoever measures queues and gets the device to itself
    as soon as all work has called ``give_way``, which then waits until the measuring is over.
    """

    def __enter__(self) -> Self:
        """Waits while somebody measures."""
        self._queue, self._device = open_lock(QUEUE_LOCK), open_lock(DEVICE_LOCK)
        self._share()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Ends the work's claim."""
        # Not left to the closing: processes forked in the meantime hold the file open too.
        fcntl.flock(self._device, fcntl.LOCK_UN)
        os.close(self._queue)
        os.close(self._device)

    def give_way(self) -> None:
        """Waits while somebody measures; costs a few microseconds when nobody does."""
        fcntl.flock(self._device, fcntl.LOCK_UN)
        self._share()

    def _share(self) -> None:
        # Through the queue first: a lock that is shared anew at once would never become free.
        fcntl.flock(self._queue, fcntl.LOCK_SH)
        fcntl.flock(self._queue, fcntl.LOCK_UN)
        fcntl.flock(self._device, fcntl.LOCK_SH)
