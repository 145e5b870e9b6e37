"""Ends a process, whatever threads and children the user's code left running in it."""

from __future__ import annotations

import atexit
import os
import sys
import threading
import traceback
from collections.abc import Callable
from multiprocessing import util
from typing import NoReturn

FAILURE = 1
CLEAR_UP_S = 10.0


def leave_after(work: Callable[[], int]) -> NoReturn:
    """Runs a command to its end, and ends the process with the status that it returns.

    Python itself would first wait for every thread that is no daemon, and a user's factory may
    have started one that never ends. What exits by itself, as after a mistyped flag, does so as
    ever.
    """
    try:
        status = work()
    except Exception:  # a fault of ours: shown as Python shows it
        traceback.print_exc()
        status = FAILURE
    leave(status, atexit._run_exitfuncs)


def leave_worker(status: int) -> NoReturn:
    """Ends a process that ``multiprocessing`` started."""
    leave(status, util._exit_function)  # type: ignore[attr-defined]  # as its own processes do


def leave(status: int, clear_up: Callable[[], object]) -> NoReturn:
    """Ends this process.

    Args:
        status: Its exit status.
        clear_up: What Python would call; given up after ``CLEAR_UP_S``, as it may wait for a
            thread or a child that never ends.
    """
    clearing = threading.Thread(target=clear_up, name="clearing up", daemon=True)
    clearing.start()
    clearing.join(CLEAR_UP_S)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # nobody reads it any more, or its disk is full
            status = status or FAILURE
    os._exit(status)
