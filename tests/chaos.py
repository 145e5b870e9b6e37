"""Kills processes of searches at random moments, and checks what is left of their studies.

The check reads Optuna's journal, MLflow's database and the store by itself; it uses nothing of the
project but the names of things.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sqlite3
import subprocess
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from optuna.trial import FrozenTrial, TrialState

from tests import commands
from tests.journals import journal, record_of
from tests.mlflow_server import Server

Victim = Literal["coordinator", "worker", "agent", "tracking server"]
VICTIMS: tuple[Victim, ...] = ("coordinator", "worker", "agent")
KILLS_PER_STUDY = 5
# Each kill ends a search once at most; more vain beginnings than these mean that it cannot go on.
MOST_BEGINNINGS = KILLS_PER_STUDY + 3
# A whole search of this kind takes about this long; a kill may come at any moment of it.
LONGEST_WAIT_S = 12.0
PATIENCE_S = 300.0


@dataclass
class Rampage:
    """Kills processes of one search after another; every other one has a tracking server.

    Args:
        folder: Working directory.
        overrides: Of every search, but for its name and seed.
        seed: Of moments and victims.
        kills: After which it is over.

    Attributes:
        killed: Victims so far.
        studies: Names of the studies begun.
        complaints: What searches said on standard error.
    """

    folder: Path
    overrides: tuple[str, ...]
    seed: int
    kills: int

    def __post_init__(self) -> None:
        self.killed: Counter[Victim] = Counter()
        self.studies: list[str] = []
        self.complaints: list[str] = []
        (self.folder / "mlruns").mkdir()
        # Records of finished trials as they were first seen, by study and number.
        self._finished: dict[tuple[str, int], Any] = {}
        self._end = 0  # of this study's kills
        self._server = Server(self.folder / "mlruns", self.folder / "server.log")
        self._rng = random.Random(self.seed)

    def run(self) -> None:
        """Searches study after study until all kills are done; each may end in peace."""
        try:
            # MLflow cannot use a database whose tables it was killed while creating.
            self._server.start()
            self._server.wait()
            while self.killed.total() < self.kills:
                is_served = len(self.studies) % 2 == 0
                name = f"chaos-{len(self.studies)}"
                self.studies.append(name)
                self._end = min(self.kills, self.killed.total() + KILLS_PER_STUDY)
                for _ in range(MOST_BEGINNINGS):
                    status, said = self._search(name, is_served)
                    self._compare(name)
                    if status == 0:
                        break
                else:
                    self.complaints.append(f"{name} does not end:\n{said}")
                    return
                if is_served:
                    self._sync(name)
        finally:
            self._server.kill()

    def _sync(self, name: str) -> None:
        """Delivers what a server that was killed at the end of a search has missed."""
        self._server.start()
        self._server.wait()
        uri = f"tracking.uri={self._server.address}"
        done = commands.run(self.folder, "search.sync", f"study={name}", uri)
        if done.returncode != 0:
            self.complaints.append(f"{name} could not be delivered:\n{done.stderr}")

    def _compare(self, name: str) -> None:
        """Notes the trials that are finished now; what was so before must be as it was."""
        now = {}
        if (self.folder / "mlruns" / "studies" / f"{name}.journal").exists():
            now = {
                (name, trial.number): record_of(trial)
                for trial in journal(self.folder, name)
                if trial.state.is_finished()
            }
        for known, record in self._finished.items():
            if known[0] == name and now.get(known) != record:
                self.complaints.append(f"trial {known} was lost, or is another one now")
        self._finished |= now

    def _search(self, name: str, is_served: bool) -> tuple[int, str]:
        """Begins a search or goes on with it, kills as it goes, and returns how it ended."""
        given = [*self.overrides, f"study.name={name}", f"study.seed={len(self.studies)}"]
        if is_served:
            self._server.start()
            given += [f"tracking.uri={self._server.address}", "tracking.timeout_s=2"]
        command = commands.line("search.run", *given)
        with (self.folder / "said.txt").open("w+") as said:
            search = subprocess.Popen(
                command,
                cwd=self.folder,
                env=commands.environment(),
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                start_new_session=True,
            )
            try:
                while self.killed.total() < self._end and not self._ends(search):
                    self._kill(search.pid, is_served)
                status = search.wait(PATIENCE_S)
            finally:
                _end_all([search.pid, *descendants(search.pid)])
            said.seek(0)
            text = said.read()
            if "Traceback" in text or status not in (0, 1, 2, -signal.SIGKILL):
                self.complaints.append(f"{name} ended with {status}:\n{text}")
            return status, text

    def _ends(self, search: subprocess.Popen[bytes]) -> bool:
        """Waits for the next kill; tells whether the search ends before."""
        try:
            search.wait(self._rng.uniform(0.2, LONGEST_WAIT_S))
        except subprocess.TimeoutExpired:
            return False
        return True

    def _kill(self, coordinator: int, is_served: bool) -> None:
        victims: tuple[Victim, ...] = (*VICTIMS, "tracking server") if is_served else VICTIMS
        victim = self._rng.choice(victims)
        if victim == "tracking server":
            self.killed[victim] += 1
            self._server.kill()
            self._server.start()  # which takes seconds
            return
        found = [coordinator] if victim == "coordinator" else members(coordinator, victim)
        if found:  # there is not always an agent
            self.killed[victim] += 1
            _end_all([self._rng.choice(found)])


def descendants(pid: int) -> list[int]:
    """Returns the processes below one, nearest first."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*"):
        try:
            children = [int(child) for child in (task / "children").read_text().split()]
        except OSError:
            continue
        for child in children:
            found += [child, *descendants(child)]
    return found


def members(coordinator: int, victim: Literal["worker", "agent"]) -> list[int]:
    """Returns the processes of a kind that a search has."""
    sign = {"worker": b"spawn_main", "agent": b"agent.py"}[victim]
    found = []
    for pid in descendants(coordinator):
        try:
            line = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        if sign in line:
            found.append(pid)
    return found


def _end_all(pids: list[int]) -> None:
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


# ---- the check


def check(folder: Path, study: str, n_trials: int) -> list[str]:
    """Returns what is wrong with a study that was searched to its end."""
    trials = journal(folder, study)
    runs = _mlflow_runs(folder, study)
    faults = [*_faults_of_trials(trials, n_trials), *_faults_of_runs(trials, runs)]
    return faults or list(_faults_of_models(folder, trials, runs))


def check_store(folder: Path) -> Iterator[str]:
    """Yields every entry that is torn, and every file that is not what its name says."""
    store = folder / "mlruns" / "store"
    for path in (store / "files").rglob("*"):
        if path.is_dir():
            continue
        if hashlib.sha256(path.read_bytes()).hexdigest() != path.name.partition(".")[0]:
            yield f"{path} is not what it is called"
    for path in (store / "steps").rglob("*.json"):
        try:
            entry = json.loads(path.read_bytes())
        except ValueError as error:
            yield f"{path} is torn: {error}"
            continue
        wrote = entry.pop("sha256")
        if hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest() != wrote:
            yield f"{path} is not what was written"
        for file in entry["files"]:
            sha256 = file["sha256"]
            if not (store / "files" / sha256[:2] / f"{sha256}{file['suffix']}").is_file():
                yield f"{path} names a file that is not there"


def _faults_of_trials(trials: list[FrozenTrial], n_trials: int) -> Iterator[str]:
    asked = [t for t in trials if record_of(t).get("student_of") is None]
    if len(asked) != n_trials:
        yield f"Optuna holds {len(asked)} trials that were asked for, not {n_trials}"
    for trial in trials:
        if not trial.state.is_finished():
            yield f"trial {trial.number} is {trial.state.name}"
        record = record_of(trial)
        if record.get("number") != trial.number:
            yield f"trial {trial.number} has the record {record}"
        elif trial.state == TrialState.COMPLETE:
            figures = record["figures"]
            known = [1 - figures["val_accuracy"], figures["latency_ms"]]
            if trial.values != known:
                yield f"trial {trial.number} was told {trial.values}, its record says {known}"


def _mlflow_runs(folder: Path, study: str) -> list[dict[str, Any]]:
    """Returns every run of an experiment with its tags and metrics, read without MLflow."""
    with closing(sqlite3.connect(folder / "mlruns" / "mlflow.db")) as database:
        database.row_factory = sqlite3.Row
        found = database.execute(
            "select run_uuid, status, artifact_uri from runs "
            "join experiments using (experiment_id) "
            "where experiments.name = ? and runs.lifecycle_stage = 'active'",
            (study,),
        ).fetchall()
        runs = []
        for run in found:
            tags = database.execute("select key, value from tags where run_uuid = ?", (run[0],))
            values = database.execute(
                "select key, value from latest_metrics where run_uuid = ?", (run[0],)
            )
            runs.append(
                {
                    "status": run[1],
                    "artifacts": run[2],
                    "tags": dict(tags),
                    "metrics": dict(values),
                }
            )
        return runs


def _faults_of_runs(trials: list[FrozenTrial], runs: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    kinds = Counter(run["tags"].get("kind") for run in runs)
    if kinds["study"] != 1:
        yield f"MLflow holds {kinds['study']} runs of the study"
    for run in runs:
        if run["status"] == "RUNNING":
            yield f"a run of MLflow was left running: {run['tags'].get('trial', 'the study')}"
    children = [run for run in runs if run["tags"].get("kind") == "trial"]
    numbers = Counter(int(run["tags"]["trial"]) for run in children)
    if numbers != Counter(trial.number for trial in trials):
        yield f"MLflow holds the trials {dict(numbers)}, Optuna {len(trials)}"
        return
    records = {trial.number: record_of(trial) for trial in trials}
    for run in children:
        record = records[int(run["tags"]["trial"])]
        if run["tags"]["outcome"] != record["outcome"]:
            yield f"MLflow and Optuna differ in how trial {record['number']} ended"
        for name in ("val_accuracy", "latency_ms", "size_bytes"):
            if run["metrics"].get(name) != record["figures"][name]:
                yield f"MLflow and Optuna differ in {name} of trial {record['number']}"


def _faults_of_models(
    folder: Path, trials: list[FrozenTrial], runs: Sequence[Mapping[str, Any]]
) -> Iterator[str]:
    """Compares the model that a trial's record names with the store's and with MLflow's."""
    artifacts = {run["tags"].get("trial"): run["artifacts"] for run in runs}
    for trial in trials:
        deployable = record_of(trial).get("deployable")
        if deployable is None:
            continue
        sha256, suffix = deployable["model"]["sha256"], deployable["model"]["suffix"]
        kept = folder / "mlruns" / "store" / "files" / sha256[:2] / f"{sha256}{suffix}"
        if not kept.is_file():
            yield f"the store lacks the model of trial {trial.number}"
        # A server keeps below its own folder what a file's address says in full.
        place = str(artifacts[str(trial.number)])
        served = folder / "mlruns" / "artifacts" / place.removeprefix("mlflow-artifacts:/")
        shown = Path(place.removeprefix("file://")) if place.startswith("file://") else served
        if hashlib.sha256((shown / "model.onnx").read_bytes()).hexdigest() != sha256:
            yield f"MLflow has another model of trial {trial.number}"
