"""Reaches a device and its agent; knows processes and time-outs, not what is measured.

The local device runs the agent in a process group of its own, so that one kill ends it and
everything it started, whatever state they are in.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from search.benchmark import agent
from search.errors import StageFailed
from search.records import DeviceProfile

AGENT = Path(agent.__file__)
DESCRIBE_TIMEOUT_S = 60.0
FAREWELL_S = 1.0


class LocalDevice:
    """This machine. Use as a context manager: at its end no process is left.

    Args:
        timeout_s: Seconds that the agent may take to start.
        command: Starts the agent; another one than the default is for tests.
    """

    def __init__(self, timeout_s: float, command: tuple[str, ...] | None = None) -> None:
        self._timeout_s = timeout_s
        self._command = command or (sys.executable, str(AGENT))

    def __enter__(self) -> Self:
        """Starts the agent.

        Raises:
            StageFailed: If it does not start, or speaks another version.
        """
        # Profiles of a run that is killed half-way go with this folder.
        self._folder = tempfile.TemporaryDirectory(prefix="benchmark-", ignore_cleanup_errors=True)
        self._errors = tempfile.TemporaryFile()
        try:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                env={**os.environ, "TMPDIR": self._folder.name},
                start_new_session=True,
            )
        except OSError as error:
            raise StageFailed("measure", f"no process can be started ({error})") from error
        self._buffer = b""
        try:
            schema = self.ask({"request": "hello"}, self._timeout_s)["schema"]
            if schema != agent.SCHEMA:
                reason = f"the agent speaks version {schema}, need {agent.SCHEMA}; update it"
                raise StageFailed("measure", reason)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Ends the agent and all that it started."""
        self.close()

    @property
    def process_group(self) -> int:
        """Identifier of the group that the agent and its children live in."""
        return self._process.pid

    def ask(self, request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        """Sends one request and waits for its answer; see ``agent.py`` for both.

        Raises:
            StageFailed: If the agent refuses, dies or does not answer in ``timeout_s`` seconds;
                in the latter two cases the whole group is killed.
        """
        deadline = time.monotonic() + timeout_s
        stdin, stdout = self._pipes()
        try:
            stdin.write(json.dumps(request).encode() + b"\n")
            stdin.flush()
        except (OSError, ValueError):
            raise self._died(request) from None
        line = self._read_line(stdout, request, deadline)
        try:
            reply: dict[str, Any] = json.loads(line)
        except ValueError:
            self.close()
            reason = f"the agent's answer to {request['request']!r} is no JSON: {line[:80]!r}"
            raise StageFailed("measure", reason) from None
        if not reply.pop("ok"):
            hint = self._last_error() if reply["kind"] == "Died" else ""
            raise StageFailed("measure", f"{reply['error']} ({reply['kind']}){hint}")
        return reply

    def close(self) -> None:
        """Ends the group, kindly and then not, and frees what is left; harmless when repeated."""
        stdin, stdout = self._pipes()
        # Closing flushes: there may be a request that nobody reads any more.
        with contextlib.suppress(BrokenPipeError):
            stdin.close()
        if self._process.returncode is None:
            self._wait_unreaped()
            # Before the wait: while its leader is not waited for, the group's number stays taken.
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        stdout.close()
        self._errors.close()
        self._folder.cleanup()

    def _wait_unreaped(self) -> None:
        """Gives the agent a moment to end its children itself, which also buries them."""
        deadline = time.monotonic() + FAREWELL_S
        flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
        while time.monotonic() < deadline:
            if os.waitid(os.P_PID, self._process.pid, flags) is not None:
                return
            time.sleep(0.005)

    def _pipes(self) -> tuple[IO[bytes], IO[bytes]]:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        return stdin, stdout

    def _read_line(self, stdout: IO[bytes], request: dict[str, Any], deadline: float) -> bytes:
        with selectors.DefaultSelector() as selector:
            selector.register(stdout, selectors.EVENT_READ)
            while b"\n" not in self._buffer:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    self.close()
                    raise StageFailed(
                        "measure",
                        f"no answer to {request['request']!r} in time; the model hangs or is too "
                        "slow for device.timeout_s: raise it, or narrow the search",
                    )
                chunk = os.read(stdout.fileno(), 1 << 16)
                if not chunk:
                    raise self._died(request)
                self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _died(self, request: dict[str, Any]) -> StageFailed:
        hint = "" if self._errors.closed else self._last_error()
        self.close()
        status = self._process.returncode
        reason = f"the agent died with status {status} at {request['request']!r}{hint}"
        return StageFailed("measure", reason)

    def _last_error(self) -> str:
        """What the agent or a child last wrote to standard error, to be put behind a reason."""
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return f": {lines[-1].strip()}" if lines else ""


def describe_device(name: str) -> DeviceProfile:
    """Asks the device of ``device.name=name`` what it is.

    Raises:
        StageFailed: If its agent does not answer.
    """
    with LocalDevice(DESCRIBE_TIMEOUT_S) as device:
        facts = device.ask({"request": "describe"}, DESCRIBE_TIMEOUT_S)
    return make_profile(name, facts)


def make_profile(name: str, facts: dict[str, Any]) -> DeviceProfile:
    """Draws the conclusions that stages need from an agent's description of its device."""
    flags = frozenset(facts["flags"])
    return DeviceProfile(
        name=name,
        cpu=facts["cpu"],
        arch=facts["arch"],
        flags=tuple(sorted(flags)),
        usable_cores=facts["usable_cores"],
        runtime=f"onnxruntime {facts['onnxruntime']}",
        # Channels beside a multiple of the vector's width cost time and compute nothing.
        round_to=16 if "avx512f" in flags else 8,
        int8_format=_int8_format(facts["arch"], flags),
    )


def _int8_format(arch: str, flags: frozenset[str]) -> Any:
    if arch.lower() not in ("x86_64", "amd64", "i386", "i686"):
        return "s8s8"
    # Without VNNI the sum of two u8*s8 products overflows 16 bits unless weights keep to 7 bits.
    return "u8s8" if flags & {"avx512_vnni", "avx_vnni"} else "u8s8_reduced"
