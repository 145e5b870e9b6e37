"""Writes a bundle whole or not at all, and has it check itself."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from search.bundle.predict import FILES, SUMS
from search.engine.store import flush_folder
from search.errors import ConfigError, SearchError

VERIFY_TIMEOUT_S = 120.0


def write(target: Path, contents: Mapping[str, bytes]) -> bool:
    """Writes a bundle, lets it verify itself in a fresh process, and only then names it.

    Args:
        target: Its folder, or a link to it; an older bundle there is replaced.
        contents: Of every file but ``SHA256SUMS``, by name.

    Returns:
        Whether it is new; False if this very bundle stood there already.

    Raises:
        ConfigError: When something else is there already, or the folder cannot be written.
        SearchError: When the bundle does not verify; it is not left behind.
    """
    sums = "".join(f"{hashlib.sha256(contents[n]).hexdigest()}  {n}\n" for n in sorted(contents))
    try:
        place = target.resolve()
        place.parent.mkdir(parents=True, exist_ok=True)
        with _alone(place.parent):
            return _write(target, place, {**contents, SUMS: sums.encode()})
    except (OSError, RuntimeError) as error:  # before Python 3.13 the latter for links in a circle
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(
            f"out={target}: cannot be written ({reason}); give a folder that can"
        ) from error


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Waits until no other process writes a bundle into ``folder``."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX)
        yield
    finally:
        os.close(opened)


def _write(target: Path, place: Path, contents: Mapping[str, bytes]) -> bool:
    aside = place.parent / f".{place.name}.bundle-old"
    if aside.exists() and not place.exists():  # a process was killed between its two renames
        aside.rename(place)
    if place.exists():
        _refuse_strangers(target)
    _clear(place, aside)
    # Compared before anything of it is run: its sums and its program may have been changed.
    if _is_same(place, contents) and not _faults(place):
        return False
    part = Path(tempfile.mkdtemp(dir=place.parent, prefix=_prefix(place)))
    try:
        for name, content in contents.items():
            _write_through(part / name, content)
        part.chmod(0o755)
        flush_folder(part)
        faults = _faults(part)
        if faults:
            raise SearchError(f"the bundle does not verify, and was not kept: {faults}")
        _swap(part, place, aside)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return True


def _prefix(place: Path) -> str:
    return f".{place.name}.bundle-part-"


def _clear(place: Path, aside: Path) -> None:
    """Clears what processes left that were killed."""
    beside = list(place.parent.iterdir()) if place.parent.is_dir() else []
    for path in beside:
        if path == aside or path.name.startswith(_prefix(place)):
            shutil.rmtree(path)


def _swap(part: Path, place: Path, aside: Path) -> None:
    """Puts the new bundle in the place of the old one; at any moment one of them is whole."""
    if place.exists():
        place.rename(aside)
    try:
        part.rename(place)
    except BaseException:
        if aside.exists():
            aside.rename(place)
        raise
    flush_folder(place.parent)
    shutil.rmtree(aside, ignore_errors=True)  # what is left of it is cleared the next time


def _refuse_strangers(target: Path) -> None:
    """Refuses what is not provably a bundle: its sums list a bundle's files and nothing else."""
    remedy = "give a folder that is empty or not there yet"
    if not target.is_dir():
        raise ConfigError(f"out={target}: is no folder; {remedy}")
    there = list(target.iterdir())
    for path in sorted(there):
        is_file = path.name in {*FILES, SUMS} and path.is_file()
        if not is_file and path.name != "__pycache__":
            raise ConfigError(
                f"out={target}: holds {path.name}, which is no part of a bundle; {remedy}"
            )
    if there and _summed(target) != sorted(FILES):
        raise ConfigError(f"out={target}: holds files, but no whole bundle; {remedy}")


def _summed(target: Path) -> list[str]:
    try:
        lines = (target / SUMS).read_text("utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    return sorted(line.partition("  ")[2] for line in lines)


def _is_same(target: Path, contents: Mapping[str, bytes]) -> bool:
    return all(
        (target / name).is_file() and (target / name).read_bytes() == content
        for name, content in contents.items()
    )


def _write_through(path: Path, content: bytes) -> None:
    with path.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def _faults(folder: Path) -> str:
    """Has a bundle verify itself; returns what it complains of, or nothing."""
    try:
        found = subprocess.run(
            [sys.executable, "-I", "-B", "predict.py", "--verify"],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=VERIFY_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise SearchError(
            f"the bundle took longer than {VERIFY_TIMEOUT_S:g} s to verify itself, and was not "
            "written; when the machine is less busy, pick again"
        ) from error
    lines = [line.removeprefix("error: ") for line in found.stderr.splitlines() if line.strip()]
    return "" if found.returncode == 0 else "; ".join(lines[-3:]) or f"status {found.returncode}"
