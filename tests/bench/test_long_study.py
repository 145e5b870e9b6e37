"""A day's search in minutes: 2 000 trials whose steps cost nothing, and what all else costs.

The stubbed steps go through a real store, the trials into a real journal and a real MLflow
database, which is then opened in a real browser.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from playwright.sync_api import expect

from search.config.places import TrackingConfig
from search.config.study import StudyConfig, TpeConfig
from search.engine.base import Done
from search.engine.store import Store
from search.front.importance import importances
from search.records.files import File, ReadFile
from search.records.steps.step import Step
from search.records.trial import TrialRecord
from search.storage.journal import Journal
from search.study.archive import ArchiveReader
from search.study.study import Study
from search.tracking.delivery import Delivery
from search.tracking.snapshot import Snapshot, snapshot_of
from search.tracking.tracker import Tracker
from tests.bench.replay import simulate
from tests.bench.replay.simulate import OBJECTIVES, ReplayEngine, Table, replay_lab
from tests.bench.test_ask_times import Timed
from tests.browser import open_browser
from tests.fakes import POLICY
from tests.mlflow_server import serve

TRIALS = int(os.environ.get("LONG_TRIALS", "2000"))
WINDOW = TRIALS // 10
MODEL_BYTES = 50_000
RUNGS = (1 / 3, 1.0)
TPE = TpeConfig(name="tpe", n_startup_trials=10, multivariate=True)
PATIENCE_MS = 120_000


class StubbedEngine(ReplayEngine):
    """Answers from a recorded table, and remembers on disk as every engine does."""

    def __init__(self, table: Table, store: Store) -> None:
        super().__init__(table)
        self._store = store

    def _run(self, step: Step[Any]) -> Done:
        known = self._store.load(step)
        if known is not None:
            return Done(known.result, known.seconds, reused=True)
        done = super()._run(step)
        self._store.save(step, done.result, done.seconds)
        return done


class TimedTracker(Tracker):
    """A tracker that notes the seconds of every trial's delivery."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.trials_s: list[float] = []

    def log_trials(self, records: Sequence[TrialRecord], models: Mapping[int, ReadFile]) -> None:
        before, started = len(self.logged), time.perf_counter()
        super().log_trials(records, models)
        new = len(self.logged) - before
        self.trials_s += [(time.perf_counter() - started) / max(1, new)] * new


def rss_mib() -> float:
    """History that this process holds now, after Python gave back what it could."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.mark.bench
@pytest.mark.timeout(7200)
def test_a_days_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path / "store")

    def put(content: str, suffix: str = ".onnx", size_bytes: int = 0) -> File:
        """Keeps a file of a model's size under the size that formulas go by."""
        kept = store.put(content.encode().ljust(MODEL_BYTES), suffix)
        return File(kept.sha256, suffix, size_bytes or MODEL_BYTES)

    monkeypatch.setattr(simulate, "file", put)
    config = StudyConfig(name="s", n_trials=TRIALS, timeout_s=None, warm_start=(), seed=0)
    tracking = TrackingConfig(uri=None, timeout_s=10.0)
    trackers: list[TimedTracker] = []

    def connect(snapshot: Snapshot, claim: Any) -> Tracker:
        weigh = partial(importances, objectives=OBJECTIVES)
        trackers.append(
            TimedTracker(
                tracking,
                tmp_path,
                "s",
                "s",
                OBJECTIVES,
                {},
                "",
                weigh,
                began_at=snapshot.began_at,
                claim=claim,
            )
        )
        return trackers[-1]

    table = Table()
    laboratory, engine = replay_lab(table, RUNGS), StubbedEngine(table, store)
    print(f"\n{'trials':>6} {'ask ms':>7} {'trial ms':>9} {'MLflow ms':>10} {'memory MiB':>11}")
    with (
        Journal(tmp_path, "s") as journal,
        Delivery(
            lambda: snapshot_of(reader.read(), store),
            connect,
            tracking,
            tmp_path,
            "study=s",
            lambda status: None,
        ) as delivery,
    ):
        study = Study(journal, config, table.space(), OBJECTIVES, {})
        study.keep_lab(laboratory, "")
        reader = ArchiveReader(Journal(tmp_path, "s"), "s")
        run = Timed(study, TPE, POLICY, laboratory, engine)
        began, asks, delivered, trials_s = time.perf_counter(), 0, 0, []
        for _ in run.trials():
            trials_s.append(time.perf_counter() - began)
            delivery.notify(len(study.records))
            count = len(study.records)
            while not trackers or len(trackers[0].trials_s) < count:
                time.sleep(0.001)  # real steps leave tracking seconds in which nothing is asked
            if count % WINDOW == 0:
                print(
                    f"{count:6} {1e3 * median(run.asks_s[asks:]):7.1f} "
                    f"{1e3 * median(trials_s):9.1f} "
                    f"{1e3 * median(trackers[0].trials_s[delivered:]):10.1f} {rss_mib():11.1f}",
                    flush=True,
                )
                asks, delivered, trials_s = len(run.asks_s), len(trackers[0].trials_s), []
            if count >= TRIALS:
                break
            began = time.perf_counter()
    with (
        serve(tmp_path, tmp_path / "server.log") as server,
        open_browser() as browser,
    ):
        page = browser.new_page(viewport={"width": 1500, "height": 1200})
        expect.set_options(timeout=PATIENCE_MS)
        began = time.perf_counter()
        page.goto(f"{server.address}/{trackers[0].location}", timeout=PATIENCE_MS)
        expect(page.get_by_text(f"after {TRIALS} trials").first).to_be_visible()
        print(f"the study's page opens in {time.perf_counter() - began:.1f} s")
        page.screenshot(path=str(tmp_path / "study.png"))
        began = time.perf_counter()
        page.goto(
            f"{server.address}/#/experiments/1/runs?viewStateShareKey=front&workflowType=machine_learning",
            timeout=PATIENCE_MS,
        )
        expect(page.get_by_text("matching runs").first).to_be_visible()
        print(f"the table of runs opens in {time.perf_counter() - began:.1f} s")
        page.screenshot(path=str(tmp_path / "runs.png"))
