"""Keeps the whole log of a run in a file; what the terminal shows of it is decided elsewhere."""

from __future__ import annotations

import logging
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from search import __version__
from search.errors import hide_password, hide_passwords, one_line

log = logging.getLogger(__name__)

PROJECT = "search"
FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class Discreet(logging.Formatter):
    """Hides passwords, whoever wrote the message."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns a record as text."""
        return hide_passwords(super().format(record))


class RunLog(logging.Handler):
    """Writes all records of the project, and the warnings of others, into a file.

    What is logged before ``begin`` waits in memory, and is forgotten if the run is refused.

    Args:
        path: Of the file; what earlier runs wrote stays.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(logging.DEBUG)
        self.setFormatter(Discreet(FORMAT))
        self._path = path
        self._early: list[bytes] = []
        self._file: IO[bytes] | None = None
        self._level_before = logging.NOTSET

    def __enter__(self) -> Self:
        """Begins to note what is logged."""
        project = logging.getLogger(PROJECT)
        self._level_before = project.level
        project.setLevel(logging.DEBUG)
        logging.getLogger().addHandler(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        _: TracebackType | None,
    ) -> None:
        """Notes what ended the run, if anything did, and closes the file."""
        if error is not None:
            log.debug("this run ended early", exc_info=error)
        logging.getLogger().removeHandler(self)
        logging.getLogger(PROJECT).setLevel(self._level_before)
        self.close()
        if self._file is not None:
            self._file.close()

    def begin(self) -> None:
        """Opens the file and writes the command, and what was logged until now.

        Raises:
            OSError: When the file cannot be written.
        """
        self._path.parent.mkdir(parents=True, exist_ok=True)
        command = shlex.join(map(hide_password, sys.orig_argv))
        began = time.strftime("%Y-%m-%d %H:%M:%S %z")
        head = f"\n==== {began}, version {__version__}: {command}\n"
        self.acquire()
        try:
            # Without a buffer: where the disk is full nothing is left that closing would write.
            self._file = self._path.open("ab", buffering=0)
            self._file.write(_encoded(head) + b"".join(self._early))
            self._early.clear()
        finally:
            self.release()

    def emit(self, record: logging.LogRecord) -> None:
        """Writes a record; gives up, and says so, where that is not possible any more."""
        try:
            line = _encoded(f"{self.format(record)}\n")
            if self._file is None:
                self._early.append(line)
            else:
                self._file.write(line)
        except OSError as error:
            logging.getLogger().removeHandler(self)
            log.warning("%s lacks the rest of this run (%s)", self._path, one_line(error))
        except Exception:  # a message that does not fit its arguments
            self.handleError(record)


@contextmanager
def logging_kept() -> Iterator[None]:
    """Undoes what the code within does to logging: a program's settings would silence the search.

    These are the root logger's handlers and level, the level of the project's, ``logging.disable``,
    and which loggers are disabled: ``dictConfig`` disables all that there are.
    """
    root, project = logging.getLogger(), logging.getLogger(PROJECT)
    handlers, levels, threshold = (
        root.handlers[:],
        (root.level, project.level),
        root.manager.disable,
    )
    mute = _mute_loggers()
    try:
        yield
    finally:
        logging.disable(threshold)
        root.handlers[:] = handlers
        root.setLevel(levels[0])
        project.setLevel(levels[1])
        for logger in _mute_loggers() - mute:
            logger.disabled = False


def _mute_loggers() -> set[logging.Logger]:
    root = logging.getLogger()
    known = (root, *tuple(root.manager.loggerDict.values()))
    return {one for one in known if isinstance(one, logging.Logger) and one.disabled}


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")
