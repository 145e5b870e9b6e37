"""Reaches a device through its ssh server.

Files go to ``config.folder`` there under the name of their content, and stay.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import secrets
import shlex
import threading
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import asyncssh

from search.config.device import SshDeviceConfig
from search.devices.device import format_hint
from search.devices.login import connect, name_target, shell_command
from search.devices.replies import LONGEST_BYTES
from search.devices.transport import LAST_WORDS_BYTES, SLOWEST_BYTES_PER_S, TooSlow
from search.errors import ConfigError, DeviceLost, SearchError, StageFailed, one_line

THREAD = "ssh device"
FAREWELL_S = 2.0
# Longer than the keep-alives take to find that the network is dead, which says more.
KILL_S = 20.0
TOO_OLD = 3
# A time-out that is noticed so late says that this program was stopped, as by Ctrl-Z.
STOOD_STILL_S = 1.0
# Programs are fixed, and what varies is an argument: nothing is ever read as code.
CHECK = (
    f"import os, sys; sys.version_info < (3, 10) and sys.exit({TOO_OLD}); "
    "os.environ['ORT_DISABLE_TELEMETRY'] = '1'; import numpy, onnxruntime"
)
HASH = """import hashlib, sys; sha = hashlib.sha256(); file = open(sys.argv[1], "rb")
while part := file.read(1 << 20): sha.update(part)
print(sha.hexdigest())"""
KILL = "import os, signal, sys; os.killpg(int(sys.argv[1]), signal.SIGKILL)"

T = TypeVar("T")
Process = asyncssh.SSHClientProcess[bytes]
log = logging.getLogger(__name__)


class SshTransport:
    """Runs the agent on another machine.

    It leads a process group of its own there, and ends with its input, so that not even a broken
    connection leaves it behind.

    Args:
        config: Which machine, and how to log in.
        timeout_s: Seconds that each step of the start may take.
    """

    def __init__(self, config: SshDeviceConfig, timeout_s: float) -> None:
        self._config = config
        self._timeout_s = timeout_s
        self._target = name_target(config)
        self._delivered: dict[str, str] = {}
        self._connection: asyncssh.SSHClientConnection | None = None
        self._process: Process | None = None
        self._errors = b""

    def open(self) -> None:
        """Logs in, and looks for what the agent needs; see ``Transport``."""
        self._loop = _Loop()
        self._call(self._log_in())
        self._call(self._in_time(self._open_folder(), "opens no folder"))
        self._call(self._check_python())

    def put(self, path: Path) -> str:
        """Sends a file unless its content is there already, and returns its path there.

        Raises:
            ConfigError: If ``config.folder`` cannot be written.
            StageFailed: If the copy is not the same.
            DeviceLost: If the connection broke.
        """
        content = path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        name = digest + path.suffix
        if name not in self._delivered:
            timeout_s = self._timeout_s + len(content) / SLOWEST_BYTES_PER_S
            self._delivered[name] = self._call(
                self._in_time(self._bring(content, digest, name), "takes no files", timeout_s)
            )
        return self._delivered[name]

    def start(self, program: str) -> None:
        """Starts the program, which tells its group itself."""
        self._call(self._start_agent(program))

    def exchange(self, line: bytes, timeout_s: float) -> bytes:
        """Sends a line and reads one; see ``Transport``."""
        assert self._process is not None, "a program is started first"
        return self._call(_exchange(self._process, line, timeout_s))

    def kill(self, group: int | None) -> int | None:
        """Ends the group; see ``Transport``."""
        return self._call(self._end_agent(group))

    def last_words(self) -> bytes:
        """Returns the end of what the agent wrote to standard error."""
        return self._errors

    def close(self) -> None:
        """Disconnects; see ``Transport``."""
        try:
            self._call(self._leave())
        except SearchError as error:
            # What was asked for has been answered, or its own error says more.
            log.warning("the connection to %s was not closed properly: %s", self._target, error)
        finally:
            self._loop.stop()

    @property
    def _python(self) -> str:
        return self._config.python.removeprefix("~/")  # commands start at home

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        """Waits for work on the connection, and gives its errors the names of this project."""
        try:
            return self._loop.call(work)
        except (asyncssh.SFTPConnectionLost, asyncssh.SFTPNoConnection) as error:
            raise self._lost(error) from error
        except asyncssh.SFTPError as error:
            reason = f"{self._target} cannot keep files in {self._config.folder} ({error.reason})"
            raise ConfigError(f"{reason}; correct device.folder or make room there") from error
        except (asyncssh.DisconnectError, asyncssh.ChannelOpenError, OSError) as error:
            raise self._lost(error) from error

    def _lost(self, error: Exception) -> DeviceLost:
        return DeviceLost(
            f"the connection to {self._target} broke ({one_line(error)}); "
            "see that the device is on and the network up"
        )

    # ---- what follows runs in the loop's thread

    async def _log_in(self) -> None:
        self._connection = connection = await connect(self._config, self._timeout_s)
        try:
            self._sftp = await self._in_time(_start_sftp(connection), "starts no SFTP")
        except asyncssh.ChannelOpenError as error:
            if connection.is_closed():
                raise
            reason = f"{self._target} offers no SFTP ({one_line(error)}); have sshd_config say "
            reason += "Subsystem sftp internal-sftp there, or install the device's sftp-server"
            raise ConfigError(reason) from error

    async def _in_time(
        self, work: Coroutine[Any, Any, T], what: str, timeout_s: float | None = None
    ) -> T:
        """Waits for a server that may answer its keep-alives and nothing else."""
        allowed_s = timeout_s or self._timeout_s
        try:
            return await _within(allowed_s, work)
        except TooSlow:
            reason = f"{self._target} {what} in {allowed_s:g} s; is it overloaded?"
            raise StageFailed("measure", reason) from None

    async def _open_folder(self) -> None:
        folder = self._config.folder.removeprefix("~/") or "."  # SFTP starts at home
        await self._sftp.makedirs(folder, asyncssh.SFTPAttrs(permissions=0o700), exist_ok=True)
        self._folder = await self._sftp.realpath(folder)

    async def _check_python(self) -> None:
        python = self._python
        found = await self._run(python, "-c", CHECK)
        if found.status == 0:
            return
        why = format_hint(found.errors).removeprefix(": ") or f"status {found.status}"
        if found.status == TOO_OLD:
            why = "it is older than 3.10"
        if "ImportError" not in why and "ModuleNotFoundError" not in why:
            raise ConfigError(
                f"{python} on {self._target} is no Python for the agent ({why}); set device.python "
                "to a Python 3.10 or newer there, with numpy and onnxruntime"
            )
        install = [python, "-m", "pip", "install", "numpy", "onnxruntime"]
        raise ConfigError(
            f"{python} on {self._target} needs numpy and onnxruntime ({why}); install them: "
            f"{shell_command(self._config, *install)} (where pip refuses: in a virtual "
            "environment there, and set device.python to its bin/python)"
        )

    async def _start_agent(self, path: str) -> None:
        # In the shell's place: its status is then the agent's own.
        command = "exec " + shlex.join([self._python, path, "--own-group"])
        self._process = await self._reach().create_process(
            command,
            encoding=None,
            request_pty=False,
            window=LONGEST_BYTES,  # what is read of an answer that does not end
        )
        self._drain = asyncio.create_task(self._keep_last_words(self._process))

    async def _keep_last_words(self, process: Process) -> None:
        """Reads standard error all the time: an agent whose pipe is full would stand still."""
        # Whoever reads the answers meets the same error.
        with contextlib.suppress(asyncssh.Error, OSError):
            while chunk := await process.stderr.read(LAST_WORDS_BYTES):
                self._errors = (self._errors + chunk)[-LAST_WORDS_BYTES:]

    async def _bring(self, content: bytes, digest: str, name: str) -> str:
        """Puts a file in its place; a torn upload or a changed file never has that name long."""
        path = f"{self._folder}/{name}"
        if await self._sftp.isfile(path) and await self._holds(path, digest):
            return path
        part = f"{path}.part-{secrets.token_hex(8)}"
        try:
            async with self._sftp.open(part, "wb") as file:
                await file.write(content)
            if not await self._holds(part, digest):
                reason = f"{name} did not arrive whole on {self._target}; is its disk full?"
                raise StageFailed("measure", reason)
            await self._sftp.posix_rename(part, path)
        except BaseException:
            # The first error says more than a failure to clean up.
            with contextlib.suppress(asyncssh.Error, OSError, TooSlow):
                await _within(FAREWELL_S, self._sftp.remove(part))
            raise
        return path

    async def _holds(self, path: str, digest: str) -> bool:
        """Has the device hash a file: cheaper than sending it."""
        found = await self._run(self._python, "-c", HASH, path)
        return found.status == 0 and found.output.split()[-1:] == [digest.encode()]

    async def _run(self, *words: str) -> _Ended:
        """Runs a command to its end."""
        try:
            return await _within(self._timeout_s, self._execute(words))
        except TooSlow:
            reason = f"{self._target} does not run {words[0]} in time; is it overloaded?"
            raise StageFailed("measure", reason) from None

    async def _execute(self, words: tuple[str, ...]) -> _Ended:
        process: Process = await self._reach().create_process(
            shlex.join(words), stdin=asyncssh.DEVNULL, encoding=None
        )
        try:
            output, errors = await asyncio.gather(
                _last_words(process.stdout), _last_words(process.stderr)
            )
            await process.wait_closed()
        finally:
            process.close()
        return _Ended(process.returncode, output, errors)

    async def _end_agent(self, group: int | None) -> int | None:
        """Ends the agent, and tells its end from the connection's.

        Returns:
            Its exit status, as far as it is known.

        Raises:
            ConnectionLost: If the connection broke.
        """
        status = await self._end_processes(group)
        # When the server closes it, the agent's channel seems to end by itself just before.
        with contextlib.suppress(TooSlow):
            await _within(0.1, self._reach().wait_closed())
            raise asyncssh.ConnectionLost("Connection lost")
        return status

    async def _end_processes(self, group: int | None) -> int | None:
        """Ends the agent and its children: asks first, kills what does not end."""
        process, self._process = self._process, None
        if process is None:
            return None
        with contextlib.suppress(OSError):  # closed already
            process.stdin.write_eof()
        try:
            await _within(FAREWELL_S, process.wait_closed())
        except TooSlow:
            await self._kill_group(group)
            process.close()
        await asyncio.wait([self._drain], timeout=FAREWELL_S)
        return process.returncode

    async def _kill_group(self, group: int | None) -> None:
        if group is None:
            return  # it has not said hello: nothing was asked of it
        words = (self._python, "-c", KILL, str(group))
        try:
            await _within(KILL_S, self._execute(words))
        except TooSlow:
            raise asyncssh.ConnectionLost("no answer") from None

    async def _leave(self) -> None:
        connection = self._connection
        if connection is None:
            return
        connection.close()
        try:
            await _within(FAREWELL_S, connection.wait_closed())
        except TooSlow:
            connection.abort()
        self._connection = None

    def _reach(self) -> asyncssh.SSHClientConnection:
        if self._connection is None:
            raise asyncssh.ConnectionLost("not connected")
        return self._connection


@dataclass(frozen=True)
class _Ended:
    """A command's status, and the last it wrote."""

    status: int | None
    output: bytes
    errors: bytes


async def _start_sftp(connection: asyncssh.SSHClientConnection) -> asyncssh.SFTPClient:
    return await connection.start_sftp_client()


async def _last_words(stream: asyncssh.SSHReader[bytes]) -> bytes:
    """Reads to the end and keeps only the last, for there may be much."""
    kept = b""
    while chunk := await stream.read(LAST_WORDS_BYTES):
        kept = (kept + chunk)[-LAST_WORDS_BYTES:]
    return kept


async def _within(timeout_s: float, work: Coroutine[Any, Any, T]) -> T:
    """Waits so long for work and no longer; anew where this program was stopped meanwhile.

    What the work waits for may have come in that time, and is only seen after the time-out.

    Raises:
        TooSlow: If it took longer.
    """
    loop, task = asyncio.get_running_loop(), asyncio.ensure_future(work)
    try:
        while True:
            deadline_s = loop.time() + timeout_s
            await asyncio.wait([task], timeout=timeout_s)
            if task.done():
                return task.result()
            if loop.time() - deadline_s < STOOD_STILL_S:
                raise TooSlow
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _exchange(process: Process, line: bytes, timeout_s: float) -> bytes:
    """Sends a line and returns the answer's, which lacks its end if the agent ended."""
    # A closed pipe: what there is to read tells why.
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(line)
    return await _within(timeout_s, process.stdout.readline())


class _Loop:
    """An event loop in a thread of its own, for callers that know of none."""

    def __init__(self) -> None:
        self._ready = threading.Event()
        # A daemon: a look-up of a name that never ends must not keep the program.
        self._thread = threading.Thread(
            target=asyncio.run, args=(self._serve(),), name=THREAD, daemon=True
        )
        self._thread.start()
        self._ready.wait()

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Waits for work in the loop; ends it when the caller is interrupted."""
        if not self._thread.is_alive():
            work.close()
            raise asyncssh.ConnectionLost("not connected")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def stop(self) -> None:
        """Ends the loop and all work in it; harmless when repeated."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._end.set)
            self._thread.join(FAREWELL_S)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._end = asyncio.Event()
        self._ready.set()
        await self._end.wait()
