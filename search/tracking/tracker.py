"""A finished record becomes an MLflow run."""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path

from mlflow.entities import Metric

from search.config.places import TrackingConfig
from search.errors import hide_passwords
from search.front.front import GrowingFront
from search.records.closing import Closing, Finalist
from search.records.files import ReadFile
from search.records.measurement import Canary
from search.records.trial import TrialRecord
from search.tracking.artifacts import Importances, Shown, draw, write_summary
from search.tracking.pages import (
    FINAL_VIEW_METRICS,
    VIEW_METRICS,
    confirmed_metrics,
    front_note,
    is_of,
    known,
    trial_note,
)
from search.tracking.runs import IDENTITY, NOTE, Runs, milliseconds, trial_number
from search.tracking.server import answering, connect, database_file, explained

log = logging.getLogger(__name__)
Weigh = Callable[[Sequence[TrialRecord]], Importances]
Claim = Callable[[], AbstractContextManager[None]]
CLOSING = "closing.sha256"
# Of the time: where trials are quick, the front is drawn anew for some of its changes only, and at
# the end.
DRAWING_SHARE = 0.1


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
        is_running: Whether the study is being searched; if not, its status stays as it is, and
            files that were removed are restored.
        storage: Overrides by which commands find where the study is kept, after a space.

    Attributes:
        restored: How many files were.

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
        # By itself MLflow would write beside a database into a folder as an address spells it.
        is_server = config.uri is not None and config.uri.startswith("http")
        artifacts = None if is_server else (state.resolve() / "artifacts" / study).as_uri()
        self._searched_front: frozenset[int] | None = None
        self._drawn_front: frozenset[int] | None = None
        self._draws_after_s = 0.0
        self._records: Sequence[TrialRecord] = ()
        self._front = GrowingFront(objectives)
        self._added: set[int] = set()  # numbers of the trials that it was grown by
        self._drawn: tuple[object, ...] | None = None
        self._canaries: tuple[Canary, ...] = ()
        self._closing: Closing | None = None
        self._explanations = ""
        self._device = f"{tags['device']} ({tags['device.cpu']})" if "device.cpu" in tags else ""
        self._storage = storage
        self._claim = claim
        self._restores = not is_running
        self.restored = 0
        # Writing a database takes processors here; a server's answer does not.
        self._share: Claim = nullcontext if database_file(config, state) is None else claim
        with self._share(), explained(config, state):
            named = {"kind": "study", "study": study, IDENTITY: identity}
            self._runs = Runs(
                connect(config, state), study, {**named, **tags}, artifacts, began_at, is_running
            )
            self._client = self._runs.client
            if self._runs.is_new or not self._runs.has_view():
                self._introduce()
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "config.yaml"
                path.write_text(hide_passwords(settings), "utf-8", "backslashreplace")
                self._client.log_artifact(self._runs.parent, str(path))

    @property
    def location(self) -> str:
        """Path of the study's run in MLflow's pages, after the server's address."""
        return f"/{self._runs.page}"

    @property
    def logged(self) -> frozenset[int]:
        """Numbers of the trials that are logged whole."""
        return frozenset(self._runs.children)

    def _introduce(self) -> None:
        """Tells visitors of the experiment where its front is; saves a view of the front's runs."""
        traded = " against ".join(self._objectives)
        note = f"[Open the study]({self._runs.page}): its front of {traded}, and its models"
        self._client.set_experiment_tag(self._runs.experiment, NOTE, note)
        self._runs.save_view(VIEW_METRICS)

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
            self._runs.set_tags({**tags, **verdict})
            if canaries:
                self._runs.add_canaries(canaries)

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

    def log_trials(self, records: Sequence[TrialRecord], models: Mapping[int, ReadFile]) -> None:
        """Logs the trials that are not logged yet, and the front when it changed.

        Args:
            records: All finished trials of the study.
            models: ONNX file of every trial that has one, by trial number.
        """
        self._records = list(records)
        with answering(self._config, self._state):
            self._forget_others()
            # Beside others a trial may end before those that began earlier.
            new = [record for record in records if record.number not in self._added]
            missing = [record for record in new if record.number not in self._runs.children]
            for record in new:
                self._front.add(record)
                self._added.add(record.number)
                if record.number not in self._runs.children:
                    with self._share():
                        run_id = self._runs.add(
                            record, self._note(record), models.get(record.number)
                        )
                        self._log_progress(record)
                        # Last: a run that is not ended is taken for one cut off half-way.
                        status = "FAILED" if record.outcome == "failed" else "FINISHED"
                        ended_ms = milliseconds(record.finished_at)
                        self._client.set_terminated(run_id, status, ended_ms)
                    self._runs.children[record.number] = run_id
                    if any(finalist.number == record.number for finalist in self._finalists):
                        self._runs.forget_tag(CLOSING)  # the run that had it is gone
                elif self._restores:
                    self._restore(record.number, models.get(record.number))
            if missing and missing[-1] != new[-1]:
                self._log_progress(new[-1])  # what counts is how it is at the end
            numbers = frozenset(record.number for record in self._front.members)
            if numbers != self._drawn_front and time.monotonic() >= self._draws_after_s:
                with self._share():
                    self._log_front()
                self._drawn_front = numbers
            if numbers != self._searched_front:
                with self._share():
                    self._runs.tag_front(self._standing() if self._closing else numbers)
                self._searched_front = numbers

    def _forget_others(self) -> None:
        """Removes runs that show other trials than the study holds under their numbers.

        They stay behind where the study's ledger lost what it held, and was gone on with.
        """
        held = {record.number: record for record in self._records}
        others = [
            number
            for number, run in self._runs.found.items()
            if number in held
            and not is_of(
                held[number], run.data.tags.get("outcome"), run.data.metrics, run.data.params
            )
        ]
        self._runs.found = {n: run for n, run in self._runs.found.items() if n not in held}
        if others:
            log.warning(
                "MLflow showed another trial than the study holds as number %s: it is logged anew",
                ", ".join(map(str, sorted(others))),
            )
        for number in others:
            self._runs.forget(number)

    def _restore(
        self,
        number: int,
        read: ReadFile | None,
        name: str = "model.onnx",
        folder: str | None = None,
    ) -> None:
        """Keeps a file with a trial's run again that somebody removed."""
        if read is not None and not self._runs.has_file(number, name, folder):
            self._runs.keep_file(self._runs.children[number], read, name, folder)
            self.restored += self._runs.has_file(number, name, folder)

    def log_finalists(
        self, closing: Closing, models: Mapping[int, ReadFile], explanations: str = ""
    ) -> None:
        """Logs the closing round; its front takes the place of the search's.

        Args:
            closing: What it found.
            models: ONNX file of every finalist, by trial number.
            explanations: HTML that says what their time goes into.
        """
        self._closing, self._explanations = closing, explanations
        digest = _digest(closing)
        is_logged = self._runs.tag(CLOSING) == digest
        with self._share(), answering(self._config, self._state):
            if not is_logged:
                self._confirm(closing, models)
            elif self._restores:
                for finalist in closing.finalists:
                    self._restore(finalist.number, models[finalist.number], folder="final")
            if self._drawn != self._picture():
                self._log_front()
            self._runs.tag_front(self._standing())
            if not is_logged:
                self._runs.save_view(FINAL_VIEW_METRICS)
                self._runs.set_tags({CLOSING: digest})

    def _confirm(self, closing: Closing, models: Mapping[int, ReadFile]) -> None:
        """Adds to the finalists' runs what the closing round found out about them."""
        numbers = {finalist.number for finalist in closing.finalists}
        for run in list(self._runs.search("tags.finalist = 'true'")):
            if trial_number(run) not in numbers:
                self._client.set_tag(run.info.run_id, "finalist", "false")
        known = {record.number: record for record in self._records}
        # The same round logged again, after it was cut off half-way, adds nothing.
        now_ms = milliseconds(self._records[closing.after_trials - 1].finished_at)
        for finalist in closing.finalists:
            run_id = self._runs.children[finalist.number]
            self._client.set_tag(run_id, NOTE, self._note(known[finalist.number], finalist))
            metrics = [
                Metric(name, v, now_ms, 0) for name, v in confirmed_metrics(finalist).items()
            ]
            self._client.log_batch(run_id, metrics=metrics)
            self._client.set_tag(run_id, "finalist", "true")
            self._runs.keep_file(run_id, models[finalist.number], "model.onnx", "final")
        self._log_front_size(Metric("front_size", -1, now_ms, closing.after_trials - 1))

    def _log_front_size(self, earliest: Metric) -> None:
        """Logs how many finalists stand, after what the search said."""
        history = self._client.get_metric_history(self._runs.parent, "front_size")
        last = max([earliest, *history], key=lambda metric: (metric.step, metric.timestamp))
        if last.value != len(self._standing()):
            # Of two values at one step the later one counts.
            size = Metric("front_size", len(self._standing()), last.timestamp + 1, last.step)
            self._client.log_batch(self._runs.parent, metrics=[size])

    def _note(self, record: TrialRecord, finalist: Finalist | None = None) -> str:
        return trial_note(record, finalist, self._runs.page)

    def _log_progress(self, latest: TrialRecord) -> None:
        now_ms = milliseconds(latest.finished_at)
        # A closing round's front stands until the next one, as the tag pareto says.
        is_closed = self._closing is not None and self._front.trials > self._closing.after_trials
        values = {
            "hypervolume": self._front.hypervolume,
            "front_size": len(self._standing() if is_closed else self._front.members),
            "trials_finished": self._front.trials,
        }
        step = self._front.trials - 1
        metrics = [Metric(name, v, now_ms, step) for name, v in known(values).items()]
        self._client.log_batch(self._runs.parent, metrics=metrics)

    def _log_front(self) -> None:
        begun_s = time.monotonic()
        shown = self._shown()
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_summary(shown, folder)
            with self._claim():
                draw(shown, self._importances(self._records), folder)
            self._client.log_artifacts(self._runs.parent, str(folder))
        note = front_note(
            self._runs.experiment,
            self._runs.parent,
            self._runs.children,
            self._front,
            self._finalists,
            shown.remarks,
        )
        self._client.set_tag(self._runs.parent, NOTE, note)
        self._drawn = self._picture()
        now_s = time.monotonic()
        self._draws_after_s = now_s + (now_s - begun_s) / DRAWING_SHARE

    def _shown(self) -> Shown:
        return Shown(
            self._study,
            self._storage,
            self._device,
            tuple(self._objectives),
            self._records,
            self._front,
            self._closing,
            self._canaries,
            self._explanations,
            self._runs.children,
        )

    def _picture(self) -> tuple[object, ...]:
        """Returns what the front's page is drawn from, to tell whether it is up to date."""
        return len(self._records), self._closing, self._explanations, self._canaries

    def _standing(self) -> frozenset[int]:
        return frozenset(finalist.number for finalist in self._finalists if finalist.stands)

    def end(self, status: str | None, ended_at: float | None = None) -> None:
        """Ends the parent run, unless it ended so already.

        Trials since the front last changed are not on its page yet: they are added.

        Args:
            status: ``FINISHED``, ``KILLED`` or ``FAILED``; None for what it ended as, or killed.
            ended_at: Seconds since the epoch; None for now.

        Raises:
            TrackingLost: When the server or database went away.
        """
        status = status or self._runs.ended or "KILLED"
        ended_at = time.time() if ended_at is None else ended_at
        with self._share(), answering(self._config, self._state):
            if self._records and self._drawn != self._picture():
                self._log_front()
            if self._records and (unheld := sorted(self._runs.found)):
                numbers = ", ".join(map(str, unheld))
                log.warning("MLflow showed trial %s, which the study does not hold", numbers)
                for number in unheld:
                    self._runs.forget(number)
                self._runs.found.clear()
            self._runs.remove_strays()
            self._runs.end(status, ended_at)


def _digest(closing: Closing) -> str:
    return hashlib.sha256(json.dumps(asdict(closing), sort_keys=True).encode()).hexdigest()
