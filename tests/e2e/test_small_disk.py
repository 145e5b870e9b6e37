"""Searches on a disk that is full again and again: nothing is lost or harmed, and they go on."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import commands
from tests.chaos import check, check_store
from tests.e2e.searching import SMOKE

N_TRIALS = 2
SEARCH = (
    *SMOKE,
    "data=digits",
    "engine=local",  # whose worker writes too
    "engine.workers=1",
    "study.name=s",
    f"study.n_trials={N_TRIALS}",
    "finalists.count=0",
    "device.canary_every=null",
    "device.budget_s=0.1",
)
# Room to begin with, and how much is made whenever it is used up.
LITTLE_BYTES, MORE_BYTES, PLENTY_BYTES = 300_000, 2_000_000, 100_000_000
MOST_TIMES = 30


def _mount(folder: Path, size_bytes: int, *options: str) -> None:
    size = ",".join(["size=" + str(size_bytes), *options])
    command = ["mount", "-t", "tmpfs", "-o", size, "none", str(folder)]
    subprocess.run(command, check=True, capture_output=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A working directory on a disk of its own, which is small."""
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        _mount(folder, LITTLE_BYTES)
    except subprocess.CalledProcessError:
        pytest.skip("no disk may be mounted; tests/integration/test_full_disk.py needs none")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_search_goes_on_whenever_there_is_room_again(disk: Path) -> None:
    stops = 0
    while (done := commands.run(disk, "search.run", *SEARCH)).returncode:
        stops += 1
        print(done.stdout, done.stderr)
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
        assert "No space left on device" in done.stderr or "its disk is full" in done.stderr
        assert "Traceback" not in done.stdout
        assert "sqlalche.me" not in done.stdout, "what a library says in many lines"
        assert stops < MOST_TIMES
        _mount(disk, LITTLE_BYTES + stops * MORE_BYTES, "remount")
    assert stops > 3, "the disk was never full where it matters"
    _mount(disk, PLENTY_BYTES, "remount")
    synced = commands.run(disk, "search.sync", "study=s")
    assert synced.returncode == 0, synced
    assert [*check(disk, "s", N_TRIALS), *check_store(disk)] == []
