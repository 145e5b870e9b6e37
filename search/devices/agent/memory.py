"""The memory of a process, and limiting it."""

from __future__ import annotations

import re
import resource
import sys
from pathlib import Path

from .messages import Refused

OUT_OF_MEMORY = re.compile("bad.?alloc|MemoryError|failed to allocate", re.IGNORECASE)


def peak_rss_bytes() -> int:
    """Peak resident memory of this process, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    # Only second choice: on Linux it starts from the memory of the process that forked this one.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def limit_memory(limit_bytes: int, threads: int) -> None:
    """Lets this process take ``limit_bytes`` beyond what it has, stacks of its threads apart.

    Raises:
        Refused: Where the system has no such limit.

    Source: setrlimit(2), RLIMIT_DATA since Linux 4.7.
    """
    if sys.platform != "linux":
        raise Refused("Unsupported", "device.memory_limit_bytes needs Linux on the device")
    status = Path("/proc/self/status").read_text().splitlines()
    data = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmData:"))
    stack = resource.getrlimit(resource.RLIMIT_STACK)[0]
    stacks = threads * (8 << 20 if stack == resource.RLIM_INFINITY else stack)
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    soft = data + limit_bytes + stacks
    if hard != resource.RLIM_INFINITY:
        soft = min(soft, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def lift_memory_limit() -> None:
    """Ends the limit, for what no deployed model does: other batches, a second session."""
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))
