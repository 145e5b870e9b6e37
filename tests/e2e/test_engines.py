"""The same study on every engine finds the same, also when its coordinator is killed in between."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests import commands
from tests.e2e.searching import INDEPENDENT, SMOKE, begin_beside
from tests.journals import journal, record_of

TRIALS = 4
STUDY = (*SMOKE, *INDEPENDENT, "data=digits", "study.name=s", f"study.n_trials={TRIALS}")
TWO = ("engine.workers=2", "engine.threads=1")
# What the other engines do anew. How fast training is in which arithmetic is not: where two are
# nearly as fast, each might choose another.
DONE_ANEW = ("prune", "reestimate", "finetune", "export", "quantize", "evaluate")


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
def test_every_engine_tells_the_same(
    begun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # which decides how sums are rounded
    inline = begin_beside(begun, tmp_path / "inline")
    expected = search(inline, "engine=inline")
    assert len(expected) == TRIALS
    local = begin_beside(inline, tmp_path / "local", *DONE_ANEW)
    assert search(local, "engine=local", *TWO) == expected
    ray = begin_beside(inline, tmp_path / "ray", *DONE_ANEW, "measure")
    kill_after_a_trial(ray, "engine=ray", *TWO)
    before = found(ray)
    after = search(ray, "engine=ray", *TWO)
    assert before
    assert all(after[number] == one for number, one in before.items())
    assert after == expected
