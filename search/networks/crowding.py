"""Has torch work with one thread while others keep the cores busy.

Threads that share an operator's work wait for one another at its end. Where other processes take
turns on the same cores they wait for whole time slices: a step took 3 to 70 times as long as with
one thread, which waits for nobody (docs/LOG.md, "Training on a busy machine").
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

log = logging.getLogger(__name__)

LOOK_S = 1.0
# Seconds that this process's threads waited for a core, for each second: idle 0.01, with one of
# two cores busy 0.7, with both 1.0.
CROWDED = 0.25
FIRST_PAUSE_S, LONGEST_PAUSE_S = 5.0, 60.0
TASKS = Path("/proc/self/task")


def read_waited_s() -> float:
    """Returns how many seconds the threads of this process waited for a core; 0 if untold.

    Source: Linux documentation, scheduler statistics, /proc/<pid>/schedstat.
    """
    waited_ns = 0
    for task in TASKS.glob("*/schedstat"):
        try:
            waited_ns += int(task.read_text().split()[1])
        except (OSError, IndexError):  # it has ended, or the kernel does not count
            continue
    return waited_ns / 1e9


@contextmanager
def adapting(
    clock: Callable[[], float] = time.monotonic, waited_s: Callable[[], float] = read_waited_s
) -> Iterator[Callable[[], None]]:
    """Yields a function to be called between steps, which sets the number of torch's threads.

    Afterwards it is what it was before.

    Args:
        clock: Seconds that only rise.
        waited_s: Seconds that threads of this process waited for a core so far.
    """
    threads = torch.get_num_threads()
    if threads == 1:
        yield lambda: None
        return
    try:
        yield _Crowd(threads, clock, waited_s).look
    finally:
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)


class _Crowd:
    """Looks every second with all threads; where it is crowded, only after ever longer pauses."""

    def __init__(
        self, threads: int, clock: Callable[[], float], waited_s: Callable[[], float]
    ) -> None:
        self._threads, self._clock, self._waited_s = threads, clock, waited_s
        self._pause_s = FIRST_PAUSE_S
        self._is_alone = False
        self._begin()

    def _begin(self) -> None:
        self._since, self._before_s = self._clock(), self._waited_s()
        self._due = self._since + LOOK_S

    def look(self) -> None:
        now = self._clock()
        if now < self._due:
            return
        if self._is_alone:
            self._is_alone = False
            torch.set_num_threads(self._threads)
        elif (self._waited_s() - self._before_s) / (now - self._since) > CROWDED:
            log.debug("others keep the cores busy: one thread for %g s", self._pause_s)
            self._is_alone = True
            torch.set_num_threads(1)
            self._due, self._pause_s = now + self._pause_s, min(2 * self._pause_s, LONGEST_PAUSE_S)
            return
        else:
            self._pause_s = FIRST_PAUSE_S
        self._begin()
