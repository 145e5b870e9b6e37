"""The same study on every engine finds the same, also when its coordinator is killed in between."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests import commands
from tests.e2e.searching import INDEPENDENT, SMOKE
from tests.journals import journal, record_of

TRIALS = 4
STUDY = (*SMOKE, *INDEPENDENT, "data=digits", "study.name=s", f"study.n_trials={TRIALS}")
TWO = ("engine.workers=2", "engine.threads=1")


def found(folder: Path) -> dict[int, Any]:
    """Returns every finished trial's point, and what of its figures no clock decides."""
    records = [record for trial in journal(folder, "s") if (record := record_of(trial))]
    names = ("val_accuracy", "float_accuracy", "size_bytes", "macs", "parameters")
    return {r["number"]: (r["point"], [r["figures"][name] for name in names]) for r in records}


def search(folder: Path, *overrides: str) -> dict[int, Any]:
    commands.expect_success(commands.run(folder, "search.run", *STUDY, *overrides))
    return found(folder)


def kill_after_a_trial(folder: Path, *overrides: str) -> None:
    with subprocess.Popen(
        commands.line("search.run", *STUDY, *overrides),
        cwd=folder,
        env=commands.environment(),
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        assert any("trial 1 complete" in line for line in process.stdout)
        os.kill(process.pid, signal.SIGKILL)


@pytest.mark.timeout(600)
def test_every_engine_tells_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # which decides how sums are rounded
    folders = {name: tmp_path / name for name in ("inline", "local", "ray")}
    for folder in folders.values():
        folder.mkdir()
    expected = search(folders["inline"], "engine=inline")
    assert len(expected) == TRIALS
    assert search(folders["local"], "engine=local", *TWO) == expected
    kill_after_a_trial(folders["ray"], "engine=ray", *TWO)
    before = found(folders["ray"])
    after = search(folders["ray"], "engine=ray", *TWO)
    assert before
    assert all(after[number] == one for number, one in before.items())
    assert after == expected
