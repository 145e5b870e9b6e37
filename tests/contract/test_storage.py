"""What every place for studies must do: be held by one process, and lose nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest

from search.config.places import (
    JournalStorageConfig,
    PostgresStorageConfig,
    StorageConfig,
)
from search.errors import ConfigError
from search.records.steps.step import Step
from search.records.trial import TrialRecord
from search.storage import Ledger, Ledgers, open_ledgers
from search.study.archive import earlier_points, read_archive
from tests.fakes import FakeEngine, lab, limits, trials_of
from tests.unit.test_study import open_study

NAMES = ("accuracy", "latency")


class Place:
    """Where studies are kept, also for another process."""

    def __init__(self, config: StorageConfig, folder: Path) -> None:
        self.config, self.folder = config, folder

    def open(self) -> Ledgers:
        return open_ledgers(self.config, self.folder)

    def start(self, then: str) -> subprocess.Popen[str]:
        """Starts another process that has ``ledger``, not yet held, and a study's tools."""
        script = (
            "import os, sys, time\nfrom pathlib import Path\n"
            "from search.config.places import JournalStorageConfig, PostgresStorageConfig\n"
            "from search.storage import open_ledgers\n"
            f"ledger = open_ledgers({self.config!r}, Path({str(self.folder)!r})).of('s')\n{then}"
        )
        return subprocess.Popen(
            [sys.executable, "-c", script],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


@pytest.fixture(params=["journal", "postgres"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "journal":
        return Place(JournalStorageConfig("journal"), tmp_path)
    url = request.getfixturevalue("postgres").new_database()
    return Place(PostgresStorageConfig("postgres", url, 20.0), tmp_path)


def search(ledger: Ledger, n_trials: int = 12, engine: FakeEngine | None = None) -> Any:
    """Searches, and returns what Optuna and the study then know."""
    study = open_study(ledger, n_trials)
    list(trials_of(study, lab(), engine or FakeEngine()))
    found = optuna.load_study(study_name="s", storage=ledger.storage()).get_trials()
    told = [(t.number, t.state, t.values, t.params, t.constraints) for t in found]
    return told, list(map(essence, study.records))


def essence(record: TrialRecord) -> TrialRecord:
    """A record without what differs between two runs of the same trial."""
    return replace(record, wall_s=0.0, finished_at=0.0, stage_s={}, reused_steps=0)


@pytest.fixture(scope="module")
def wanted(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What a study comes to that nothing happens to."""
    ledgers = open_ledgers(JournalStorageConfig("journal"), tmp_path_factory.mktemp("whole"))
    with ledgers.of("s") as ledger:
        return search(ledger)


def test_a_study_exists_once_it_is_begun(place: Place) -> None:
    ledgers = place.open()
    assert (ledgers.names(), ledgers.of("s").exists()) == ([], False)
    with ledgers.of("s") as ledger:
        assert not ledger.exists()
    assert (ledgers.names(), ledgers.of("s").exists()) == ([], False)
    with ledgers.of("s") as ledger:
        open_study(ledger)
        assert ledger.exists()
    assert (ledgers.names(), ledgers.of("s").exists()) == (["s"], True)
    assert not ledgers.of("t").exists()
    with pytest.raises(ConfigError, match=r"study\.warm_start=t: .*no such study; there are s$"):
        earlier_points(ledgers, ["t"], limits())


def test_the_place_makes_no_difference(place: Place, wanted: Any) -> None:
    with place.open().of("s") as ledger:
        assert search(ledger, 5)[1] == wanted[1][:5]
    with place.open().of("s") as ledger:
        assert search(ledger) == wanted


def test_a_study_is_read_while_it_is_searched(place: Place) -> None:
    ledgers = place.open()
    with ledgers.of("s") as ledger:
        study = open_study(ledger, 3)
        study.keep_lab(lab(), "seed: 0\n")
        records = tuple(trials_of(study, lab(), FakeEngine()))
        archive = read_archive(place.open(), "s", "study")
        assert (archive.records, archive.lab, archive.identity) == (records, lab(), study.identity)


def test_two_studies_are_held_side_by_side(place: Place) -> None:
    with place.open().of("s"), place.open().of("t") as ledger:
        assert not ledger.exists()


def test_a_second_coordinator_is_refused_by_name_of_the_first(place: Place) -> None:
    with place.open().of("s"):
        second = place.start("ledger.__enter__()")
        said = second.communicate(timeout=60)[1]
    assert second.returncode != 0
    assert "StudyNotReady: study.name=s is being searched by process " in said
    assert f"{os.getpid()}" in said.rpartition("process ")[2]


def test_the_lock_of_a_dead_coordinator_does_not_live_on_in_its_children(place: Place) -> None:
    first = place.start(
        "ledger.__enter__()\nchild = os.fork()\n"  # as a data loader starts its workers
        "if child:\n    print(child, flush=True)\n    os.kill(os.getpid(), 9)\n"
        "os.close(1)\nos.close(2)\ntime.sleep(60)"  # or whoever reads it would wait for it
    )
    orphan = int(first.communicate(timeout=60)[0])
    try:
        with place.open().of("s"):
            pass
    finally:
        os.kill(orphan, signal.SIGKILL)


def test_the_trials_of_a_killed_coordinator_are_resumed(place: Place, wanted: Any) -> None:
    first = place.start(
        "from tests.fakes import FakeEngine, lab, trials_of\n"
        "from tests.unit.test_study import open_study\n"
        "steps = []\n"
        "def die(step):\n    steps.append(step)\n    len(steps) == 23 and os.kill(os.getpid(), 9)\n"
        "list(trials_of(open_study(ledger.__enter__(), 12), lab(), FakeEngine(die)))"
    )
    assert first.wait(60) == -signal.SIGKILL
    first.communicate()
    with place.open().of("s") as ledger:
        before = optuna.load_study(study_name="s", storage=ledger.storage()).get_trials()
        assert [t.number for t in before if not t.state.is_finished()] == [len(before) - 1]
        assert search(ledger) == wanted


@pytest.mark.parametrize("stop_at", [1, 14, 40])
def test_an_interrupted_study_ends_like_another(place: Place, wanted: Any, stop_at: int) -> None:
    engine = FakeEngine(interrupt_at(stop_at))
    with place.open().of("s") as ledger, pytest.raises(KeyboardInterrupt):
        search(ledger, engine=engine)
    with place.open().of("s") as ledger:
        assert search(ledger, engine=engine) == wanted
    keys = [step.key for step in engine.computed]
    assert len(keys) == len(set(keys)), "a finished step was computed again"


def interrupt_at(number: int) -> Callable[[Step[Any]], None]:
    steps = 0

    def count(_: Step[Any]) -> None:
        nonlocal steps
        steps += 1
        if steps == number:
            raise KeyboardInterrupt

    return count
