"""The device's processor: what it is, and what others take of it."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import platform
from collections.abc import Sequence
from pathlib import Path

from .messages import Message

FLAGS_X86 = {"avx2", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "amx_int8"}
FLAGS_ARM = {"asimd", "asimddp", "asimdhp", "i8mm", "bf16", "sve", "sve2"}
STEAL_COLUMN = 8  # of a processor's line in /proc/stat
LAST_CPU_COLUMN = 36  # of a process's /proc/.../stat behind its name, counted from 0


def share_cpu(pids: Sequence[int]) -> None:
    """Keeps processes of one thread each on the processor that the first of them ran on last.

    Processors of one machine differ in speed for seconds at a time, by what others do on the same
    core: 1.4 times on a rented one. What takes turns on one of them sees the same.
    """
    fields = " ".join(read_lines(Path(f"/proc/{pids[0]}/stat"))).rpartition(")")[2].split()
    if fields:
        place(pids, [int(fields[LAST_CPU_COLUMN])])


def place(pids: Sequence[int], cpus: Sequence[int]) -> None:
    """Lets processes run on these processors, where the system can be told so."""
    if hasattr(os, "sched_setaffinity"):
        with contextlib.suppress(OSError):  # one has died, as the next request to it tells
            for pid in pids:
                os.sched_setaffinity(pid, cpus)


def read_disturbances(
    stat: Path = Path("/proc/stat"),
    groups: Path = Path("/sys/fs/cgroup"),
    memberships: Path = Path("/proc/self/cgroup"),
) -> tuple[int, int]:
    """Reads what others took of the processors in use: steal time, and time throttled.

    Returns:
        Ticks that the hypervisor gave to others, and microseconds that the control group's quota
        held processes back, both since their start; only whether they rise matters.

    Source: proc(5), /proc/stat; Linux documentation, cgroup-v2 ``cpu.stat``.
    """
    wanted = {f"cpu{number}" for number in usable_cpus()}
    throttled = 0
    rows = (line.split() for line in read_lines(stat) if line.startswith("cpu"))
    stolen = sum(int(row[STEAL_COLUMN]) for row in rows if row[0] in wanted)
    for group in control_groups(groups, read_lines(memberships)):
        fields = dict(line.split() for line in read_lines(group / "cpu.stat"))
        nanoseconds = int(fields.get("throttled_time", 0))  # of the first version
        throttled += int(fields.get("throttled_usec", nanoseconds // 1000))
    return stolen, throttled


def usable_cpus() -> list[int]:
    """Numbers of the processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def describe_processor() -> Message:
    """Reads architecture, model and instruction sets of the processor."""
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.exists() else ""
    facts: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        facts.setdefault(key.strip().lower(), value.strip())
    flags = set((facts.get("flags") or facts.get("features") or "").split())
    arch = platform.machine()
    cpu = facts.get("model name") or facts.get("hardware") or platform.processor() or arch
    known = sorted((FLAGS_X86 | FLAGS_ARM) & flags)
    return {"arch": arch, "cpu": cpu, "flags": known, "cpus": usable_cpus()}


def count_usable_cores() -> int:
    """Whole cores that affinity and control-group quota leave, at least one."""
    cores = len(usable_cpus())
    lines = read_lines(Path("/proc/self/cgroup"))
    return max(1, math.floor(min([cores, *read_quotas(Path("/sys/fs/cgroup"), lines)])))


def read_quotas(root: Path, memberships: Sequence[str]) -> list[float]:
    """Reads every processor quota that binds a process, in cores.

    Args:
        root: Where control groups are mounted.
        memberships: Lines ``id:controllers:path`` of ``/proc/self/cgroup``.

    Source: Linux documentation, cgroup-v2 ``cpu.max`` and scheduler/sched-bwc.
    """
    return [quota for group in control_groups(root, memberships) for quota in read_quota(group)]


def control_groups(root: Path, memberships: Sequence[str]) -> list[Path]:
    """Returns the folders of a process's groups that govern processors, and of all above them.

    Some of them may not exist, as inside most containers.
    """
    groups = []
    for line in memberships:
        number, controllers, path = line.split(":", 2)
        if number == "0":
            tops = [root, root / "unified"]
        elif "cpu" in controllers.split(","):
            tops = [root / controllers, root / "cpu"]
        else:
            continue
        parts = Path(path.lstrip("/")).parts
        # What is set for any ancestor binds too.
        depths = range(len(parts) + 1)
        groups += [top.joinpath(*parts[:n]) for top, n in itertools.product(tops, depths)]
    return groups


def read_lines(path: Path) -> list[str]:
    """Reads a file of the kernel's; empty where there is none."""
    return path.read_text().splitlines() if path.exists() else []


def read_quota(group: Path) -> list[float]:
    """Reads one control group's quota in cores; empty when it sets none."""
    try:
        if (group / "cpu.max").exists():
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota = (group / "cpu.cfs_quota_us").read_text().strip()
            period = (group / "cpu.cfs_period_us").read_text().strip()
    except OSError:
        return []  # no such group here, as inside most containers
    return [] if quota in ("max", "-1") else [int(quota) / int(period)]
