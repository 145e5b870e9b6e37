"""A search whose tracking server is away goes on to its end, and MLflow gets everything later."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from mlflow.entities import Run

from search.storage.journal import Journal
from tests import commands
from tests.e2e.searching import STUDY, TRIALS, Tracked, begin_beside, run
from tests.journals import journal

AWAY = ("tracking.uri=http://me:secret@127.0.0.1:1", "tracking.timeout_s=1")


def sync(folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    return commands.run(folder, "search.sync", *overrides)


def shown(tracked: Tracked) -> dict[str, object]:
    """What MLflow shows of a search, but for times and identifiers."""

    def described(run: Run) -> tuple[object, ...]:
        metrics = {k: v for k, v in run.data.metrics.items() if k not in ("wall_s", "reused_steps")}
        tags = {k: v for k, v in run.data.tags.items() if "mlflow." not in k and "study." not in k}
        tags.pop("closing.sha256", None)
        paths = [entry.path for entry in tracked.client.list_artifacts(run.info.run_id)]
        return run.info.status, run.data.params, metrics, tags, paths

    runs = {f"trial {number}": described(run) for number, run in tracked.trials.items()}
    return {**runs, "study": described(tracked.parent)}


@pytest.fixture(scope="module")
def missed(finished: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with the same search, of which MLflow has nothing."""
    folder = begin_beside(finished[0], tmp_path_factory.mktemp("missed"))
    printed = run(folder, f"study.n_trials={TRIALS}", *AWAY)
    trials = len(journal(folder, STUDY))
    told = [line for line in printed.splitlines() if "the search goes on" in line]
    assert len(told) == 1
    assert "127.0.0.1:1': cannot be used (nothing listens there); the search goes on" in told[0]
    assert f"up to {trials} trials are not in MLflow yet; when it answers again: " in printed
    assert f"python -m search.sync study={STUDY} 'tracking.uri=http://me:***@127" in printed
    assert "secret" not in printed
    assert not (folder / "mlruns" / "mlflow.db").exists()
    return folder


@pytest.mark.parametrize("way", ["sync", "a later run"])
def test_what_was_missed_arrives(
    way: str, missed: Path, finished: tuple[Path, str], tmp_path: Path
) -> None:
    shutil.copytree(missed / "mlruns", tmp_path / "mlruns")
    trials = len(journal(tmp_path, STUDY))
    if way == "sync":
        done = sync(tmp_path, f"study={STUDY}")
        assert (done.returncode, done.stderr) == (0, "")
        assert f"{STUDY}: {trials} trials delivered, 0 were there" in done.stdout
    else:
        run(tmp_path, f"study.n_trials={TRIALS}")
    tracked, expected = Tracked(tmp_path), Tracked(finished[0])
    assert shown(tracked) == shown(expected)
    page = tracked.read(tracked.parent, "front.html", tmp_path).read_text()
    explained = len(re.findall(r"<details", page))
    page_then = expected.read(expected.parent, "front.html", tmp_path).read_text()
    assert explained == len(re.findall(r"<details", page_then))
    before = shown(tracked), tracked.parent.info.end_time
    again = sync(tmp_path)  # all studies
    assert f"{STUDY}: 0 trials delivered, {trials} were there" in again.stdout
    assert (shown(Tracked(tmp_path)), Tracked(tmp_path).parent.info.end_time) == before


def test_what_cannot_be_delivered(missed: Path) -> None:
    for overrides, status, said in [
        (["study=other"], 2, f"study=other: there is no such study; there are {STUDY}"),
        ([f"study={STUDY}", *AWAY], 1, "cannot be used (nothing listens there); run it again"),
        (["studdy=x"], 2, "did you mean study?"),
    ]:
        refused = sync(missed, *overrides)
        assert (refused.returncode, refused.stdout) == (status, ""), refused
        assert said in refused.stderr
        assert refused.stderr.count("\n") == 1
        assert "secret" not in refused.stderr
    with Journal(missed / "mlruns" / "studies", STUDY):
        refused = sync(missed, f"study={STUDY}")
        passed_over = sync(missed)
    busy = f"study.name={STUDY} is being searched by process {os.getpid()}"
    assert refused.returncode == 2
    assert busy in refused.stderr
    assert passed_over.returncode == 0
    assert busy in passed_over.stdout
