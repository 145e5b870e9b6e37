"""Remembers finished steps on disk by the hash of their inputs.

Layout under ``mlruns/store``: ``files/ab/abcd….onnx`` holds contents by their SHA-256, and
``steps/<kind>/<key>.json`` the result of a step, with a SHA-256 of it. Both are written aside in
``parts``, flushed to disk and renamed, so that a crash leaves either a whole entry or none.
``images`` holds decoded images, which ``search.data`` keeps there.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from search.errors import FileLost
from search.records.files import File
from search.records.steps.step import Step

log = logging.getLogger(__name__)

# A part is written within seconds: an older one was left by a killed process.
LEFT_AFTER_S = 24 * 3600
DIGEST = "sha256"


@dataclass(frozen=True)
class Entry:
    """A remembered result and the seconds that it cost to compute."""

    result: Any
    seconds: float


class Store:
    """Finished steps and the files they made, below one folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.images = root / "images"

    def path(self, file: File) -> Path:
        """Returns where the content of ``file`` lies."""
        return self.root / "files" / file.sha256[:2] / f"{file.sha256}{file.suffix}"

    def put(self, content: bytes, suffix: str) -> File:
        """Keeps ``content`` and returns its name."""
        file = File(hashlib.sha256(content).hexdigest(), suffix, len(content))
        try:
            self.check(file)
        except FileLost:
            self._write_whole(self.path(file), content)
        return file

    def put_parts(self, parts: Iterable[bytes], suffix: str) -> File:
        """Keeps the ``parts`` as one content, which need not fit into memory."""
        digest, size_bytes = hashlib.sha256(), 0
        with self._aside() as stream:
            for part in parts:
                digest.update(part)
                size_bytes += stream.write(part)
            file = File(digest.hexdigest(), suffix, size_bytes)
            _keep(stream, self.path(file))
        return file

    def read(self, file: File) -> bytes:
        """Returns the content of ``file``.

        Raises:
            FileLost: When it is missing, or is not what was kept.
        """
        path = self.path(file)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            raise FileLost(f"{path} is gone") from None
        if hashlib.sha256(content).hexdigest() != file.sha256:
            raise FileLost(f"{path} is damaged")
        return content

    def check(self, file: File) -> None:
        """Does nothing if ``file`` is what was kept, without holding it whole.

        Raises:
            FileLost: When it is missing, or is not what was kept.
        """
        path = self.path(file)
        try:
            with path.open("rb") as stream:
                found = hashlib.file_digest(stream, "sha256").hexdigest()
        except FileNotFoundError:
            raise FileLost(f"{path} is gone") from None
        if found != file.sha256:
            raise FileLost(f"{path} is damaged")

    def load(self, step: Step[Any]) -> Entry | None:
        """Returns what ``step`` answered before, or None.

        A damaged entry, or one whose files are missing or changed, counts as absent: it is
        logged and the step computed again.
        """
        path = self._entry_path(step)
        try:
            saved = json.loads(path.read_bytes())
            if saved.pop(DIGEST, None) != _digest(saved):
                raise ValueError("its content is not what was written")
            result: Any = _adapter(step.result).validate_python(saved["result"])
            seconds = float(saved["seconds"])
            files = [File(**file) for file in saved["files"]]
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            reason = type(error).__name__  # the message of a failed validation has many lines
            log.warning("store entry %s is damaged (%s): computing it again", path, reason)
            return None
        try:
            for file in files:
                self.check(file)
        except FileLost as lost:
            log.warning("%s: computing it again", lost)
            return None
        return Entry(result, seconds)

    def save(self, step: Step[Any], result: Any, seconds: float) -> None:
        """Remembers that ``step`` answered ``result`` after ``seconds``."""
        plain = _adapter(step.result).dump_python(result, mode="json")
        entry: dict[str, Any] = {
            "kind": step.kind,
            "version": step.version,
            "seconds": seconds,
            "files": list(_files_in(plain)),
            "result": plain,
        }
        entry[DIGEST] = _digest(entry)
        self._write_whole(self._entry_path(step), json.dumps(entry).encode())

    def clear_leftovers(self) -> None:
        """Removes what killed processes left half-written."""
        for part in (self.root / "parts").glob("*"):
            with suppress(FileNotFoundError):  # another search clears them too
                if time.time() - part.stat().st_mtime > LEFT_AFTER_S:
                    part.unlink()

    def _entry_path(self, step: Step[Any]) -> Path:
        return self.root / "steps" / step.kind / f"{step.key}.json"

    def _write_whole(self, path: Path, content: bytes) -> None:
        with self._aside() as stream:
            stream.write(content)
            _keep(stream, path)

    @contextmanager
    def _aside(self) -> Iterator[Any]:
        """Opens a file that is gone at the end unless it was kept under its name."""
        parts = self.root / "parts"
        parts.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=parts, delete=False) as stream:
            try:
                yield stream
            except BaseException:
                Path(stream.name).unlink(missing_ok=True)
                raise


def _keep(stream: Any, path: Path) -> None:
    """Has the disk keep a file that was written aside, under its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stream.flush()
    os.fsync(stream.fileno())
    Path(stream.name).replace(path)
    flush_folder(path.parent)  # or a power cut may take back the name


def flush_folder(folder: Path) -> None:
    """Has the disk keep a folder's names."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _digest(entry: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest()


@cache
def _adapter(result: Any) -> TypeAdapter[Any]:
    return TypeAdapter(result)  # takes milliseconds to make


def _files_in(value: Any) -> Any:
    """Yields every dumped ``File`` inside a JSON value."""
    if isinstance(value, dict):
        if value.keys() == {"sha256", "suffix", "size_bytes"}:
            yield value
        else:
            for item in value.values():
                yield from _files_in(item)
    elif isinstance(value, list):
        for item in value:
            yield from _files_in(item)
