"""Writes a bundle whole or not at all, and has it check itself; knows not what is in it."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from search.bundle.predict import FILES, SUMS
from search.errors import ConfigError, SearchError

VERIFY_TIMEOUT_S = 120.0


def write(target: Path, contents: Mapping[str, bytes]) -> bool:
    """Writes a bundle, lets it verify itself in a fresh process, and only then names it.

    Args:
        target: Its folder; an older bundle there is replaced.
        contents: Of every file but ``SHA256SUMS``, by name.

    Returns:
        Whether it is new; False if this very bundle stood there already.

    Raises:
        ConfigError: When something else is there already.
        SearchError: When the bundle does not verify; it is not left behind.
    """
    sums = "".join(f"{hashlib.sha256(contents[n]).hexdigest()}  {n}\n" for n in sorted(contents))
    if target.exists():
        _refuse_strangers(target)
        same = (target / SUMS).is_file() and (target / SUMS).read_bytes() == sums.encode()
        if same and not _faults(target):
            return False
    target.parent.mkdir(parents=True, exist_ok=True)
    for left in target.parent.glob(f".{target.name}.part-*"):  # by a process that was killed
        shutil.rmtree(left)
    part = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.part-"))
    try:
        for name, content in {**contents, SUMS: sums.encode()}.items():
            _write_through(part / name, content)
        part.chmod(0o755)
        faults = _faults(part)
        if faults:
            raise SearchError(f"the bundle does not verify, and was not kept: {faults}")
        if target.exists():
            shutil.rmtree(target)
        part.rename(target)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return True


def _refuse_strangers(target: Path) -> None:
    there = {path.name for path in target.iterdir()} if target.is_dir() else {target.name}
    strangers = sorted(there - {*FILES, SUMS, "__pycache__"})
    if strangers:
        raise ConfigError(
            f"out={target}: holds {strangers[0]}, which is no part of a bundle; give a folder "
            "that is empty or not there yet"
        )


def _write_through(path: Path, content: bytes) -> None:
    with path.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def _faults(folder: Path) -> str:
    """Has a bundle verify itself; returns what it complains of, or nothing."""
    found = subprocess.run(
        [sys.executable, "-I", "-B", "predict.py", "--verify"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=VERIFY_TIMEOUT_S,
        check=False,
    )
    lines = [line.removeprefix("error: ") for line in found.stderr.splitlines() if line.strip()]
    return "" if found.returncode == 0 else "; ".join(lines[-3:]) or f"status {found.returncode}"
