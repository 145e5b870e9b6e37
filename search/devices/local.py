"""This machine as a device."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from search.devices.replies import LONGEST_BYTES
from search.devices.transport import FAREWELL_S, LAST_WORDS_BYTES, TooSlow
from search.errors import StageFailed


class LocalTransport:
    """Runs the agent in a process of this machine.

    Args:
        command: Starts the program, whose path is added; others than the default are for tests.
    """

    def __init__(self, command: tuple[str, ...] = (sys.executable,)) -> None:
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None
        self._buffer = b""

    def open(self) -> None:
        """Prepares for what the program writes to standard error."""
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the device

    def put(self, path: Path) -> str:
        """Returns the path itself, absolute."""
        return str(path.absolute())

    def start(self, program: str) -> int:
        """Starts the program, which keeps what it needs for a moment beside itself.

        Raises:
            StageFailed: If no process can be started.
        """
        self._buffer = b""
        try:
            self._process = subprocess.Popen(
                [*self._command, program],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                env={**os.environ, "TMPDIR": str(Path(program).parent)},
                start_new_session=True,
            )
        except OSError as error:
            raise StageFailed("measure", f"no process can be started ({error})") from error
        return self._process.pid

    def exchange(self, line: bytes, timeout_s: float) -> bytes:
        """Sends a line and reads one; see ``Transport``."""
        process = self._running()
        assert process.stdin is not None
        assert process.stdout is not None
        deadline = time.monotonic() + timeout_s
        with contextlib.suppress(OSError):  # it has ended: what there is to read tells why
            process.stdin.write(line)
            process.stdin.flush()
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._buffer and len(self._buffer) < LONGEST_BYTES:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise TooSlow
                chunk = os.read(process.stdout.fileno(), 1 << 16)
                if not chunk:
                    break
                self._buffer += chunk
        answer, end, self._buffer = self._buffer.partition(b"\n")
        return answer + end

    def kill(self, group: int | None) -> int | None:
        """Ends the group; see ``Transport``."""
        process, self._process = self._running(), None
        assert process.stdin is not None
        assert process.stdout is not None
        # Closing flushes: there may be a request that nobody reads any more.
        with contextlib.suppress(OSError):
            process.stdin.close()
        _wait_unreaped(process.pid)
        # Before the wait: while its leader is not waited for, the group's number stays taken.
        os.killpg(process.pid, signal.SIGKILL)
        status = process.wait()
        process.stdout.close()
        return status

    def last_words(self) -> bytes:
        """Returns the end of what the program and its children wrote to standard error."""
        size = self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, size - LAST_WORDS_BYTES))
        return self._errors.read()

    def close(self) -> None:
        """Frees what is left."""
        self._errors.close()

    def _running(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "a program is started first"
        return self._process


def _wait_unreaped(process: int) -> None:
    """Gives the agent a moment to end its children itself, and to read their exit statuses."""
    deadline = time.monotonic() + FAREWELL_S
    flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
    while time.monotonic() < deadline:
        if os.waitid(os.P_PID, process, flags) is not None:
            return
        time.sleep(0.005)
