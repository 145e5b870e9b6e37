"""A finished record becomes an MLflow run; knows nothing of how records came to be."""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mlflow.entities import Metric, Param, Run

from search.config import TrackingConfig
from search.errors import hide_passwords
from search.front import GrowingFront
from search.records import Canary, Closing, Finalist, TrialRecord
from search.report import describe_later, describe_noise, front_page, front_png, halved
from search.tracking.pages import (
    FINAL_VIEW_METRICS,
    VIEW,
    VIEW_METRICS,
    confirmed_metrics,
    front_note,
    run_page,
    saved_view,
    trial_metrics,
    trial_note,
)
from search.tracking.server import address, answering, connect, database_file, explained

log = logging.getLogger(__name__)
Importances = Mapping[str, Mapping[str, float]]
Weigh = Callable[[Sequence[TrialRecord]], Importances]
Claim = Callable[[], AbstractContextManager[None]]
PARENT = "mlflow.parentRunId"
NOTE = "mlflow.note.content"
IDENTITY = "study.identity"
CLOSING = "closing.sha256"
PAGE_RUNS = 1000


class Tracker:
    """One study's parent run and its trials' child runs.

    What is logged already is found again and left alone, so that it can be opened anew at any
    time, also by another process. One that raised ``TrackingLost`` is of no more use: the next
    one finds out what arrived.

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
        began_at: Seconds since the epoch when the study began; None for now.
        claim: Entered for what takes this machine's processors, such as drawing; not for waiting
            until a server answers.
        is_running: Whether the study is being searched; if not, its status stays as it is.
        storage: Overrides by which commands find where the study is kept, after a space.

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
        importances: Weigh = lambda records: {},
        began_at: float | None = None,
        claim: Claim = nullcontext,
        is_running: bool = True,
        storage: str = "",
    ) -> None:
        self._config = config
        self._state = state
        self._study = study
        self._objectives = objectives
        self._importances = importances
        self._uri = address(config, state)
        artifacts = None if config.uri else (state.resolve() / "artifacts" / study).as_uri()
        self._on_front: frozenset[int] = frozenset()
        self._searched_front: frozenset[int] | None = None
        self._records: Sequence[TrialRecord] = ()
        self._front = GrowingFront(objectives)
        self._drawn: tuple[object, ...] | None = None
        self._canaries: tuple[Canary, ...] = ()
        self._canaries_logged: set[tuple[int, float]] | None = None
        self._closing: Closing | None = None
        self._explanations = ""
        self._device = f"{tags['device']} ({tags['device.cpu']})" if "device.cpu" in tags else ""
        self._storage = storage
        self._claim = claim
        # Writing a database takes processors here; a server's answer does not.
        self._share: Claim = nullcontext if database_file(config, state) is None else claim
        with self._share(), explained(config, state):
            self._client = connect(config, state)
            self._experiment = self._find_experiment(artifacts)
            named = {"kind": "study", "study": study, IDENTITY: identity}
            self._parent = self._open_parent({**named, **tags}, began_at, is_running)
            self._children = self._find_children()
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "config.yaml"
                path.write_text(hide_passwords(settings))
                self._client.log_artifact(self._parent, str(path))

    @property
    def location(self) -> str:
        """Path of the study's run in MLflow's pages, after the server's address."""
        return f"/{run_page(self._experiment, self._parent)}"

    @property
    def logged(self) -> frozenset[int]:
        """Numbers of the trials that are logged whole."""
        return frozenset(self._children)

    def _find_experiment(self, artifacts: str | None) -> str:
        found = self._client.get_experiment_by_name(self._study)
        if found is None:
            created: str = self._client.create_experiment(self._study, artifacts)
            return created
        if found.lifecycle_stage == "deleted":
            self._client.restore_experiment(found.experiment_id)
        return str(found.experiment_id)

    def _open_parent(
        self, tags: Mapping[str, str], began_at: float | None, is_running: bool
    ) -> str:
        mine = f"tags.`{IDENTITY}` = '{tags[IDENTITY]}'"
        known = self._client.search_runs([self._experiment], mine)
        run = self._without_twins(known) if known else self._create_parent(tags, began_at)
        run_id: str = run.info.run_id
        self._tags = dict(run.data.tags)
        self._began_ms = int(run.info.start_time)
        self._ended = run.info.status if run.info.status != "RUNNING" else None
        if self._ended is not None and is_running:
            self._client.update_run(run_id, "RUNNING")
            self._ended = None
        if not known or VIEW not in self._client.get_experiment(self._experiment).tags:
            self._introduce(run_id)
        self._set_tags(run_id, tags)
        return run_id

    def _create_parent(self, tags: Mapping[str, str], began_at: float | None) -> Run:
        start = _milliseconds(time.time() if began_at is None else began_at)
        return self._client.create_run(
            self._experiment, start_time=start, tags=dict(tags), run_name=self._study
        )

    def _without_twins(self, runs: Sequence[Run]) -> Run:
        """Returns the study's run; a server that confirmed too late may have made it twice."""
        if len(runs) == 1:
            return runs[0]
        ordered = sorted(runs, key=lambda run: -sum(1 for _ in self._search("", run.info.run_id)))
        for twin in ordered[1:]:
            self._client.delete_run(twin.info.run_id)
        return ordered[0]

    def _set_tags(self, parent: str, tags: Mapping[str, str]) -> None:
        """Sets those tags of the study that are not so yet."""
        for key, value in tags.items():
            if self._tags.get(key) != value:
                self._client.set_tag(parent, key, value)
                self._tags[key] = value

    def _introduce(self, parent: str) -> None:
        """Tells visitors of the experiment where its front is; saves a view of the front's runs."""
        traded = " against ".join(self._objectives)
        page = run_page(self._experiment, parent)
        note = f"[Open the study]({page}): its front of {traded}, and its models"
        self._client.set_experiment_tag(self._experiment, NOTE, note)
        self._save_view(VIEW_METRICS)

    def _save_view(self, metrics: Sequence[str]) -> None:
        self._client.set_experiment_tag(self._experiment, VIEW, saved_view(metrics))

    def _find_children(self) -> dict[int, str]:
        """Returns the run of every trial logged whole; removes those cut off half-way."""
        children: dict[int, str] = {}
        on_front = set()
        for run in list(self._search("tags.kind = 'trial'")):
            number = _trial_number(run)
            if run.info.status == "RUNNING" or number in children:
                self._client.delete_run(run.info.run_id)
                continue
            children[number] = run.info.run_id
            if run.data.tags.get("pareto") == "true":
                on_front.add(number)
        self._on_front = frozenset(on_front)
        return children

    def _remove_strays(self) -> None:
        """Removes runs that a slow server made after nobody waited for them any more."""
        known = set(self._children.values())
        for run in list(self._search("tags.kind = 'trial'")):
            if run.info.run_id not in known:
                self._client.delete_run(run.info.run_id)

    def _search(self, condition: str, parent: str | None = None) -> Iterator[Run]:
        """Yields the child runs that meet a condition, of this study unless told otherwise."""
        mine = f"tags.`{PARENT}` = '{parent or self._parent}'"
        token = None
        while True:
            page = self._client.search_runs(
                [self._experiment],
                f"{mine} and {condition}" if condition else mine,
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
        self._canaries = tuple(canaries)
        noisy = any(canary.is_noisy for canary in canaries)
        verdict = {"device.noisy": str(noisy).lower()} if canaries else {}
        with self._share(), answering(self._config, self._state):
            self._set_tags(self._parent, {**tags, **verdict})
            if canaries:
                self._log_canaries(canaries)

    def _log_canaries(self, canaries: Sequence[Canary]) -> None:
        if self._canaries_logged is None:
            history = self._client.get_metric_history(self._parent, "canary_ratio")
            self._canaries_logged = {(metric.step, metric.value) for metric in history}
        now_ms = _milliseconds(time.time())
        for canary in canaries:
            told = canary.after_trials, canary.interval.ratio
            if told not in self._canaries_logged:
                metrics = [
                    Metric(f"canary_{name}", value, now_ms, canary.after_trials)
                    for name, value in asdict(canary.interval).items()
                ]
                self._client.log_batch(self._parent, metrics=metrics)
                self._canaries_logged.add(told)

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
            records: All finished trials of the study; later calls append to them.
            models: ONNX file of every trial that has one, by trial number.
        """
        self._records = list(records)
        with answering(self._config, self._state):
            missing = [r for r in records[self._front.trials :] if r.number not in self._children]
            for record in records[self._front.trials :]:
                self._front.add(record)
                if record.number not in self._children:
                    with self._share():
                        run_id = self._log_trial(record, models.get(record.number))
                        self._log_progress(record)
                        # Last: a run that is not ended is taken for one cut off half-way.
                        status = "FAILED" if record.outcome == "failed" else "FINISHED"
                        ended_ms = _milliseconds(record.finished_at)
                        self._client.set_terminated(run_id, status, ended_ms)
                    self._children[record.number] = run_id
                    if any(finalist.number == record.number for finalist in self._finalists):
                        self._tags.pop(CLOSING, None)  # somebody deleted the run that had it
            if missing and missing[-1] != records[-1]:
                self._log_progress(records[-1])  # what counts is how it is at the end
            numbers = frozenset(record.number for record in self._front.members)
            if numbers != self._searched_front:
                with self._share():
                    self._log_front()
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
        self._closing, self._explanations = closing, explanations
        digest = _digest(closing)
        is_logged = self._tags.get(CLOSING) == digest
        with self._share(), answering(self._config, self._state):
            if not is_logged:
                self._confirm(closing, models)
            if self._drawn != self._picture():
                self._log_front()
            self._tag_front(self._standing())
            if not is_logged:
                self._save_view(FINAL_VIEW_METRICS)
                self._set_tags(self._parent, {CLOSING: digest})

    def _confirm(self, closing: Closing, models: Mapping[int, Path]) -> None:
        """Adds to the finalists' runs what the closing round found out about them."""
        numbers = {finalist.number for finalist in closing.finalists}
        for run in list(self._search("tags.finalist = 'true'")):
            if _trial_number(run) not in numbers:
                self._client.set_tag(run.info.run_id, "finalist", "false")
        known = {record.number: record for record in self._records}
        # The same round logged again, after it was cut off half-way, adds nothing.
        now_ms = _milliseconds(self._records[closing.after_trials - 1].finished_at)
        for finalist in closing.finalists:
            run_id = self._children[finalist.number]
            self._client.set_tag(run_id, NOTE, self._note(known[finalist.number], finalist))
            metrics = [
                Metric(name, v, now_ms, 0) for name, v in confirmed_metrics(finalist).items()
            ]
            self._client.log_batch(run_id, metrics=metrics)
            self._client.set_tag(run_id, "finalist", "true")
            self._log_file(run_id, models[finalist.number], "model.onnx", "final")

    def _log_trial(self, record: TrialRecord, model: Path | None) -> str:
        end_ms = _milliseconds(record.finished_at)
        run = self._client.create_run(
            self._experiment,
            start_time=_milliseconds(record.finished_at - record.wall_s),
            run_name=f"trial {record.number}",
            tags={
                PARENT: self._parent,
                NOTE: self._note(record),
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
        metrics = [Metric(name, value, end_ms, 0) for name, value in trial_metrics(record).items()]
        params = [Param(name, str(value)) for name, value in asdict(record.point).items()]
        self._client.log_batch(run_id, metrics=metrics, params=params)
        if model is not None:
            self._log_file(run_id, model, "model.onnx")
        return run_id

    def _note(self, record: TrialRecord, finalist: Finalist | None = None) -> str:
        return trial_note(record, finalist, run_page(self._experiment, self._parent))

    def _log_file(self, run_id: str, path: Path, name: str, folder: str | None = None) -> None:
        """Keeps a copy of a file with a run, under another name."""
        if not path.exists():
            log.warning("%s is gone: a trial is logged without its model", path)
            return
        with tempfile.TemporaryDirectory() as aside:
            named = Path(aside) / name
            named.write_bytes(path.read_bytes())
            self._client.log_artifact(run_id, str(named), folder)

    def _log_progress(self, latest: TrialRecord) -> None:
        now_ms = _milliseconds(latest.finished_at)
        values = {
            "hypervolume": self._front.hypervolume,
            "front_size": len(self._front.members),
            "trials_finished": self._front.trials,
        }
        # Not its number: beside others a trial may end before those that began earlier.
        step = self._front.trials - 1
        metrics = [Metric(name, v, now_ms, step) for name, v in values.items()]
        self._client.log_batch(self._parent, metrics=metrics)

    def _tag_front(self, numbers: frozenset[int]) -> None:
        """Corrects ``pareto`` where it changed."""
        for number in sorted(self._on_front ^ numbers):
            if number in self._children:
                on_front = str(number in numbers).lower()
                self._client.set_tag(self._children[number], "pareto", on_front)
        self._on_front = numbers

    def _log_front(self) -> None:
        first = self._front.original
        searched = [self._summarise(record) for record in self._front.members]
        finalists = [self._summarise(finalist) for finalist in self._finalists]
        summary = {
            "study": self._study,
            "objectives": list(self._objectives),
            "hypervolume": self._front.hypervolume,
            "original": None if first is None else self._summarise(first),
            "front": [f for f in finalists if f["stands"]] if finalists else searched,
            "searched_front": searched,
            "finalists": finalists,
        }
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "front.json").write_text(json.dumps(summary, indent=1))
            with self._claim():
                self._draw(folder)
            self._client.log_artifacts(self._parent, str(folder))
        note = front_note(
            self._experiment,
            self._parent,
            self._children,
            self._front,
            self._finalists,
            self._remarks(),
        )
        self._client.set_tag(self._parent, NOTE, note)
        self._drawn = self._picture()

    def _draw(self, folder: Path) -> None:
        records, numbers = self._records, [record.number for record in self._front.members]
        picture = front_png(self._study, records, numbers, self._finalists)
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
                self._importances(records),
                self._explanations,
                self._storage,
            )
        )

    def _picture(self) -> tuple[object, ...]:
        """Returns what the front's page is drawn from, to tell whether it is up to date."""
        return len(self._records), self._closing, self._explanations, self._canaries

    def _standing(self) -> frozenset[int]:
        return frozenset(finalist.number for finalist in self._finalists if finalist.stands)

    def _remarks(self) -> str:
        later = describe_later(self._closing, len(self._records))
        return " ".join(filter(None, (later, describe_noise(self._canaries, self._records))))

    def _summarise(self, record: TrialRecord | Finalist) -> dict[str, Any]:
        return {**asdict(record), "run_id": self._children[record.number]}

    def end(self, status: str | None, ended_at: float | None = None) -> None:
        """Ends the parent run, unless it ended so already.

        Trials since the front last changed are not on its page yet: they are added.

        Args:
            status: ``FINISHED``, ``KILLED`` or ``FAILED``; None for what it ended as, or killed.
            ended_at: Seconds since the epoch; None for now.

        Raises:
            TrackingLost: When the server or database went away.
        """
        status = status or self._ended or "KILLED"
        ended_ms = _milliseconds(time.time() if ended_at is None else ended_at)
        with self._share(), answering(self._config, self._state):
            if self._records and self._drawn != self._picture():
                self._log_front()
            self._remove_strays()
            if self._ended != status:
                # Clocks are set back at times, but nothing ends before it began.
                self._client.set_terminated(self._parent, status, max(ended_ms, self._began_ms))
                self._ended = status


def status_of(kind: type[BaseException] | None) -> str:
    """Returns MLflow's word for how a study ends that ``kind`` breaks off."""
    if kind is None:
        return "FINISHED"
    return "KILLED" if issubclass(kind, KeyboardInterrupt) else "FAILED"


def _digest(closing: Closing) -> str:
    return hashlib.sha256(json.dumps(asdict(closing), sort_keys=True).encode()).hexdigest()


def _trial_number(run: Run) -> int:
    return int(run.data.tags["trial"])


def _milliseconds(seconds: float) -> int:
    return int(seconds * 1000)
