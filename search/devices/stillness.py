"""Keeps work on this machine still while somebody measures here."""

from __future__ import annotations

import fcntl
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from search.devices.agent.locks import (
    DEVICE_LOCK,
    LOOK_AROUND_S,
    QUEUE_LOCK,
    describe_holders,
    find_holders,
    is_stopped,
    open_lock,
)

POLL_S = 0.05
LONG_WAIT_S = 60.0

log = logging.getLogger(__name__)


class _Claim(threading.local):
    """A thread's claim; a claim within a claim is the same one, or the two could wait in turn."""

    depth = 0
    queue = -1
    device = -1


_claim = _Claim()


@contextmanager
def working(is_urgent: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Claims a share of this machine for work that would disturb a measurement.

    Work of all processes and users shares it. Whoever measures queues, and gets the machine alone
    as soon as all work has called ``give_way``, which then waits until the measuring is over.

    Args:
        is_urgent: Asked while waiting; once it says so, the work is done whoever measures.
    """
    if _claim.depth == 0:
        _claim.queue, _claim.device = open_lock(QUEUE_LOCK), open_lock(DEVICE_LOCK)
    _claim.depth += 1
    try:
        if _claim.depth == 1:
            _share(is_urgent)
        yield
    finally:
        _claim.depth -= 1
        if _claim.depth == 0:
            # Not left to the closing: processes forked in the meantime hold the file open too.
            fcntl.flock(_claim.device, fcntl.LOCK_UN)
            os.close(_claim.queue)
            os.close(_claim.device)


def give_way() -> None:
    """Waits while somebody measures; costs a few microseconds when nobody does.

    After a minute it is told who; whoever was stopped is not waited for.
    """
    fcntl.flock(_claim.device, fcntl.LOCK_UN)
    _share()


def _share(is_urgent: Callable[[], bool] = lambda: False) -> None:
    # Through the queue first: a lock that is shared anew at once would never become free.
    _lock(_claim.queue, is_urgent)
    fcntl.flock(_claim.queue, fcntl.LOCK_UN)
    _lock(_claim.device, is_urgent)


def _lock(descriptor: int, is_urgent: Callable[[], bool]) -> None:
    """Takes a share of a lock, or does without where it is urgent or its holder was stopped."""
    begun = look = time.monotonic()
    warned = False
    while not is_urgent():
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            now = time.monotonic()
        if now >= look:
            look = now + LOOK_AROUND_S
            holders = find_holders(descriptor)
            if holders and all(map(is_stopped, holders)):
                return  # whose clock stands still as well
            if not warned and now - begun > LONG_WAIT_S:
                warned = True
                log.warning(
                    "work has waited for %d s for %s, which measures on this machine",
                    LONG_WAIT_S,
                    describe_holders(descriptor) or "a process that cannot be seen from here",
                )
        time.sleep(POLL_S)
