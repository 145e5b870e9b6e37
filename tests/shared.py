"""What test processes side by side share: the first of them makes it, the others wait for it."""

from __future__ import annotations

import fcntl
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

T = TypeVar("T")


def common_folder(config: pytest.Config, factory: pytest.TempPathFactory) -> Path:
    """Returns a folder of this test run that all its processes have in common."""
    is_one_of_many = hasattr(config, "workerinput")  # pytest-xdist's own
    return factory.getbasetemp().parent if is_one_of_many else factory.getbasetemp()


def once(folder: Path, make: Callable[[], T]) -> T:
    """Returns what ``make`` returns, which one process of all calls; it may leave files.

    Args:
        folder: Names what is made; it is there when ``make`` is called.
        make: Returns a value that can be pickled.
    """
    folder.mkdir(exist_ok=True)
    kept = folder / "made.pickle"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not kept.exists():
            kept.write_bytes(pickle.dumps(make()))
        made: T = pickle.loads(kept.read_bytes())
    return made
