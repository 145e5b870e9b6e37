"""Brings MLflow up to date beside a running search; knows nothing of how records came to be.

The study's journal keeps everything that MLflow shows, so nothing is lost while MLflow does not
answer: whoever opens a ``Tracker`` next, this process or a later one, logs what is missing.
"""

from __future__ import annotations

import logging
import shlex
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

from search import home
from search.benchmark.stillness import working
from search.config import TrackingConfig
from search.errors import (
    ConfigError,
    StorageLost,
    StudyTaken,
    TrackingLost,
    TrackingSilent,
    hide_passwords,
    one_line,
)
from search.records import Canary, Closing, ReadFile, TrialRecord
from search.report.formats import format_counted
from search.tracking.server import bounded, database_file
from search.tracking.tracker import Claim, Tracker, status_of

log = logging.getLogger(__name__)

KILLED = status_of(KeyboardInterrupt)
LONGEST_PAUSE_S = 30.0
# At the end of a search, in times of tracking.timeout_s.
LAST_ANSWERS = 3
# Who interrupts waits little, for what this machine itself still writes a bit longer.
INTERRUPTED_S, INTERRUPTED_FILE_S = 5.0, 10.0
SAID_AFTER_S = 3.0


@dataclass(frozen=True)
class Snapshot:
    """What MLflow should show of a study.

    Attributes:
        tags: Facts about its device.
        canaries: All so far.
        records: All finished trials.
        models: ONNX file of every trial that has one, by trial number.
        closing: The latest closing round; None if none was held.
        final_models: ONNX file of every finalist, by trial number.
        explanations: HTML that says what the finalists' time goes into.
    """

    tags: Mapping[str, str] = field(default_factory=dict)
    canaries: tuple[Canary, ...] = ()
    records: tuple[TrialRecord, ...] = ()
    models: Mapping[int, ReadFile] = field(default_factory=dict)
    closing: Closing | None = None
    final_models: Mapping[int, ReadFile] = field(default_factory=dict)
    explanations: str = ""

    @property
    def began_at(self) -> float | None:
        """Seconds since the epoch when the first trial began; None without trials."""
        return min((record.finished_at - record.wall_s for record in self.records), default=None)

    @property
    def ended_at(self) -> float | None:
        """Seconds since the epoch when the last trial ended; None without trials."""
        return max((record.finished_at for record in self.records), default=None)


def show(snapshot: Snapshot, tracker: Tracker) -> None:
    """Logs what of ``snapshot`` is not logged yet.

    Raises:
        TrackingLost: When the server or database went away.
    """
    tracker.log_device(snapshot.tags, snapshot.canaries)
    if snapshot.closing is not None:
        tracker.keep_front(snapshot.closing, snapshot.explanations)
    tracker.log_trials(snapshot.records, snapshot.models)
    if snapshot.closing is not None:
        tracker.log_finalists(snapshot.closing, snapshot.final_models, snapshot.explanations)


def pause_s(attempt: int) -> float:
    """Returns the seconds to wait after so many vain attempts, the first of which is 1."""
    return float(min(LONGEST_PAUSE_S, 2 ** (attempt - 1)))


class Delivery(AbstractContextManager["Delivery"]):
    """Logs a study in a thread of its own, for which the search never waits but at its end.

    Of what was handed over the newest counts. When MLflow is away, that is said once, and tried
    again after growing pauses until it is back.

    Args:
        connect: Opens the tracker of a study that began at a moment; called in that thread, and
            given what keeps the tracker's work still while somebody measures on this machine.
        config: Where the tracking server or database is.
        state: Folder of the working directory's state.
        arguments: By which ``search.sync`` finds the study, such as ``study=NAME``.
        note_ending: Told how the run would end if it were killed now, then how it ended.
        is_lost: Whether the user knows already that MLflow is away.
        pause: Seconds to wait after so many vain attempts.
    """

    def __init__(
        self,
        connect: Callable[[float | None, Claim], Tracker],
        config: TrackingConfig,
        state: Path,
        arguments: str,
        note_ending: Callable[[str], None],
        is_lost: bool = False,
        pause: Callable[[int], float] = pause_s,
    ) -> None:
        self._connect = connect
        self._config = config
        self._arguments = arguments
        self._note_ending = note_ending
        self._pause = pause
        self._is_file = database_file(config, state) is not None
        self._bounds = ExitStack()
        self._thread: threading.Thread | None = None
        # Both threads read and write what follows, holding this.
        self._changed = threading.Condition()
        self._snapshot = Snapshot()
        self._is_new = False
        self._is_lost = is_lost
        self._ending: str | None = None
        self._is_over = False
        self._is_given_up = False
        # Whether what fails at the end is tried again; see ``_lose``.
        self._is_patient = True
        self._bug: Exception | None = None
        self._tracker: Tracker | None = None

    # ---- the search's side

    @property
    def location(self) -> str:
        """Path of the study's run in MLflow's pages; nothing where MLflow never answered."""
        return "" if self._tracker is None else self._tracker.location

    def log_device(self, tags: Mapping[str, str], canaries: Sequence[Canary]) -> None:
        """Hands over what was found out about the device; see ``Tracker``."""
        known = {**self._snapshot.tags, **tags}
        self._hand_over(tags=known, canaries=tuple(canaries))

    def log_trials(self, records: Sequence[TrialRecord], models: Mapping[int, ReadFile]) -> None:
        """Hands over all finished trials, and lets them be delivered with all else.

        Args:
            records: All finished trials of the study.
            models: ONNX file of every trial that has one and was not handed over yet, by number.
        """
        known = {**self._snapshot.models, **models}
        self._hand_over(records=tuple(records), models=known)

    def log_finalists(
        self, closing: Closing, models: Mapping[int, ReadFile], explained: str
    ) -> None:
        """Hands over the latest closing round, which is delivered with the trials."""
        self._hand_over(closing=closing, final_models=dict(models), explanations=explained)

    def _hand_over(self, **changes: Any) -> None:
        with self._changed:
            self._snapshot = replace(self._snapshot, **changes)
            self._is_new = True
            self._changed.notify_all()
        if self._thread is None and "records" in changes:
            self._note_ending(KILLED)
            # Here and not in the thread: the environment is the whole process's.
            self._bounds.enter_context(bounded(self._config))
            self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)
            self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Waits a bounded time for what is left, and says what then is not delivered."""
        if self._thread is None:
            return  # nothing was begun, here or in MLflow
        if kind is not None and issubclass(kind, StudyTaken):
            self._abandon(self._thread)
            return
        status = status_of(kind)
        is_unwritable = kind is not None and issubclass(kind, StorageLost | OSError)
        with self._changed:
            self._is_patient = not is_unwritable
        try:
            # Where nothing can be written the ledger says already that the search was killed.
            if status != KILLED and not is_unwritable:
                self._note_ending(status)
        finally:
            self._take_leave(self._thread, status)

    def _abandon(self, thread: threading.Thread) -> None:
        """Leaves the study's runs to whoever has the study now."""
        with self._changed:
            self._is_given_up = True
            self._changed.notify_all()
        thread.join(self._config.timeout_s)

    def _take_leave(self, thread: threading.Thread, status: str) -> None:
        try:
            self._wait(status)
        finally:
            with self._changed:
                self._is_given_up = True
                self._changed.notify_all()
                is_over = self._is_over
            if is_over:
                thread.join()
            else:
                log.warning("%s", self._describe_left())

    def check(self) -> None:
        """Raises whatever but an outage went wrong in the thread; called when all else is done."""
        if self._bug is not None:
            raise self._bug

    def _wait(self, status: str) -> None:
        interrupted = status == KILLED
        patience_s = LAST_ANSWERS * self._config.timeout_s
        if interrupted:
            patience_s = min(patience_s, INTERRUPTED_FILE_S if self._is_file else INTERRUPTED_S)
        began = time.monotonic()
        said = False
        with self._changed:
            self._ending, self._is_new = status, True
            self._changed.notify_all()
            while not (self._is_over or self._is_given_up):
                waited_s = time.monotonic() - began
                # A file cannot hang: as long as all goes well there, all of it is written.
                may_give_up = interrupted or self._is_lost or not self._is_file
                if may_give_up and waited_s >= patience_s:
                    return
                if waited_s >= SAID_AFTER_S and not said:
                    said = True
                    limit = f", at most {patience_s:.0f} s" if may_give_up else ""
                    log.info("handing MLflow what it lacks yet%s", limit)
                self._changed.wait(min(1.0, max(0.01, patience_s - waited_s)))

    def _describe_left(self) -> str:
        finished = {record.number for record in self._snapshot.records}
        logged: frozenset[int] = frozenset() if self._tracker is None else self._tracker.logged
        left = len(finished - logged)
        # An earlier run may have logged some, which only MLflow could tell.
        bound = "up to " if self._tracker is None else ""
        verb = "is" if left == 1 else "are"
        what = f"{bound}{format_counted(left, 'trial')} {verb}" if left else "the study's end is"
        command = f"{home.command('sync')} {self._arguments}"
        if self._config.uri is not None:
            command += f" {shlex.quote(f'tracking.uri={hide_passwords(self._config.uri)}')}"
        return f"{what} not in MLflow yet; when it answers again: {command}"

    # ---- the thread's side

    def _work(self) -> None:
        attempt = 0
        tracker: Tracker | None = None
        try:
            while (given := self._await_news()) is not None:
                snapshot, ending = given
                try:
                    tracker = self._deliver(snapshot, ending, tracker)
                    attempt = 0
                except (TrackingLost, ConfigError, OSError) as error:
                    tracker, attempt = None, attempt + 1
                    # At the end time is short: a server that is back must be noticed.
                    pause = self._pause(attempt if ending is None else 1)
                    self._lose(error, pause, ending)
        except Exception as error:
            log.warning("tracking failed (%s); the search goes on", one_line(error))
            with self._changed:
                self._bug = error
        finally:
            with self._changed:
                self._is_over = self._is_over or self._bug is not None
                self._changed.notify_all()
            self._bounds.close()  # not before: MLflow's own patience is long

    def _await_news(self) -> tuple[Snapshot, str | None] | None:
        """Returns what is to be shown, and how the study ends if it does; None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_new or self._is_given_up or self._is_over)
            if self._is_given_up or self._is_over:
                return None
            self._is_new = False
            return self._snapshot, self._ending

    def _deliver(self, snapshot: Snapshot, ending: str | None, tracker: Tracker | None) -> Tracker:
        if tracker is None:
            # At its end the search measures no more, and waits.
            claim = partial(working, lambda: self._ending is not None)
            tracker = self._connect(snapshot.began_at, claim)
            self._tracker = tracker
        show(snapshot, tracker)
        if ending is not None:
            tracker.end(ending)
        with self._changed:
            if self._is_lost and not self._is_given_up:
                there = format_counted(len(snapshot.records), "trial")
                log.info("MLflow answers again, and has %s now", there)
            self._is_lost, self._is_over = False, ending is not None
            self._changed.notify_all()
        return tracker

    def _lose(self, error: Exception, seconds: float, ending: str | None) -> None:
        """Says so the first time, and waits; not when the search ends in the meantime.

        Gives up at the end where it is unlikely to help: when MLflow never answered this run, or
        the search itself ended because nothing can be written.
        """
        with self._changed:
            was_told, self._is_lost = self._is_lost or self._is_given_up, True
            if ending is not None and (self._tracker is None or not self._is_patient):
                self._is_given_up = True
                self._changed.notify_all()
            if not was_told:
                what = error.what if isinstance(error, TrackingSilent) else str(error)
                if isinstance(error, OSError):  # of its files in this folder
                    what = f"MLflow cannot be written ({error.strerror or error})"
                log.warning("%s", describe_outage(what))
            self._changed.wait_for(
                lambda: self._is_given_up or self._ending != ending, timeout=seconds
            )
            self._is_new = True


def describe_outage(what: str) -> str:
    """Returns the line that says why MLflow is not up to date.

    Args:
        what: Which server, and how it failed.
    """
    said = hide_passwords(" ".join(what.split()))
    return f"{said}; the search goes on, and MLflow gets its trials when it answers again"
