"""What another kind of device has to write: reaching the files and processes of a machine."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, runtime_checkable

# The device frees itself after so many time-outs without a request: files that it lacks are sent
# in between, at this rate at least.
HOLDS, SLOWEST_BYTES_PER_S = 2, 100_000
LAST_WORDS_BYTES = 1 << 14
FAREWELL_S = 1.0  # in which the agent may end its children itself


class TooSlow(Exception):  # noqa: N818 - named by what happened
    """Work took too long; not a ``TimeoutError``, which a socket may raise as well."""


@runtime_checkable
class Transport(Protocol):
    """Reaches one machine, on which it runs one program at a time.

    Every method may raise ``DeviceLost`` where the connection broke.
    """

    def open(self) -> None:
        """Connects.

        Raises:
            ConfigError: If the machine cannot be reached as configured, or lacks what it needs.
            StageFailed: If it does not answer in time.
        """

    def put(self, path: Path) -> str:
        """Brings a file there unless its content is there already, and returns its path there."""

    def start(self, program: str) -> int | None:
        """Has Python run a program there, whose input and output are connected to this one.

        Returns:
            Number of the process group that it leads, where that is known at once.
        """

    def exchange(self, line: bytes, timeout_s: float) -> bytes:
        """Sends a line to the program and returns the line that it answers.

        Returns:
            What there is of it where the program has ended, or where there is no end to it.

        Raises:
            TooSlow: If no line came in ``timeout_s`` seconds.
        """

    def kill(self, group: int | None) -> int | None:
        """Ends the program, kindly and then not, and all of its group.

        Returns:
            Its exit status, as far as it is known.
        """

    def last_words(self) -> bytes:
        """Returns the end of what the program wrote to standard error."""

    def close(self) -> None:
        """Disconnects; harmless when repeated."""
