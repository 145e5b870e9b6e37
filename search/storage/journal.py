"""A study's file, held by one process at a time."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import zlib
from collections.abc import Generator
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import IO, Any, Self

from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

from search.errors import StudyNotReady
from search.storage import Damaged

# What every line says of itself, beside what Optuna wrote.
LINE, SUM = "line", "crc32"
log = logging.getLogger(__name__)


class Journal(AbstractContextManager["Journal"]):
    """A study's file, held by one process at a time.

    Args:
        folder: Where studies are kept; the journal is ``<name>.journal`` in it.
        name: The study's name.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.path = folder / f"{name}.journal"
        self._lock_path = folder / f"{name}.lock"
        self._lock: IO[str] | None = None

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = self._hold()
        self._lock.truncate(0)
        self._lock.write(str(os.getpid()))
        self._lock.flush()
        self._drop_torn_line()
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            if not self.path.exists():  # refused before it was begun
                self._lock_path.unlink(missing_ok=True)
            self._lock.close()

    def _hold(self) -> IO[str]:
        """Opens the lock file and takes its lock.

        Raises:
            StudyNotReady: When another process has it; names that process.
        """
        while True:
            lock = self._lock_path.open("a+")
            try:
                # Not flock, which forked processes, such as a data loader's, would hold on to.
                fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.seek(0)
                holder = lock.read().strip() or "unknown"
                lock.close()
                raise StudyNotReady(
                    f"study.name={self.path.stem} is being searched by process {holder}; wait for "
                    "it, stop it, or choose another study.name"
                ) from None
            with suppress(FileNotFoundError):
                if os.path.samestat(self._lock_path.stat(), os.fstat(lock.fileno())):
                    return lock
            lock.close()  # its last holder removed it in the meantime

    @property
    def where(self) -> str:
        """Names the file in messages."""
        return str(self.path)

    def exists(self) -> bool:
        """Tells whether the study was ever begun."""
        return self.path.exists()

    def storage(self) -> JournalStorage:
        """Opens the journal for Optuna.

        Raises:
            Damaged: When its last line is none, which Optuna notices only when another follows.
        """
        _check_last_line(self.path)
        return JournalStorage(_WholeLines(str(self.path), _AlreadyHeld(str(self.path))))

    def _drop_torn_line(self) -> None:
        """Cuts off a last line that a killed process left half written."""
        if not self.path.exists():
            return
        with self.path.open("rb+") as stream:
            content = stream.read()
            whole = content.rfind(b"\n") + 1
            if whole < len(content):
                log.warning("dropping a half-written line at the end of %s", self.path)
                stream.truncate(whole)


class Journals:
    """The journals of a folder.

    Args:
        folder: Where studies are kept; it need not exist.
    """

    arguments = ""  # the default of all command lines

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def of(self, name: str) -> Journal:
        """Returns the journal of a study, which need not exist."""
        return Journal(self._folder, name)

    def names(self) -> list[str]:
        """Returns the names of the studies that are there, sorted."""
        return sorted(path.stem for path in self._folder.glob("*.journal"))


class _WholeLines(JournalFileBackend):
    """Optuna's file, in which a write that fails leaves nothing, and a line that is lost is missed.

    Half a line, which a full disk may leave, would spoil whatever is written behind it. A line that
    is gone would have every later trial take the number of another one: so lines have numbers, and
    a sum of what is in them. Lines of earlier versions have neither, and are read as they are.
    """

    def __init__(self, path: str, lock: JournalFileOpenLock) -> None:
        super().__init__(path, lock)
        self._path = Path(path)
        self._counted = 0, 0  # lines in so many bytes

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Writes all of ``logs`` or none."""
        before_bytes = self._path.stat().st_size
        lines, in_bytes = self._counted
        if in_bytes != before_bytes:
            lines = self._path.read_bytes().count(b"\n")
        numbered = [{**log, LINE: n} for n, log in enumerate(logs, start=lines + 1)]
        try:
            super().append_logs([{**log, SUM: _sum_of(log)} for log in numbered])
        except OSError:
            with suppress(OSError):
                os.truncate(self._path, before_bytes)
            raise
        self._counted = lines + len(logs), self._path.stat().st_size

    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any], None, None]:
        """Yields what was written, from one line on.

        Raises:
            Damaged: When a line is lost, stands twice or was changed.
        """
        found = super().read_logs(log_number_from)
        for number, log in enumerate(found, start=log_number_from + 1):
            kept = log.pop(SUM, None)
            if kept is not None:
                _check(log, kept, number)
            yield log


def _check_last_line(path: Path) -> None:
    lines = path.read_bytes().split(b"\n") if path.exists() else []
    if len(lines) < 2 or lines[-1]:  # somebody may be writing it
        return
    try:
        json.loads(lines[-2])
    except ValueError:
        raise Damaged(f"line {len(lines) - 1} was changed") from None


def _check(log: dict[str, Any], kept: object, number: int) -> None:
    if kept != _sum_of(log):
        raise Damaged(f"line {number} was changed")
    written = log.pop(LINE)
    if written > number:
        lost = "line" if written == number + 1 else f"{written - number} lines"
        raise Damaged(f"the {lost} before line {number} got lost")
    if written < number:
        raise Damaged(f"line {number} does not belong there")


def _sum_of(log: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(log).encode())


class _AlreadyHeld(JournalFileOpenLock):
    """Optuna's lock of the journal: nothing to do, the whole study is held by this process.

    Optuna's own lock files outlive a killed process and make the next one wait.
    """

    def acquire(self) -> bool:
        """Succeeds."""
        return True

    def release(self) -> None:
        """Does nothing."""
