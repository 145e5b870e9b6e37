"""Ctrl-C in the middle of a search: it stops at once and says so, and goes on where it stood."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sqlite3
import subprocess
import time
from contextlib import closing
from pathlib import Path

import pytest

from tests import chaos, commands
from tests.e2e.searching import SMOKE, STUDY, begin_beside

TRIALS = 3
SHORT = (*SMOKE, f"study.n_trials={TRIALS}", "policy.deployments=0", "finalists.count=0")


def start(folder: Path, *overrides: str) -> subprocess.Popen[str]:
    """Starts the real command line in a process group of its own, as a terminal does."""
    return subprocess.Popen(
        commands.line("search.run", *SHORT, *overrides),
        cwd=folder,
        env=commands.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[str, str]:
    try:
        return process.communicate(timeout=commands.TIMEOUT_S)
    finally:
        process.kill()


def runs(folder: Path, kind: str) -> list[tuple[str, str]]:
    """Returns name and status of MLflow's runs of a kind."""
    with closing(sqlite3.connect(folder / "mlruns" / "mlflow.db")) as database:
        return database.execute(
            "select name, status from runs join tags using (run_uuid) "
            "where tags.key = 'kind' and tags.value = ? and lifecycle_stage = 'active' "
            "order by start_time",
            (kind,),
        ).fetchall()


def test_ctrl_c_and_on(begun: Path, empty_database: Path, tmp_path: Path) -> None:
    begin_beside(begun, tmp_path, "teacher")
    # Making one may take longer than an interrupted search waits for MLflow.
    shutil.copy(empty_database, tmp_path / "mlruns" / "mlflow.db")
    process = start(tmp_path)
    assert process.stdout is not None
    printed = []
    for line in process.stdout:
        printed.append(line)
        if "trial 0 " in line:
            break
    os.killpg(process.pid, signal.SIGINT)
    rest, said = finish(process)
    assert process.returncode == 130, (printed, rest, said)
    assert said == "error: interrupted; the same command goes on from here\n"
    assert runs(tmp_path, "study") == [(STUDY, "KILLED")]
    assert len(runs(tmp_path, "trial")) < TRIALS

    # A changed setting is refused without touching what is there.
    refused = commands.run(tmp_path, "search.run", *SHORT, "train.epochs=0.7")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith(
        f"error: train.epochs=0.7: the study {STUDY} was begun with 0.3; give that"
    )
    assert refused.stderr.count("\n") == 1
    assert runs(tmp_path, "study") == [(STUDY, "KILLED")]

    again = start(tmp_path)
    printed_then, said = finish(again)
    assert again.returncode == 0, said
    assert said == ""
    assert f"continuing {STUDY} after " in printed_then
    assert "training the teacher" not in printed_then
    trials = re.findall(r"trial (\d+) (?:complete|infeasible|failed)", "".join(printed))
    trials += re.findall(r"trial (\d+) (?:complete|infeasible|failed)", rest + printed_then)
    assert trials == [str(number) for number in range(TRIALS)]
    assert runs(tmp_path, "study") == [(STUDY, "FINISHED")]
    assert runs(tmp_path, "trial") == [(f"trial {n}", "FINISHED") for n in range(TRIALS)]


@pytest.mark.parametrize("wait_s", [0.1, 0.5, 1.5])
def test_ctrl_c_while_a_worker_starts(tmp_path: Path, wait_s: float) -> None:
    process = start(tmp_path, "data=digits", "engine=local", "engine.workers=2")
    while process.poll() is None and not chaos.members(process.pid, "worker"):
        time.sleep(0.02)
    time.sleep(wait_s)
    os.killpg(process.pid, signal.SIGINT)
    _, said = finish(process)
    assert said == "error: interrupted; the same command goes on from here\n"
    assert process.returncode == 130
