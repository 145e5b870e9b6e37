"""A finished record becomes an MLflow run; knows nothing of how records came to be."""

from __future__ import annotations

import json
import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mlflow.entities import Metric, Param, Run

from search.config import TrackingConfig
from search.errors import TrackingLost, hide_passwords
from search.front import front, hypervolume, original
from search.records import Canary, Closing, Finalist, TrialRecord
from search.report import (
    describe_later,
    describe_noise,
    describe_trial,
    finalist_markdown,
    front_page,
    front_png,
    halved,
    markdown_table,
)
from search.report.formats import format_counted
from search.report.points import label
from search.tracking.server import address, answering, connect, explained

log = logging.getLogger(__name__)
Importances = Mapping[str, Mapping[str, float]]
PARENT = "mlflow.parentRunId"
NOTE = "mlflow.note.content"
IDENTITY = "study.identity"
PAGE_RUNS = 1000
# MLflow's pages open for work on language models: empty panels where the runs should be.
FOR_MODELS = "workflowType=machine_learning"
# A saved view of the run table, in the form in which MLflow's own pages keep one.
VIEW = "mlflow.sharedViewState.front"
SECTION, RUNS_DRAWN = "front", 100
VIEW_METRICS = ("val_accuracy", "latency_ms", "speedup", "size_bytes")
FINAL_VIEW_METRICS = ("test_accuracy", "final_latency_ms", "final_speedup", "final_size_bytes")
# MLflow cuts a description after 8 000 letters, and a point takes up to 230 of them.
POINTS_DESCRIBED = 30
FIGURES_AS_METRICS = (
    "val_accuracy", "float_accuracy", "latency_ms", "latency_ratio", "latency_ratio_low",
    "latency_ratio_high", "speedup", "speedup_low", "speedup_high", "p50_ms", "p90_ms", "p95_ms",
    "p99_ms", "images_per_s", "size_bytes", "macs", "parameters", "peak_rss_bytes",
    "model_rss_bytes", "energy_mj", "cpu_ms", "cold_start_ms", "effective_bits",
    "integer_operators", "channels_removed", "launches", "disturbed_rounds", "warm",
)  # fmt: skip


FINAL_FIGURES = (
    "val_accuracy", "latency_ms", "speedup", "speedup_low", "speedup_high", "p50_ms", "p90_ms",
    "p95_ms", "p99_ms", "size_bytes", "cpu_ms", "peak_rss_bytes",
)  # fmt: skip


class Tracker(AbstractContextManager["Tracker"]):
    """One study's parent run and its trials' child runs.

    Args:
        config: Where the tracking server or database is.
        state: Folder of the working directory's state, ``mlruns``.
        study: Name of the study, also of the experiment.
        identity: Of the study, among others of that name.
        objectives: Names of what the front trades.
        tags: Facts about the study for its parent run.
        settings: The resolved configuration as YAML.
        importances: Answers, when the front's page is drawn, what share each dimension has in
            each objective.

    Raises:
        ConfigError: When the server does not answer or the database cannot be opened.
    """

    def __init__(
        self,
        config: TrackingConfig,
        state: Path,
        study: str,
        identity: str,
        objectives: Sequence[str],
        tags: Mapping[str, str],
        settings: str,
        importances: Callable[[], Importances] = dict,
    ) -> None:
        self._config = config
        self._study = study
        self._objectives = objectives
        self._importances = importances
        self._uri = address(config, state)
        artifacts = None if config.uri else (state.resolve() / "artifacts" / study).as_uri()
        self._on_front: frozenset[int] | None = None
        self._searched_front: frozenset[int] | None = None
        self._records: Sequence[TrialRecord] = ()
        self._drawn = 0
        self._canaries: list[Canary] = []
        self._canaries_logged = 0
        self._closing: Closing | None = None
        self._explanations = ""
        self._device = f"{tags['device']} ({tags['device.cpu']})" if "device.cpu" in tags else ""
        with explained(config, state):
            self._client = connect(config, state)
            self._experiment = self._find_experiment(artifacts)
            named = {"kind": "study", "study": study, IDENTITY: identity}
            self._parent = self._open_parent({**named, **tags})
            self._children = dict(self._finished_children())
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "config.yaml"
                path.write_text(hide_passwords(settings))
                self._client.log_artifact(self._parent, str(path))

    @property
    def server(self) -> str:
        """Address of the server or database, without its password."""
        return hide_passwords(self._uri)

    @property
    def location(self) -> str:
        """Path of the study's run in MLflow's pages, after the server's address."""
        return f"/{self._page(self._parent)}"

    def _page(self, run_id: str, artifact: str = "") -> str:
        """Returns the address of a run, or of one of its artifacts, within MLflow's pages."""
        path = f"/artifacts/{artifact}" if artifact else ""
        return f"#/experiments/{self._experiment}/runs/{run_id}{path}?{FOR_MODELS}"

    def _find_experiment(self, artifacts: str | None) -> str:
        found = self._client.get_experiment_by_name(self._study)
        if found is None:
            created: str = self._client.create_experiment(self._study, artifacts)
            return created
        if found.lifecycle_stage == "deleted":
            self._client.restore_experiment(found.experiment_id)
        return str(found.experiment_id)

    def _open_parent(self, tags: Mapping[str, str]) -> str:
        mine = f"tags.`{IDENTITY}` = '{tags[IDENTITY]}'"
        runs = self._client.search_runs([self._experiment], mine, max_results=1)
        if runs:
            run_id: str = runs[0].info.run_id
            self._client.update_run(run_id, "RUNNING")
            for key, value in tags.items():
                self._client.set_tag(run_id, key, value)
            return run_id
        created: str = self._client.create_run(
            self._experiment, tags=dict(tags), run_name=self._study
        ).info.run_id
        self._introduce(created)
        return created

    def _introduce(self, parent: str) -> None:
        """Tells visitors of the experiment where its front is; saves a view of the front's runs."""
        traded = " against ".join(self._objectives)
        note = f"[Open the study]({self._page(parent)}): its front of {traded}, and its models"
        self._client.set_experiment_tag(self._experiment, NOTE, note)
        self._save_view(VIEW_METRICS)

    def _save_view(self, metrics: Sequence[str]) -> None:
        """Saves the view of the front's runs; its metrics begin with accuracy and latency."""
        columns = [f"metrics.`{name}`" for name in metrics]
        state = {
            "searchFilter": 'tags.pareto = "true"',
            "orderByKey": columns[1],
            "orderByAsc": True,
            "selectedColumns": [
                *columns,
                *(f"params.`{n}`" for n in ("prune_ratio", "bits", "threads")),
            ],
            "compareRunCharts": [
                {
                    **_card("SCATTER"),
                    "runsCountToCompare": RUNS_DRAWN,
                    "xaxis": {"key": metrics[1], "type": "METRIC"},
                    "yaxis": {"key": metrics[0], "type": "METRIC"},
                },
                {
                    **_card("PARALLEL"),
                    "runsCountToCompare": RUNS_DRAWN,
                    "showAllRuns": False,
                    "selectedParams": ["prune_ratio", "bits", "threads"],
                    "selectedMetrics": [metrics[1], metrics[0]],
                },
            ],
            "compareRunSections": [
                {
                    "uuid": SECTION,
                    "name": "Front",
                    "display": True,
                    "isReordered": False,
                    "columns": 1,
                    "cardHeight": 420,
                }
            ],
        }
        view = {"name": "Front", "createdAt": 0, "updatedAt": 0, "state": json.dumps(state)}
        self._client.set_experiment_tag(self._experiment, VIEW, json.dumps(view))

    def _finished_children(self) -> Iterator[tuple[int, str]]:
        """Yields number and run of every trial logged whole; removes those cut off half-way."""
        for run in self._search("tags.kind = 'trial'"):
            if run.info.status == "RUNNING":
                self._client.delete_run(run.info.run_id)
            else:
                yield _trial_number(run), run.info.run_id

    def _search(self, condition: str) -> Iterator[Run]:
        """Yields the child runs that meet a condition."""
        token = None
        while True:
            page = self._client.search_runs(
                [self._experiment],
                f"tags.`{PARENT}` = '{self._parent}' and {condition}",
                max_results=PAGE_RUNS,
                page_token=token,
            )
            yield from page
            token = page.token
            if not token:
                return

    def log_device(self, tags: Mapping[str, str], canaries: Sequence[Canary]) -> None:
        """Logs what was found out about the device.

        Args:
            tags: Facts about it.
            canaries: All so far; where one tells a model from itself, the device counts as noisy.
        """
        self._canaries = list(canaries)
        if len(canaries) > self._canaries_logged:
            self._drawn = -1  # at the end the page is drawn anew
        noisy = any(canary.is_noisy for canary in canaries)
        verdict = {"device.noisy": str(noisy).lower()} if canaries else {}
        with answering(self._config):
            for key, value in {**tags, **verdict}.items():
                self._client.set_tag(self._parent, key, value)
            now_ms = _milliseconds(time.time())
            metrics = [
                Metric(f"canary_{name}", value, now_ms, canary.after_trials)
                for canary in canaries[self._canaries_logged :]
                for name, value in asdict(canary.interval).items()
            ]
            self._client.log_batch(self._parent, metrics=metrics)
        self._canaries_logged = len(canaries)

    def keep_front(self, closing: Closing, explanations: str) -> None:
        """Lets an earlier closing round's front stand until the next one is logged.

        Args:
            closing: What it found.
            explanations: HTML that says what its finalists' time goes into.
        """
        self._closing, self._explanations = closing, explanations

    @property
    def _finalists(self) -> Sequence[Finalist]:
        return () if self._closing is None else self._closing.finalists

    def log_trials(self, records: Sequence[TrialRecord], models: Mapping[int, Path]) -> None:
        """Logs the trials that are not logged yet, and the front when it changed.

        Args:
            records: All finished trials of the study.
            models: ONNX file of every trial that has one, by trial number.
        """
        self._records = list(records)
        with answering(self._config):
            for count, record in enumerate(records, 1):
                if record.number not in self._children:
                    run_id = self._log_trial(record, models.get(record.number))
                    self._log_progress(records[:count], record)
                    # Last: a run that is not ended is taken for one that was cut off half-way.
                    status = "FAILED" if record.outcome == "failed" else "FINISHED"
                    self._client.set_terminated(run_id, status, _milliseconds(record.finished_at))
                    self._children[record.number] = run_id
            members = front(records, self._objectives)
            numbers = frozenset(record.number for record in members)
            if numbers != self._searched_front:
                self._log_front(records, members)
                self._tag_front(self._standing() if self._closing else numbers)
                self._searched_front = numbers

    def log_finalists(
        self, closing: Closing, models: Mapping[int, Path], explanations: str = ""
    ) -> None:
        """Logs the closing round; its front takes the place of the search's.

        Args:
            closing: What it found.
            models: ONNX file of every finalist, by trial number.
            explanations: HTML that says what their time goes into.
        """
        finalists = closing.finalists
        self._closing, self._explanations = closing, explanations
        # The same round logged again, by the same command, adds nothing.
        now_ms = _milliseconds(self._records[-1].finished_at)
        with answering(self._config):
            for run in self._search("tags.finalist = 'true'"):
                if _trial_number(run) not in {finalist.number for finalist in finalists}:
                    self._client.set_tag(run.info.run_id, "finalist", "false")
            known = {record.number: record for record in self._records}
            for finalist in finalists:
                run_id = self._children[finalist.number]
                note = self._describe(known[finalist.number], finalist)
                self._client.set_tag(run_id, NOTE, note)
                metrics = [Metric(name, v, now_ms, 0) for name, v in _confirmed(finalist).items()]
                self._client.log_batch(run_id, metrics=metrics)
                self._client.set_tag(run_id, "finalist", "true")
                self._log_file(run_id, models[finalist.number], "model.onnx", "final")
            self._log_front(self._records, front(self._records, self._objectives))
            self._tag_front(self._standing())
            self._save_view(FINAL_VIEW_METRICS)

    def _log_trial(self, record: TrialRecord, model: Path | None) -> str:
        end_ms = _milliseconds(record.finished_at)
        run = self._client.create_run(
            self._experiment,
            start_time=_milliseconds(record.finished_at - record.wall_s),
            run_name=f"trial {record.number}",
            tags={
                PARENT: self._parent,
                NOTE: self._describe(record),
                "kind": "trial",
                "trial": str(record.number),
                "outcome": record.outcome,
                "pareto": "false",
                **({"reason": record.reason} if record.reason else {}),
                **({"measuring": record.figures.measuring} if record.figures.measuring else {}),
                **({"energy": record.figures.energy_note} if record.figures.energy_note else {}),
            },
        )
        run_id: str = run.info.run_id
        metrics = [Metric(name, value, end_ms, 0) for name, value in _metrics(record).items()]
        params = [Param(name, str(value)) for name, value in asdict(record.point).items()]
        self._client.log_batch(run_id, metrics=metrics, params=params)
        if model is not None:
            self._log_file(run_id, model, "model.onnx")
        return run_id

    def _describe(self, record: TrialRecord, finalist: Finalist | None = None) -> str:
        return (
            f"{describe_trial(record, finalist)}\n\n[The whole front]({self._page(self._parent)})"
        )

    def _log_file(self, run_id: str, path: Path, name: str, folder: str | None = None) -> None:
        """Keeps a copy of a file with a run, under another name."""
        with tempfile.TemporaryDirectory() as aside:
            named = Path(aside) / name
            named.write_bytes(path.read_bytes())
            self._client.log_artifact(run_id, str(named), folder)

    def _log_progress(self, records: Sequence[TrialRecord], latest: TrialRecord) -> None:
        now_ms = _milliseconds(latest.finished_at)
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
        self._on_front = numbers

    def _log_front(self, records: Sequence[TrialRecord], members: Sequence[TrialRecord]) -> None:
        numbers, first = [record.number for record in members], original(records)
        searched = [self._summarise(record) for record in members]
        finalists = [self._summarise(finalist) for finalist in self._finalists]
        summary = {
            "study": self._study,
            "objectives": list(self._objectives),
            "hypervolume": hypervolume(records, self._objectives),
            "original": None if first is None else self._summarise(first),
            "front": [f for f in finalists if f["stands"]] if finalists else searched,
            "searched_front": searched,
            "finalists": finalists,
        }
        picture = front_png(self._study, records, numbers, self._finalists)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "front.json").write_text(json.dumps(summary, indent=1))
            (folder / "front.png").write_bytes(picture)
            (folder / "front-small.png").write_bytes(halved(picture))
            (folder / "front.html").write_text(
                front_page(
                    self._study,
                    records,
                    numbers,
                    self._remarks(),
                    self._finalists,
                    self._device,
                    self._objectives,
                    self._importances(),
                    self._explanations,
                )
            )
            self._client.log_artifacts(self._parent, str(folder))
        self._client.set_tag(self._parent, NOTE, self._describe_front(len(records), members, first))
        self._drawn = len(records)

    def _standing(self) -> frozenset[int]:
        return frozenset(finalist.number for finalist in self._finalists if finalist.stands)

    def _remarks(self) -> str:
        later = describe_later(self._closing, len(self._records))
        return " ".join(filter(None, (later, describe_noise(self._canaries, self._records))))

    def _summarise(self, record: TrialRecord | Finalist) -> dict[str, Any]:
        return {**asdict(record), "run_id": self._children[record.number]}

    def _describe_front(
        self, trials: int, members: Sequence[TrialRecord], first: TrialRecord | None
    ) -> str:
        """Writes the parent's description, of which MLflow shows two lines until asked for more."""
        if not members:
            return markdown_table(members)
        shown = members[:POINTS_DESCRIBED]
        numbers, file = [record.number for record in members], "model.onnx"
        if self._finalists:
            standing = [finalist for finalist in self._finalists if finalist.stands]
            standing.sort(key=lambda finalist: finalist.figures.latency_ms or 0.0)
            numbers, file = [finalist.number for finalist in standing], "final/model.onnx"
        links = ", ".join(
            f"[{label(number)}]({self._page(self._children[number])})"
            for number in numbers[:POINTS_DESCRIBED]
        )
        runs = f"#/experiments/{self._experiment}/runs?viewStateShareKey=front&{FOR_MODELS}"
        page = self._page(self._parent, "front.html")
        omitted, remarks = max(0, len(numbers) - POINTS_DESCRIBED), self._remarks()
        return "\n".join(
            [
                f"**Front of {len(numbers)} after {format_counted(trials, 'trial')}**: "
                f"[interactive page]({page}), [table]({runs}) and "
                f"[charts]({runs}&compareRunsMode=CHART) of its runs",
                *([f"**{remarks}**"] if remarks else []),
                f"Fastest first: trials {links}; each holds its `{file}` under *Artifacts*.",
                "",
                finalist_markdown(self._finalists)
                if self._finalists
                else markdown_table(shown, first),
                *([f"The slower {omitted} are on the interactive page."] if omitted else []),
                "",
                "In any table of runs the filter `tags.pareto = 'true'` leaves the front.",
                "",
                f"![The front](get-artifact?path=front-small.png&run_uuid={self._parent})",
            ]
        )

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Ends the parent run as ``FINISHED``, ``KILLED`` or ``FAILED``.

        Trials since the front last changed are not on its page yet: they are added.
        """
        if kind is not None and issubclass(kind, TrackingLost):
            return  # it would not answer now either
        killed = kind is not None and issubclass(kind, KeyboardInterrupt)
        status = "KILLED" if killed else "FINISHED" if kind is None else "FAILED"
        try:
            with answering(self._config):
                if self._drawn < len(self._records):
                    self._log_front(self._records, front(self._records, self._objectives))
                self._client.set_terminated(self._parent, status)
        except TrackingLost as error:
            if kind is None:
                raise
            log.warning("%s", error)  # what ended the study is the news


def _card(kind: str) -> dict[str, Any]:
    """Returns what every chart of a saved view has."""
    return {
        "uuid": f"front-{kind.lower()}",
        "type": kind,
        "metricSectionId": SECTION,
        "deleted": False,
        "isGenerated": False,
    }


def _trial_number(run: Run) -> int:
    return int(run.data.tags["trial"])


def _milliseconds(seconds: float) -> int:
    return int(seconds * 1000)


def _metrics(record: TrialRecord) -> dict[str, float]:
    """Returns the known figures of a trial and the seconds of its stages."""
    figures = {name: getattr(record.figures, name) for name in FIGURES_AS_METRICS}
    known = {name: float(value) for name, value in figures.items() if value is not None}
    stages = {f"{stage}_s": seconds for stage, seconds in record.stage_s.items()}
    return {**known, **stages, "wall_s": record.wall_s, "reused_steps": record.reused_steps}


def _confirmed(finalist: Finalist) -> dict[str, float]:
    """Returns what the closing round found out about a point."""
    figures = finalist.figures
    found = {
        "test_accuracy": finalist.test_accuracy,
        "test_accuracy_low": finalist.test_low,
        "test_accuracy_high": finalist.test_high,
        **{f"final_{name}": getattr(figures, name) for name in FINAL_FIGURES},
    }
    return {name: float(value) for name, value in found.items() if value is not None}
