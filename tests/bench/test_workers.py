"""What a second worker gains on this machine, and whether it changes what trials find."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from tests import commands
from tests.e2e.searching import INDEPENDENT, begin_beside
from tests.journals import journal, record_of

REPEATS = int(os.environ.get("WORKERS_REPEATS", "3"))
TRIALS = 8
STUDY = (
    *INDEPENDENT,
    "study.name=s",
    "device.budget_s=1.0",
    "train.precision=float32",
    "train.teacher_epochs=3",
)
WAYS = {
    "inline, all threads": ("engine=inline",),
    "local, 1 worker, all threads": ("engine=local", "engine.workers=1"),
    "local, 1 worker of 1 thread": ("engine=local", "engine.workers=1", "engine.threads=1"),
    "local, 2 workers of 1 thread": ("engine=local", "engine.workers=2", "engine.threads=1"),
    "ray, 2 workers of 1 thread": ("engine=ray", "engine.workers=2", "engine.threads=1"),
}


def search(folder: Path, n_trials: int, *overrides: str) -> float:
    """Returns the seconds that a search took."""
    began = time.perf_counter()
    given = (*STUDY, f"study.n_trials={n_trials}", *overrides)
    done = commands.run_fresh(folder, "search.run", *given, timeout_s=1800)
    assert done.returncode == 0, done.stderr
    return time.perf_counter() - began


def found(folder: Path) -> dict[int, Any]:
    """Returns every trial's point and accuracy, and what it was pruned and quantized to."""
    records = [record_of(trial) for trial in journal(folder, "s")]
    names = ("val_accuracy", "size_bytes", "macs")
    return {r["number"]: (r["point"], [r["figures"][name] for name in names]) for r in records}


@pytest.mark.bench
@pytest.mark.timeout(7200)
def test_what_workers_gain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = tmp_path / "prepared"
    prepared.mkdir()
    search(prepared, 1)
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    told: dict[str, dict[int, Any]] = {}
    for repeat in range(REPEATS):
        for way, overrides in WAYS.items():
            folder = tmp_path / f"{way} {repeat}"
            begin_beside(prepared, folder, "measure")
            # Ray's nodes keep what they have seen there; its sockets need short paths.
            with tempfile.TemporaryDirectory(prefix="w") as forgetful:
                monkeypatch.setenv("TMPDIR", forgetful)
                seconds[way].append(search(folder, TRIALS, *overrides))
            told[way] = found(folder)
            print(f"{way}: {seconds[way][-1]:.1f} s", flush=True)
    single = told["local, 1 worker of 1 thread"]
    for way, times in seconds.items():
        same = sum(single[number] == one for number, one in told[way].items())
        print(
            f"{way}: median {median(times):.1f} s ({min(times):.1f} to {max(times):.1f}), "
            f"{same} of {TRIALS} trials told as by one worker of one thread"
        )
