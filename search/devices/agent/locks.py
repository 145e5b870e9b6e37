"""Locks by which all who measure and train on a device take turns."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path

from .processor import read_lines

# One for all users, because they share the processor. Whoever measures queues for the first file
# and holds both; whoever trains shares the second, and lets go of it while somebody queues.
# Containers that share a machine see each other's locks only in a folder that they share.
LOCKS = Path(os.environ.get("CNN_SEARCH_LOCKS", "/tmp"))
QUEUE_LOCK, DEVICE_LOCK = LOCKS / "cnn-search-queue.lock", LOCKS / "cnn-search-device.lock"
LOCK_POLL_S, LOOK_AROUND_S = 0.02, 1.0


def open_lock(path: Path) -> int:
    """Opens the file that stands for the device, whoever made it."""
    flags = os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags | os.O_RDWR, 0o644)
    except PermissionError:
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with contextlib.suppress(PermissionError):  # somebody else's, who has done it
        os.fchmod(descriptor, 0o644)  # whatever the mask: other users must be able to queue
    return descriptor


def lock_until(
    descriptor: int, deadline: float, do_without: Callable[[int], bool] = lambda holder: False
) -> bool:
    """Takes the lock, unless somebody has it until the monotonic clock says ``deadline``.

    Args:
        descriptor: Of the lock's file.
        deadline: When to give up.
        do_without: Tells of a holder's process whether nobody need wait for it; where all are
            such, what the lock stands for is had without it.
    """
    look = time.monotonic()
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            now = time.monotonic()
            if now >= look:
                look = now + LOOK_AROUND_S
                holders = find_holders(descriptor)
                if holders and all(map(do_without, holders)):
                    return True
            if now >= deadline:
                return False
            time.sleep(LOCK_POLL_S)
        else:
            return True


def find_holders(descriptor: int, locks: Path = Path("/proc/locks")) -> list[int]:
    """Identifiers of the processes that hold the lock of a file, as far as they can be seen.

    Source: proc(5), /proc/locks.
    """
    status = os.fstat(descriptor)
    device = [os.major(status.st_dev), os.minor(status.st_dev)]
    rows = (line.split() for line in read_lines(locks))
    # Such as "1: FLOCK ADVISORY WRITE 708 00:13:10 0 EOF"; who waits has an arrow before FLOCK.
    held = [(row[5].split(":"), int(row[4])) for row in rows if row[1] == "FLOCK"]
    alike = [(place, who) for place, who in held if int(place[2]) == status.st_ino]
    here = {who for place, who in alike if [int(part, 16) for part in place[:2]] == device}
    # Some file systems, as those in layers, have another device there than programs are told.
    found = here or {who for _, who in alike}
    return sorted(found - {os.getpid(), 0, -1})


def is_stopped(process: int) -> bool:
    """Tells whether a process stands still because of a signal, such as Ctrl-Z sends.

    Source: proc(5), /proc/pid/stat.
    """
    try:
        stat = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] == "T"


def describe_holders(descriptor: int) -> str:
    """Names who holds the lock of a file; empty where that cannot be seen."""
    holders = find_holders(descriptor)
    return ", ".join(f"process {n}{' (stopped)' if is_stopped(n) else ''}" for n in holders)
