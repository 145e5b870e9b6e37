"""What this machine has for this process."""

from __future__ import annotations

import os
import resource
from pathlib import Path


def usable_memory_bytes() -> int:
    """Returns the memory of this machine, or what this process or its control group may use of it.

    Source:
        Linux documentation, cgroup-v2 ``memory.max``.
    """
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    own, _ = resource.getrlimit(resource.RLIMIT_DATA)
    if own != resource.RLIM_INFINITY:
        limits.append(own)
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
    except OSError:  # another version, or none
        limit = "max"
    if limit.isdigit():
        limits.append(int(limit))
    return min(limits)
