"""Clocks that runs are timed by."""

from __future__ import annotations

import time
from collections.abc import Callable

PROCESSOR, WALL = "processor", "wall"
FINE_NS, TICKS = 20_000, 5  # a clock of processor time that is read off ticks is no use
# Of this process alone, which has one thread at work where this one is used: what others take of
# the processor does not count.
CLOCKS: dict[str, Callable[[], int]] = {
    PROCESSOR: time.process_time_ns,
    WALL: time.perf_counter_ns,
}


def is_fine(clock: Callable[[], int] = time.process_time_ns) -> bool:
    """Tells whether a clock of nanoseconds shows times as short as a piece.

    Where processor time is counted in ticks, as some containers do, it stands still in between.
    """
    steps: list[int] = []
    last = clock()
    while len(steps) < TICKS:
        now = clock()
        if now > last:
            steps.append(now - last)
            last = now
    return min(steps) <= FINE_NS
