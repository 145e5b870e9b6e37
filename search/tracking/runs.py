"""A study's runs in MLflow, found again or made."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

from mlflow.entities import Metric, Param, Run
from mlflow.tracking import MlflowClient

from search.errors import FileLost
from search.records.files import ReadFile
from search.records.measurement import Canary
from search.records.trial import Cost, TrialRecord
from search.tracking.pages import VIEW, known, run_page, saved_view, trial_metrics, trial_params

log = logging.getLogger(__name__)

PARENT: Final = "mlflow.parentRunId"
NOTE: Final = "mlflow.note.content"
IDENTITY: Final = "study.identity"
PAGE_RUNS = 1000


class Runs:
    """A study's parent run, and its trials' child runs as far as they were logged whole.

    Args:
        client: Of the tracking server or database.
        study: Name of the study, also of the experiment.
        tags: Facts about the study for its own run, among them which of its name it is.
        artifacts: Where a new experiment keeps its files; None for where the server likes.
        began_at: Seconds since the epoch when the study began; None for now.
        is_running: Whether the study is being searched; if not, its status stays as it is.

    Attributes:
        client: As given.
        experiment: Number of the experiment.
        parent: Number of the study's own run.
        is_new: Whether that was made just now.
        children: Number of every trial's run, by trial number.
        found: Those runs that were there before, as they were then, by trial number.
        on_front: Numbers of the trials that are tagged as the front.
        ended: How the study's run ended; None while it is running.
    """

    def __init__(
        self,
        client: MlflowClient,
        study: str,
        tags: Mapping[str, str],
        artifacts: str | None,
        began_at: float | None,
        is_running: bool,
    ) -> None:
        self.client = client
        self._canaries_logged: set[tuple[int, float]] | None = None
        self.experiment = self._find_experiment(study, artifacts)
        mine = f"tags.`{IDENTITY}` = '{tags[IDENTITY]}'"
        known = client.search_runs([self.experiment], mine)
        self.is_new = not known
        if known:
            run = self._without_twins(known)
        else:
            run = client.create_run(
                self.experiment,
                start_time=milliseconds(time.time() if began_at is None else began_at),
                tags=dict(tags),
                run_name=study,
            )
        self.parent: str = run.info.run_id
        self._tags = dict(run.data.tags)
        self._began_ms = int(run.info.start_time)
        self.ended = run.info.status if run.info.status != "RUNNING" else None
        if self.ended is not None and is_running:
            client.update_run(self.parent, "RUNNING")
            self.ended = None
        self.set_tags(tags)
        self.children: dict[int, str] = {}
        self.found: dict[int, Run] = {}
        self.on_front: frozenset[int] = frozenset()
        self._find_children()

    def _find_experiment(self, study: str, artifacts: str | None) -> str:
        found = self.client.get_experiment_by_name(study)
        if found is None:
            created: str = self.client.create_experiment(study, artifacts)
            return created
        if found.lifecycle_stage == "deleted":
            self.client.restore_experiment(found.experiment_id)
        return str(found.experiment_id)

    def _without_twins(self, runs: Sequence[Run]) -> Run:
        """Returns the study's run; a server that confirmed too late may have made it twice."""
        if len(runs) == 1:
            return runs[0]
        ordered = sorted(runs, key=lambda run: -sum(1 for _ in self._search("", run.info.run_id)))
        for twin in ordered[1:]:
            self.client.delete_run(twin.info.run_id)
        return ordered[0]

    def _find_children(self) -> None:
        """Finds the run of every trial logged whole; removes those cut off half-way."""
        on_front = set()
        for run in list(self.search("tags.kind = 'trial'")):
            number = trial_number(run)
            if run.info.status == "RUNNING" or number in self.children:
                self.client.delete_run(run.info.run_id)
                continue
            self.children[number] = run.info.run_id
            self.found[number] = run
            if run.data.tags.get("pareto") == "true":
                on_front.add(number)
        self.on_front = frozenset(on_front)

    def search(self, condition: str) -> Iterator[Run]:
        """Yields the child runs that meet a condition in MLflow's language."""
        return self._search(condition, self.parent)

    def _search(self, condition: str, parent: str) -> Iterator[Run]:
        mine = f"tags.`{PARENT}` = '{parent}'"
        token = None
        while True:
            page = self.client.search_runs(
                [self.experiment],
                f"{mine} and {condition}" if condition else mine,
                max_results=PAGE_RUNS,
                page_token=token,
            )
            yield from page
            token = page.token
            if not token:
                return

    @property
    def page(self) -> str:
        """Address of the study's run among MLflow's pages, after the slash."""
        return run_page(self.experiment, self.parent)

    # ---- of the study itself

    def tag(self, name: str) -> str | None:
        """Returns a tag of the study; None if it has none of that name."""
        return self._tags.get(name)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Sets those tags of the study that are not so yet."""
        for key, value in tags.items():
            if self._tags.get(key) != value:
                self.client.set_tag(self.parent, key, value)
                self._tags[key] = value

    def forget_tag(self, name: str) -> None:
        """Has a tag of the study set again the next time, whatever it is."""
        self._tags.pop(name, None)

    def has_view(self) -> bool:
        """Whether a view of the experiment's runs was saved."""
        return VIEW in self.client.get_experiment(self.experiment).tags

    def save_view(self, metrics: Sequence[str]) -> None:
        """Saves a view of the front's runs with some metrics."""
        self.client.set_experiment_tag(self.experiment, VIEW, saved_view(metrics))

    def end(self, status: str, ended_at: float) -> None:
        """Ends the study's run, unless it ended so already.

        Args:
            status: ``FINISHED``, ``KILLED`` or ``FAILED``.
            ended_at: Seconds since the epoch.
        """
        if self.ended != status:
            # Clocks are set back at times, but nothing ends before it began.
            ended_ms = max(milliseconds(ended_at), self._began_ms)
            self.client.set_terminated(self.parent, status, ended_ms)
            self.ended = status

    # ---- of its trials

    def tag_front(self, numbers: frozenset[int]) -> None:
        """Corrects ``pareto`` where it changed."""
        for number in sorted(self.on_front ^ numbers):
            if number in self.children:
                on_front = str(number in numbers).lower()
                self.client.set_tag(self.children[number], "pareto", on_front)
        self.on_front = numbers

    def forget(self, number: int) -> None:
        """Removes a trial's run, which shows something else."""
        self.client.delete_run(self.children.pop(number))
        self.on_front -= {number}

    def has_file(self, number: int, name: str, folder: str | None = None) -> bool:
        """Tells whether a trial's run has a file."""
        path = name if folder is None else f"{folder}/{name}"
        there = self.client.list_artifacts(self.children[number], folder)
        return any(file.path == path for file in there)

    def remove_strays(self) -> None:
        """Removes second runs of trials, which a slow server made when nobody waited any more."""
        for run in list(self.search("tags.kind = 'trial'")):
            if self.children.get(trial_number(run), run.info.run_id) != run.info.run_id:
                self.client.delete_run(run.info.run_id)

    def add_canaries(self, canaries: Sequence[Canary]) -> None:
        """Logs those of a study's canaries that are not logged yet."""
        if self._canaries_logged is None:
            history = self.client.get_metric_history(self.parent, "canary_ratio")
            self._canaries_logged = {(metric.step, metric.value) for metric in history}
        now_ms = milliseconds(time.time())
        for canary in canaries:
            told = canary.after_trials, canary.interval.ratio
            if told not in self._canaries_logged:
                metrics = [
                    Metric(f"canary_{name}", value, now_ms, canary.after_trials)
                    for name, value in known(asdict(canary.interval)).items()
                ]
                self.client.log_batch(self.parent, metrics=metrics)
                self._canaries_logged.add(told)

    def add(self, record: TrialRecord, note: str, model: ReadFile | None) -> str:
        """Makes the run of a trial and returns its identifier; it is still to be ended.

        Args:
            record: The trial.
            note: Its description.
            model: Reads its ONNX file; None where it has none.
        """
        end_ms = milliseconds(record.finished_at)
        run = self.client.create_run(
            self.experiment,
            start_time=milliseconds(record.finished_at - record.wall_s),
            run_name=f"trial {record.number}",
            tags={
                PARENT: self.parent,
                NOTE: note,
                "kind": "trial",
                "trial": str(record.number),
                "outcome": record.outcome,
                "pareto": "false",
                **({"reason": record.reason} if record.reason else {}),
                **_measuring_tags(record.figures),
            },
        )
        run_id: str = run.info.run_id
        metrics = [Metric(name, value, end_ms, 0) for name, value in trial_metrics(record).items()]
        params = [Param(name, value) for name, value in trial_params(record).items()]
        self.client.log_batch(run_id, metrics=metrics, params=params)
        if model is not None:
            self.keep_file(run_id, model, "model.onnx")
        return run_id

    def keep_file(self, run_id: str, read: ReadFile, name: str, folder: str | None = None) -> None:
        """Keeps a copy of a file with a run, under another name."""
        try:
            content = read()
        except FileLost as lost:
            log.warning("%s: a trial is logged without its model", lost)
            return
        with tempfile.TemporaryDirectory() as aside:
            named = Path(aside) / name
            named.write_bytes(content)
            self.client.log_artifact(run_id, str(named), folder)


def _measuring_tags(cost: Cost | None) -> dict[str, str]:
    return {} if cost is None else {"measuring": cost.quality, "energy": cost.energy_note}


def trial_number(run: Run) -> int:
    """Returns the number of the trial that a child run shows."""
    return int(run.data.tags["trial"])


def milliseconds(seconds: float) -> int:
    """Returns seconds since the epoch as MLflow counts them."""
    return int(seconds * 1000)


def status_of(kind: type[BaseException] | None) -> str:
    """Returns MLflow's word for how a study ends that ``kind`` breaks off."""
    if kind is None:
        return "FINISHED"
    return "KILLED" if issubclass(kind, KeyboardInterrupt) else "FAILED"
