"""Reaches a device and its agent; knows processes and time-outs, not what is measured."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Protocol, Self, TypeVar

from search.benchmark import agent
from search.benchmark.replies import LONGEST_BYTES, LONGEST_WORD, Denied, read_reply
from search.config import DeviceConfig, LocalDeviceConfig, SshDeviceConfig
from search.errors import ConfigError, DeviceLost, StageFailed, printable
from search.records import DeviceProfile

T = TypeVar("T")
log = logging.getLogger(__name__)

AGENT = Path(agent.__file__)
DESCRIBE_TIMEOUT_S = 60.0
FAREWELL_S = 1.0
QUEUE_POLL_S, LONG_WAIT_S = 5.0, 60.0
# Between two tries to connect again: the first pause, and the longest of those that follow.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 20.0
MOST_BREAKS = 3
# The device frees itself after so many time-outs without a request: files that it lacks are sent
# in between, at this rate at least.
HOLDS, SLOWEST_BYTES_PER_S = 2, 100_000
LAST_WORDS_BYTES = 1 << 14


class AgentKilled(StageFailed):
    """The agent or a process of it was killed, by somebody or because memory ran out there."""


class AgentExpired(AgentKilled):
    """The agent freed the device, because this program asked nothing or was stopped."""


class LoginRefused(ConfigError):  # noqa: N818 - named by what happened
    """The device lets nobody in with this configuration, or not yet: it may be starting."""


class Device(Protocol):
    """A machine with a running agent, between entering and leaving its context."""

    def __enter__(self) -> Self:
        """Starts the agent.

        Raises:
            StageFailed: If it does not start, or speaks another version.
            ConfigError: If the device cannot be reached as configured.
        """

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Ends the agent and all that it started."""

    def deliver(self, path: Path) -> str:
        """Brings a file to the device unless it is there, and returns its path there."""

    def ask(self, request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        """Sends one request and waits for its answer; see ``agent.py`` for both.

        Raises:
            StageFailed: If the agent refuses, dies or does not answer in ``timeout_s`` seconds;
                in the latter two cases it is killed with all that it started.
            DeviceLost: If the connection broke.
        """


def open_device(config: DeviceConfig, timeout_s: float) -> Device:
    """Returns the configured device, to be entered; its agent may take ``timeout_s`` to start.

    Raises:
        ConfigError: If it needs a package that is not installed.
    """
    if isinstance(config, LocalDeviceConfig):
        return LocalDevice(timeout_s)
    try:
        from search.benchmark.ssh import SshDevice  # asyncssh is an extra, and slow to import
    except ModuleNotFoundError as error:
        if error.name != "asyncssh":
            raise
        reason = "device=ssh needs the package asyncssh: pip install 'cnn-search[ssh]'"
        raise ConfigError(reason) from error
    return SshDevice(config, timeout_s)


def hold(device: Device, timeout_s: float) -> None:
    """Waits until nobody else measures or trains on the device, and keeps it until it is left.

    Being busy is no failure: two studies queue instead of disturbing each other.

    Args:
        device: Entered.
        timeout_s: Seconds without a request after which the device frees itself, whatever became
            of this process.
    """
    begun, told, warned = time.monotonic(), False, False
    request = {"request": "lock", "wait_s": QUEUE_POLL_S, "hold_s": timeout_s + FAREWELL_S}
    while True:
        reply = device.ask(request, QUEUE_POLL_S + DESCRIBE_TIMEOUT_S)
        if reply["held"]:
            return
        if not told:
            log.info("the device is busy (%s there): waiting for it", reply["holder"])
            told = True
        elif not warned and time.monotonic() - begun > LONG_WAIT_S:
            log.warning(
                "the device has been busy for %d s (%s there); continue or end that process if it "
                "does nothing any more",
                LONG_WAIT_S,
                reply["holder"],
            )
            warned = True


def on_device(config: DeviceConfig, work: Callable[[Device], T], size_bytes: int = 0) -> T:
    """Does work on the device, which nobody else uses meanwhile.

    It is begun anew where the connection breaks, once where the agent is killed, and each time that
    this program was stopped for so long that the agent freed the device.

    Args:
        config: The device.
        work: Is called with the device, entered and held.
        size_bytes: Of the files that are brought to it.

    Raises:
        DeviceLost: If the device stays away for ``device.retry_s``, or the connection breaks again
            and again.
        SearchError: As the device or ``work`` raised it.
    """
    hold_s = HOLDS * config.timeout_s + size_bytes / SLOWEST_BYTES_PER_S
    retry_s = config.retry_s if isinstance(config, SshDeviceConfig) else 0.0
    patience = Patience(retry_s, has_admitted=config in _admitting)
    was_killed = False
    while True:
        try:
            with open_device(config, config.timeout_s) as device:
                hold(device, hold_s)
                patience.reached()
                _admitting.add(config)
                return work(device)
        except AgentExpired as error:
            log.warning("%s; measuring anew", error)
        except AgentKilled as error:
            if was_killed:
                raise
            was_killed = True
            log.warning("%s; trying again", error)
        except (DeviceLost, LoginRefused) as error:
            patience.wait(error)


# Devices that let this process in before: one that then refuses is about to restart, or has just.
_admitting: set[DeviceConfig] = set()


class Patience:
    """How long a device that went away is waited for, counted anew whenever it was reached.

    Args:
        retry_s: Seconds without reaching it after which it is given up.
        has_admitted: Whether it let this program in before.
        clock: Seconds that only rise.
        sleep: Waits so many seconds.
    """

    def __init__(
        self,
        retry_s: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        has_admitted: bool = False,
    ) -> None:
        self._retry_s, self._clock, self._sleep = retry_s, clock, sleep
        self._has_admitted = has_admitted
        self._pause_s = FIRST_PAUSE_S
        self._gone_since: float | None = None
        self._breaks = 0

    def reached(self) -> None:
        """Notes that the device is there."""
        self._gone_since, self._pause_s = None, FIRST_PAUSE_S

    def wait(self, error: DeviceLost | LoginRefused) -> None:
        """Waits before the next try, or raises ``error`` where there is none."""
        now = self._clock()
        if self._gone_since is None:
            self._gone_since = now
            self._breaks += 1
        # One that breaks each time it is asked for this work does so because of the work.
        tired = self._breaks > MOST_BREAKS or now - self._gone_since >= self._retry_s
        # Before it has let anybody in, a refusal says that it never will.
        is_first = now == self._gone_since and not self._has_admitted
        if tired or (is_first and isinstance(error, LoginRefused)):
            raise error
        log.warning("%s; trying again in %g s", error, self._pause_s)
        self._sleep(min(self._pause_s, self._gone_since + self._retry_s - now))
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)


class LocalDevice:
    """This machine. Use as a context manager: at its end no process is left.

    The agent runs in a process group of its own, so that one kill ends it and everything it
    started, whatever state they are in.

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
            check_schema(self.ask({"request": "hello"}, self._timeout_s))
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

    def deliver(self, path: Path) -> str:
        """Returns the path itself, absolute."""
        return str(path.absolute())

    def ask(self, request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        """Sends one request and waits for its answer; see ``Device``."""
        deadline = time.monotonic() + timeout_s
        stdin, stdout = self._pipes()
        try:
            stdin.write(json.dumps(request).encode() + b"\n")
            stdin.flush()
        except (OSError, ValueError):
            raise self._died(request) from None
        line = self._read_line(stdout, request, deadline)
        try:
            return read_reply(line, request)
        except Denied as error:
            raise denied(error, self._last_error) from None
        except StageFailed:
            self.close()
            raise

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
                    raise too_slow(request)
                chunk = os.read(stdout.fileno(), 1 << 16)
                if not chunk:
                    raise self._died(request)
                self._buffer += chunk
                if len(self._buffer) > LONGEST_BYTES:
                    self.close()
                    raise too_long(request)
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _died(self, request: dict[str, Any]) -> StageFailed:
        hint = "" if self._errors.closed else self._last_error()
        self.close()
        return died(request, self._process.returncode, hint)

    def _last_error(self) -> str:
        """What the agent or a child last wrote to standard error, to be put behind a reason."""
        size = self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, size - LAST_WORDS_BYTES))
        return format_hint(self._errors.read())


def denied(refusal: Denied, last_error: Callable[[], str]) -> StageFailed:
    """What to raise when the agent refuses.

    Args:
        refusal: Its words.
        last_error: Gives the hint behind the reason when a process there died.
    """
    if refusal.kind == "Killed":
        return AgentKilled("measure", str(refusal))
    hint = last_error() if refusal.kind == "Died" else ""
    return StageFailed("measure", f"{refusal}{hint}")


def check_schema(hello: dict[str, Any]) -> None:
    """Compares versions.

    Raises:
        StageFailed: If the agent that said ``hello`` speaks another version.
    """
    if hello["schema"] != agent.SCHEMA:
        reason = f"the agent speaks version {hello['schema']}, need {agent.SCHEMA}; update it"
        raise StageFailed("measure", reason)


def too_slow(request: dict[str, Any]) -> StageFailed:
    """What to raise when the time for an answer is over."""
    return StageFailed(
        "measure",
        f"no answer to {request['request']!r} in time; the model hangs or is too slow for "
        "device.timeout_s: raise it, or narrow the search",
    )


def too_long(request: dict[str, Any]) -> StageFailed:
    """What to raise when an answer does not end."""
    reason = f"the answer to {request['request']!r} is longer than any agent's; is it one?"
    return StageFailed("measure", reason)


def died(request: dict[str, Any], status: int | None, hint: str) -> StageFailed:
    """What to raise when the agent is no more."""
    reason = f"the agent died with status {status} at {request['request']!r}{hint}"
    if status == agent.EXPIRED:
        why = "it frees the device when this program stands still"
        return AgentExpired("measure", f"{reason} ({why})")
    is_killed = status in (-signal.SIGKILL, -signal.SIGTERM)
    return AgentKilled("measure", reason) if is_killed else StageFailed("measure", reason)


def format_hint(errors: bytes) -> str:
    """The last line written to standard error, to be put behind a reason."""
    lines = errors.decode(errors="replace").strip().splitlines()
    return f": {printable(lines[-1].strip(), LONGEST_WORD)}" if lines else ""


def describe_device(config: DeviceConfig) -> DeviceProfile:
    """Asks the device what it is.

    Raises:
        ConfigError: If it cannot be reached as configured.
        StageFailed: If its agent does not answer.
    """
    try:
        with open_device(config, DESCRIBE_TIMEOUT_S) as device:
            facts = device.ask({"request": "describe"}, DESCRIBE_TIMEOUT_S)
    except DeviceLost as error:  # before anything is begun the configuration is the suspect
        raise ConfigError(str(error)) from error
    return make_profile(device_name(config), facts)


def device_name(config: DeviceConfig) -> str:
    """Returns what the device is called in figures and messages."""
    return config.name if isinstance(config, LocalDeviceConfig) else f"{config.host}:{config.port}"


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
