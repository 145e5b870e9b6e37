"""Runs a command in a home of its own and tells what it wrote and whom it spoke to.

Libraries written in C look up and open what Python's own functions never see, so the calls of the
command and of all its children to the system are looked at, with strace.
"""

from __future__ import annotations

import functools
import ipaddress
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests import commands

CALLS = "connect,sendto,sendmsg,sendmmsg,open,openat,creat,mkdir,mkdirat,rename,renameat,renameat2"
# Devices, what the kernel tells, what Python compiles, and what fontconfig, a program of the
# machine's own that matplotlib asks for fonts, remembers of them.
NOT_KEPT = re.compile(r"/(dev|proc)/|/__pycache__/|/var/cache/fontconfig/")
CUT, RESUMED = re.compile(r" <unfinished \.\.\.>$"), re.compile(r"<\.\.\. \w+ resumed>")
OPENED = re.compile(r"O_CREAT|O_WRONLY|O_RDWR|^creat")
OPENED_AS = re.compile(r"= \d+<([^>]*)>")
NAMES = re.compile(r'"((?:[^"\\]|\\.)*)"')
ADDRESS = re.compile(r'inet_(?:addr|pton)\((?:AF_INET6, )?"([^"]+)"')
# By which names are looked up without a packet of one's own.
RESOLVER = re.compile(r'sun_path="[^"]*resolve|"/etc/resolv\.conf"')


@dataclass(frozen=True)
class Watched:
    """What a command did.

    Attributes:
        result: Its exit status and what it printed.
        home: Its home, empty before.
        folder: Its working directory.
        calls: What it asked of the system; None where there is no strace.
    """

    result: subprocess.CompletedProcess[str]
    home: Path
    folder: Path
    calls: tuple[str, ...] | None

    def strangers(self) -> list[str]:
        """Returns the calls that reach, or look for, another machine."""
        assert self.calls is not None
        return [call for call in self.calls if RESOLVER.search(call) or _reaches_out(call)]

    def strewn(self) -> list[str]:
        """Returns what was written outside the working directory and the temporary one."""
        assert self.calls is not None
        places = {place for call in self.calls for place in _written(call, self.folder)}
        return sorted(str(place) for place in places if not self._is_allowed(place))

    def _is_allowed(self, place: Path) -> bool:
        if NOT_KEPT.match(str(place)) or "/__pycache__/" in str(place):
            return True
        kept = place.is_relative_to(self.folder)
        passing = place.is_relative_to(tempfile.gettempdir()) and not place.is_relative_to(
            self.home
        )
        return kept or passing


def watched(
    words: Sequence[str], folder: Path, home: Path, timeout_s: float = commands.TIMEOUT_S
) -> Watched:
    """Runs a command in ``folder`` with a home, which is made."""
    home.mkdir()
    trace = home.with_suffix(".trace")
    tracing = [*("strace", "-f", "-qq", "-y", "-s", "4096"), *STRACE, "-o", str(trace)]
    # What tells where things are kept would lead past the home.
    spared = ("XDG_", "MPLCONFIGDIR", "ORT_", "MLFLOW_", "DO_NOT_TRACK", "RAY_")
    inherited = {k: v for k, v in commands.environment().items() if not k.startswith(spared)}
    result = subprocess.run(
        [*(tracing if has_strace() else ()), *words],
        cwd=folder,
        env={**inherited, "HOME": str(home)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    calls = None
    if has_strace():
        with trace.open(errors="surrogateescape") as lines:
            calls = tuple(_whole(lines))
    return Watched(result, home, folder, calls)


STRACE = ("--seccomp-bpf", "-e", f"trace={CALLS}")


@functools.cache
def has_strace() -> bool:
    """Tells whether calls can be looked at here."""
    if shutil.which("strace") is None:
        return False
    tried = ["strace", "-f", "-qq", *STRACE, "-o", "/dev/null", "true"]
    return subprocess.run(tried, capture_output=True, check=False).returncode == 0


def _whole(lines: Iterator[str]) -> Iterator[str]:
    """Yields calls whole that strace tells in two parts, without the process's number."""
    begun: dict[str, str] = {}
    for line in lines:
        process, _, call = line.rstrip("\n").partition(" ")
        call = call.lstrip()
        if CUT.search(call):
            begun[process] = CUT.sub("", call)
        elif RESUMED.match(call):
            yield begun.pop(process, "") + RESUMED.sub("", call)
        else:
            yield call


def _reaches_out(call: str) -> bool:
    return any(not _is_loopback(address) for address in ADDRESS.findall(call))


def _is_loopback(text: str) -> bool:
    address = ipaddress.ip_address(text)
    inner = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (inner or address).is_loopback


def _written(call: str, folder: Path) -> Iterator[Path]:
    """Yields the files and folders that a call made or opened for writing."""
    if " = -1 " in call:
        return
    if call.startswith(("open", "creat")):
        if OPENED.search(call) and (found := OPENED_AS.search(call)):
            yield Path(found[1])
    elif call.startswith(("mkdir", "rename")):
        yield from (folder / name for name in NAMES.findall(call))
