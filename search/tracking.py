"""A finished record becomes an MLflow run; knows nothing of how records came to be."""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from urllib.parse import urlsplit

from search.config import TrackingConfig
from search.errors import ConfigError
from search.front import front, hypervolume
from search.records import TrialRecord
from search.report import front_page, front_png, markdown_table

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when mlflow is imported

from mlflow.entities import Metric, Param, Run
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from sqlalchemy.exc import SQLAlchemyError

log = logging.getLogger(__name__)
# Both are chatty about creating a database, which is no news to a user.
logging.getLogger("mlflow").setLevel(logging.WARNING)
logging.getLogger("alembic").setLevel(logging.WARNING)

PARENT = "mlflow.parentRunId"
NOTE = "mlflow.note.content"
PAGE_RUNS = 1000
FIGURES_AS_METRICS = (
    "val_accuracy", "float_accuracy", "latency_ms", "latency_ratio", "latency_ratio_low",
    "latency_ratio_high", "speedup", "p50_ms", "size_bytes", "macs", "parameters",
    "peak_rss_bytes", "cpu_ms", "cold_start_ms", "effective_bits", "integer_operators",
    "channels_removed",
)  # fmt: skip


class Tracker:
    """One study's parent run and its trials' child runs.

    Args:
        config: Where the tracking server or database is.
        state: Folder of the working directory's state, ``mlruns``.
        study: Name of the study, also of the experiment.
        objectives: Names of what the front trades.
        tags: Facts about the study for its parent run.
        settings: The resolved configuration as YAML.

    Raises:
        ConfigError: When the server does not answer or the database cannot be opened.
    """

    def __init__(
        self,
        config: TrackingConfig,
        state: Path,
        study: str,
        objectives: Sequence[str],
        tags: Mapping[str, str],
        settings: str,
    ) -> None:
        self._study = study
        self._objectives = objectives
        uri = config.uri or f"sqlite:///{state.resolve() / 'mlflow.db'}"
        artifacts = None if config.uri else (state.resolve() / "artifacts" / study).as_uri()
        self._on_front: frozenset[int] | None = None
        try:
            with _bounded_requests(config.timeout_s):
                self._client = MlflowClient(uri)
                self._experiment = self._find_experiment(artifacts)
            self._parent = self._open_parent({"kind": "study", "study": study, **tags})
            self._children = dict(self._finished_children())
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "config.yaml"
                path.write_text(settings)
                self._client.log_artifact(self._parent, str(path))
        except (MlflowException, SQLAlchemyError) as error:
            raise ConfigError(
                f"tracking.uri={_without_password(uri)}: no tracking server or database answers "
                f"({_first_line(error)}); start it, or leave tracking.uri=null for "
                "mlruns/mlflow.db"
            ) from error

    @property
    def location(self) -> str:
        """Path of the study's run in MLflow's pages, after the server's address."""
        return f"/#/experiments/{self._experiment}/runs/{self._parent}"

    def _find_experiment(self, artifacts: str | None) -> str:
        found = self._client.get_experiment_by_name(self._study)
        if found is None:
            created: str = self._client.create_experiment(self._study, artifacts)
            return created
        if found.lifecycle_stage == "deleted":
            self._client.restore_experiment(found.experiment_id)
        return str(found.experiment_id)

    def _open_parent(self, tags: Mapping[str, str]) -> str:
        runs = self._client.search_runs([self._experiment], "tags.kind = 'study'", max_results=1)
        if runs:
            run_id: str = runs[0].info.run_id
            self._client.update_run(run_id, "RUNNING")
            for key, value in tags.items():
                self._client.set_tag(run_id, key, value)
            return run_id
        created: str = self._client.create_run(
            self._experiment, tags=dict(tags), run_name=self._study
        ).info.run_id
        return created

    def _finished_children(self) -> Iterator[tuple[int, str]]:
        """Yields number and run of every trial logged whole; removes those cut off half-way."""
        token = None
        while True:
            page = self._client.search_runs(
                [self._experiment],
                f"tags.`{PARENT}` = '{self._parent}'",
                max_results=PAGE_RUNS,
                page_token=token,
            )
            for run in page:
                if run.info.status == "RUNNING":
                    self._client.delete_run(run.info.run_id)
                else:
                    yield _trial_number(run), run.info.run_id
            token = page.token
            if not token:
                return

    def log_trials(self, records: Sequence[TrialRecord], models: Mapping[int, Path]) -> None:
        """Logs the trials that are not logged yet, and the front when it changed.

        Args:
            records: All finished trials of the study.
            models: ONNX file of every trial that has one, by trial number.
        """
        for count, record in enumerate(records, 1):
            if record.number not in self._children:
                self._children[record.number] = self._log_trial(record, models.get(record.number))
                self._log_progress(records[:count], record)
        members = front(records, self._objectives)
        numbers = frozenset(record.number for record in members)
        if numbers != self._on_front:
            self._log_front(records, members)
            self._tag_front(numbers)
            self._on_front = numbers

    def _log_trial(self, record: TrialRecord, model: Path | None) -> str:
        end_ms = int(record.finished_at * 1000)
        run = self._client.create_run(
            self._experiment,
            start_time=int((record.finished_at - record.wall_s) * 1000),
            run_name=f"trial {record.number}",
            tags={
                PARENT: self._parent,
                "kind": "trial",
                "trial": str(record.number),
                "outcome": record.outcome,
                "pareto": "false",
                **({"reason": record.reason} if record.reason else {}),
            },
        )
        run_id: str = run.info.run_id
        metrics = [Metric(name, value, end_ms, 0) for name, value in _metrics(record).items()]
        params = [Param(name, str(value)) for name, value in asdict(record.point).items()]
        self._client.log_batch(run_id, metrics=metrics, params=params)
        if model is not None:
            with tempfile.TemporaryDirectory() as folder:
                named = Path(folder) / "model.onnx"
                named.write_bytes(model.read_bytes())
                self._client.log_artifact(run_id, str(named))
        status = "FAILED" if record.outcome == "failed" else "FINISHED"
        self._client.set_terminated(run_id, status, end_ms)
        return run_id

    def _log_progress(self, records: Sequence[TrialRecord], latest: TrialRecord) -> None:
        now_ms = int(latest.finished_at * 1000)
        values = {
            "hypervolume": hypervolume(records, self._objectives),
            "front_size": len(front(records, self._objectives)),
            "trials_finished": len(records),
        }
        metrics = [Metric(name, v, now_ms, latest.number) for name, v in values.items()]
        self._client.log_batch(self._parent, metrics=metrics)

    def _tag_front(self, numbers: frozenset[int]) -> None:
        """Corrects ``pareto`` where it changed; the first time of a process everywhere."""
        known = self._on_front
        for number, run_id in self._children.items():
            if known is None or (number in known) != (number in numbers):
                self._client.set_tag(run_id, "pareto", str(number in numbers).lower())

    def _log_front(self, records: Sequence[TrialRecord], members: Sequence[TrialRecord]) -> None:
        numbers = [record.number for record in members]
        summary = {
            "study": self._study,
            "objectives": list(self._objectives),
            "hypervolume": hypervolume(records, self._objectives),
            "front": [
                {**asdict(record), "run_id": self._children[record.number]} for record in members
            ],
        }
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "front.json").write_text(json.dumps(summary, indent=1))
            (folder / "front.png").write_bytes(front_png(self._study, records, numbers))
            (folder / "front.html").write_text(front_page(self._study, records, numbers))
            self._client.log_artifacts(self._parent, str(folder))
        picture = f"get-artifact?path=front.png&run_uuid={self._parent}"
        note = f"![front]({picture})\n\n{markdown_table(members)}\n"
        self._client.set_tag(self._parent, NOTE, note)

    def close(self, status: str) -> None:
        """Ends the parent run as ``FINISHED``, ``KILLED`` or ``FAILED``."""
        self._client.set_terminated(self._parent, status)


def _trial_number(run: Run) -> int:
    return int(run.data.tags["trial"])


def _metrics(record: TrialRecord) -> dict[str, float]:
    """Returns the known figures of a trial and the seconds of its stages."""
    figures = {name: getattr(record.figures, name) for name in FIGURES_AS_METRICS}
    known = {name: float(value) for name, value in figures.items() if value is not None}
    stages = {f"{stage}_s": seconds for stage, seconds in record.stage_s.items()}
    return {**known, **stages, "wall_s": record.wall_s, "reused_steps": record.reused_steps}


@contextmanager
def _bounded_requests(timeout_s: float) -> Iterator[None]:
    """Asks a server once for ``timeout_s`` instead of trying again for many minutes."""
    bounds = {
        "MLFLOW_HTTP_REQUEST_TIMEOUT": str(max(1, round(timeout_s))),
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    }
    before = {name: os.environ.get(name) for name in bounds}
    os.environ.update(bounds)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__


def _without_password(uri: str) -> str:
    parts = urlsplit(uri)
    if parts.password is None:
        return uri
    host = f"{parts.username}:***@{parts.hostname}"
    return parts._replace(netloc=f"{host}:{parts.port}" if parts.port else host).geturl()
