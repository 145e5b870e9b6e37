"""A machine with a running agent, whatever way leads to it."""

from __future__ import annotations

import json
import logging
import signal
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from search.devices.agent.messages import SCHEMA
from search.devices.agent.supervisor import EXPIRED
from search.devices.archive import NAME, archive
from search.devices.replies import LONGEST_BYTES, LONGEST_WORD, Denied, read_reply
from search.devices.transport import TooSlow, Transport
from search.errors import ConfigError, DeviceLost, SearchError, StageFailed, printable

log = logging.getLogger(__name__)


class AgentKilled(StageFailed):
    """The agent or a process of it was killed, by somebody or because memory ran out there."""

    def as_loss(self, meanwhile: str) -> DeviceLost:
        """Returns the error that ends a command when it happened a second time.

        Args:
            meanwhile: What was done when it was killed.
        """
        remedy = "see that nobody ends its processes and that memory is free there"
        reason = f"the device's agent was killed twice while {meanwhile} ({self.reason})"
        return DeviceLost(f"{reason}; {remedy}")


class AgentExpired(AgentKilled):
    """The agent freed the device, because this program asked nothing or was stopped."""


class LoginRefused(ConfigError):  # noqa: N818 - named by what happened
    """The device lets nobody in with this configuration, or not yet: it may be starting."""


class Device:
    """A machine with a running agent, between entering and leaving its context.

    The agent runs in a process group of its own, so that one kill ends it and everything that it
    started, whatever state they are in.

    Args:
        transport: Leads there.
        timeout_s: Seconds that the agent may take to start.
    """

    def __init__(self, transport: Transport, timeout_s: float) -> None:
        self._group: int | None = None
        self._transport, self._timeout_s = transport, timeout_s
        self._is_running = False

    def __enter__(self) -> Self:
        """Starts the agent.

        Raises:
            StageFailed: If it does not start, or speaks another version.
            ConfigError: If the device cannot be reached as configured.
            DeviceLost: If no server answers, or the connection broke.
        """
        # Profiles of a run that is killed half-way go with this folder.
        self._folder = tempfile.TemporaryDirectory(prefix="benchmark-", ignore_cleanup_errors=True)
        try:
            self._transport.open()
            program = Path(self._folder.name, NAME)
            program.write_bytes(archive())
            self._group = self._transport.start(self._transport.put(program))
            self._is_running = True
            hello = self.ask({"request": "hello"}, self._timeout_s)
            _check_schema(hello)
            self._group = hello.get("pid", self._group)
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
        """Number there of the group that the agent and its children live in."""
        assert self._group is not None, "the agent is started first"
        return self._group

    def deliver(self, path: Path) -> str:
        """Brings a file to the device unless it is there, and returns its path there.

        Raises:
            ConfigError: If it cannot be written there.
            StageFailed: If the copy is not the same.
            DeviceLost: If the connection broke.
        """
        return self._transport.put(path)

    def ask(self, request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        """Sends one request and waits for its answer; ``search.devices.agent`` lists both.

        Raises:
            StageFailed: If the agent refuses, dies or does not answer in ``timeout_s`` seconds;
                in the latter two cases it is killed with all that it started.
            DeviceLost: If the connection broke.
        """
        if not self._is_running:
            raise StageFailed("measure", f"the agent has ended before {request['request']!r}")
        try:
            line = self._transport.exchange(json.dumps(request).encode() + b"\n", timeout_s)
        except TooSlow:
            self._end()
            raise _too_slow(request) from None
        if not line.endswith(b"\n"):
            status = self._end()
            if len(line) >= LONGEST_BYTES:
                raise _too_long(request)
            raise self._died(request, status)
        try:
            return read_reply(line, request)
        except Denied as error:
            raise self._denied(error) from None
        except StageFailed:
            self._end()
            raise

    def close(self) -> None:
        """Ends the agent and disconnects; harmless when repeated."""
        try:
            if self._is_running:
                self._end()
        except SearchError as error:
            # What was asked for has been answered, or its own error says more.
            log.warning("the agent on the device was not ended properly: %s", error)
        finally:
            self._transport.close()
            self._folder.cleanup()

    def _end(self) -> int | None:
        self._is_running = False
        return self._transport.kill(self._group)

    def _died(self, request: dict[str, Any], status: int | None) -> StageFailed:
        reason = f"the agent died with status {status} at {request['request']!r}{self._hint()}"
        if status == EXPIRED:
            why = "it frees the device when this program stands still"
            return AgentExpired("measure", f"{reason} ({why})")
        is_killed = status in (-signal.SIGKILL, -signal.SIGTERM)
        return AgentKilled("measure", reason) if is_killed else StageFailed("measure", reason)

    def _denied(self, refusal: Denied) -> StageFailed:
        if refusal.kind == "Killed":
            return AgentKilled("measure", str(refusal))
        hint = self._hint() if refusal.kind == "Died" else ""
        return StageFailed("measure", f"{refusal}{hint}")

    def _hint(self) -> str:
        return format_hint(self._transport.last_words())


def format_hint(errors: bytes) -> str:
    """Returns the last line written to standard error, to be put behind a reason."""
    lines = errors.decode(errors="replace").strip().splitlines()
    return f": {printable(lines[-1].strip(), LONGEST_WORD)}" if lines else ""


def _check_schema(hello: dict[str, Any]) -> None:
    if hello["schema"] != SCHEMA:
        reason = f"the agent speaks version {hello['schema']}, need {SCHEMA}; update it"
        raise StageFailed("measure", reason)


def _too_slow(request: dict[str, Any]) -> StageFailed:
    return StageFailed(
        "measure",
        f"no answer to {request['request']!r} in time; the model hangs or is too slow for "
        "device.timeout_s: raise it, or narrow the search",
    )


def _too_long(request: dict[str, Any]) -> StageFailed:
    reason = f"the answer to {request['request']!r} is longer than any agent's; is it one?"
    return StageFailed("measure", reason)
