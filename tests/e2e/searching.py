"""Whole searches over the real command line, and a look at what they left."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from tests import commands

TRIALS = 10
# As little of everything as still makes a search.
SMOKE = (
    "experiment=smoke",
    "model.width=16",
    "train.device=cpu",
    "train.precision=float32",
    "train.teacher_epochs=2",
    "train.epochs=0.3",
    "objective.min_accuracy_share=0",  # so little training teaches some networks nothing
    "device.budget_s=0.3",
    "space.threads=1",
    "finalists.count=2",
    "finalists.epochs=0.3",
    "finalists.budget_s=2.0",
)
STUDY = "smoke-cnn-w16"
# Trials that depend on no other one's outcome, so that their order cannot matter.
INDEPENDENT = (
    "sampler=random",
    "policy.eta=null",
    "policy.latency_first=false",
    "policy.deployments=0",
    "finalists.count=0",
    "device.canary_every=null",
)


# ---- running


def run(folder: Path, *overrides: str) -> str:
    """Runs a search to its end and returns what it printed."""
    return commands.expect_success(commands.run(folder, "search.run", *SMOKE, *overrides))


def begin_beside(finished: Path, folder: Path, *forgotten: str) -> Path:
    """Makes a working directory that remembers another one's steps but for some stages."""
    store = folder / "mlruns" / "store"
    shutil.copytree(finished / "mlruns" / "store", store)
    for stage in forgotten:
        shutil.rmtree(store / "steps" / stage)
    return folder


def copied(finished: Path, folder: Path) -> Path:
    """Copies a working directory with all that MLflow holds, for tests that change something."""
    shutil.copytree(finished / "mlruns", folder / "mlruns")
    addresses = finished.as_uri(), folder.as_uri()
    with closing(sqlite3.connect(folder / "mlruns" / "mlflow.db")) as database, database:
        database.execute("UPDATE runs SET artifact_uri = replace(artifact_uri, ?, ?)", addresses)
        database.execute(
            "UPDATE experiments SET artifact_location = replace(artifact_location, ?, ?)", addresses
        )
    return folder


# ---- looking


class Tracked:
    """The study as MLflow holds it."""

    def __init__(self, folder: Path, study: str = STUDY) -> None:
        self.client = MlflowClient(f"sqlite:///{folder / 'mlruns' / 'mlflow.db'}")
        experiment = self.client.get_experiment_by_name(study)
        assert experiment is not None
        (self.parent,) = self.client.search_runs([experiment.experiment_id], "tags.kind = 'study'")
        found = self.client.search_runs(
            [experiment.experiment_id],
            f"tags.kind = 'trial' and tags.`mlflow.parentRunId` = '{self.parent.info.run_id}'",
        )
        self.trials = {int(run.data.tags["trial"]): run for run in found}
        assert len(self.trials) == len(found), "a trial has two runs"

    def read(self, run: Run, artifact: str, folder: Path) -> Path:
        return Path(self.client.download_artifacts(run.info.run_id, artifact, str(folder)))

    def tagged(self) -> set[int]:
        """Numbers of the trials that are said to be on the front."""
        return {n for n, run in self.trials.items() if run.data.tags["pareto"] == "true"}
