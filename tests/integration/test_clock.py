"""Clocks that jump while a study is searched: machines without batteries, and time servers."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from search.config.places import TrackingConfig
from search.config.study import StudyConfig
from search.records.trial import TrialRecord
from search.space.parsing import parse_space
from search.storage.journal import Journal
from search.study.study import Study
from search.tracking.tracker import Tracker
from tests.bench.replay.simulate import OBJECTIVES
from tests.fakes import POLICY, FakeEngine, lab, trials_of
from tests.unit.test_study import SPACE

DAY_S = 24 * 3600.0


class Clock:
    """The real clock, set wrong by ``ahead_s``."""

    def __init__(self) -> None:
        self.ahead_s = 0.0
        self._right = time.time

    def __call__(self) -> float:
        return self._right() + self.ahead_s


def search(
    folder: Path, n_trials: int, clock: Clock, jumps_s: dict[int, float]
) -> list[TrialRecord]:
    """Searches as the command line does, and sets the clock wrong after some trials."""
    config = StudyConfig(name="s", n_trials=n_trials, timeout_s=3600.0, warm_start=(), seed=0)
    space = parse_space(SPACE, usable_cores=2)
    where = TrackingConfig(uri=None, timeout_s=5.0)
    tracker = Tracker(where, folder, "s", "s", OBJECTIVES, {}, "")
    with Journal(folder, "s") as journal:
        study = Study(journal, config, space, OBJECTIVES, {})
        for record in trials_of(study, lab(), FakeEngine(), POLICY):
            tracker.log_trials(study.records, {})
            clock.ahead_s = jumps_s.get(record.number, clock.ahead_s)
        tracker.end("FINISHED")
        return study.records


def test_jumps_of_the_clock_lose_nothing_and_end_nothing(
    tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    clock = Clock()
    monkeypatch.setattr(time, "time", clock)
    jumps_s = {1: -2 * DAY_S, 3: 400 * DAY_S, 6: -30 * DAY_S}
    first = search(tmp_path, 9, clock, jumps_s)
    clock.ahead_s = -40 * DAY_S
    records = search(tmp_path, 12, clock, {10: 3 * DAY_S})
    assert records[: len(first)] == first
    assert sum(record.student_of is None for record in records) == 12
    assert {record.outcome for record in records} <= {"complete", "stopped"}
    assert all(0 <= record.wall_s < 60 for record in records)
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("s")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    trials = {int(run.data.tags["trial"]) for run in runs if run.data.tags["kind"] == "trial"}
    assert trials == {record.number for record in records}
    assert len(runs) == len(records) + 1
    for run in runs:
        assert run.info.status == "FINISHED"
        assert run.info.start_time <= run.info.end_time
    parent = next(run for run in runs if run.data.tags["kind"] == "study")
    history = client.get_metric_history(parent.info.run_id, "trials_finished")
    assert len(history) == len(records)
    assert parent.data.metrics["trials_finished"] == len(records)
