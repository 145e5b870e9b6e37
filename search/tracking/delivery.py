"""Brings MLflow up to date beside a running search.

The study's journal keeps everything that MLflow shows, so nothing is lost while MLflow does not
answer: whoever opens a ``Tracker`` next, this process or a later one, logs what is missing.
"""

from __future__ import annotations

import logging
import shlex
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from pathlib import Path
from typing import Self

from search.config.places import TrackingConfig
from search.devices.stillness import working
from search.errors import (
    ConfigError,
    StorageLost,
    StudyTaken,
    TrackingLost,
    TrackingSilent,
    hide_passwords,
    one_line,
)
from search.process import home
from search.records.formats import format_counted
from search.tracking.runs import status_of
from search.tracking.server import bounded, database_file
from search.tracking.snapshot import Snapshot, show
from search.tracking.tracker import Claim, Tracker

log = logging.getLogger(__name__)

KILLED = status_of(KeyboardInterrupt)
GIVEN_UP = "given up"  # by the search, which has waited long enough
LONGEST_PAUSE_S = 30.0
# At the end of a search, in times of tracking.timeout_s.
LAST_ANSWERS = 3
# Who interrupts waits little, for what this machine itself still writes a bit longer.
INTERRUPTED_S, INTERRUPTED_FILE_S = 5.0, 10.0
SAID_AFTER_S = 3.0


def pause_s(attempt: int) -> float:
    """Returns the seconds to wait after so many vain attempts, the first of which is 1."""
    return float(min(LONGEST_PAUSE_S, 2 ** (attempt - 1)))


class Delivery(AbstractContextManager["Delivery"]):
    """Logs a study in a thread of its own, for which the search never waits but at its end.

    What is logged is read off the study's ledger. When MLflow or the ledger's database is away,
    that is said once, and tried again after growing pauses until it is back.

    Args:
        look: Reads the ledger; called in that thread.
        connect: Opens the tracker for what was read; called in that thread, and given what keeps
            the tracker's work still while somebody measures on this machine.
        config: Where the tracking server or database is.
        state: Folder of the working directory's state.
        arguments: By which ``search.sync`` finds the study, such as ``study=NAME``.
        note_ending: Told how the run would end if it were killed now, then how it ended.
        is_lost: Whether the user knows already that MLflow is away.
        pause: Seconds to wait after so many vain attempts.
    """

    def __init__(
        self,
        look: Callable[[], Snapshot],
        connect: Callable[[Snapshot, Claim], Tracker],
        config: TrackingConfig,
        state: Path,
        arguments: str,
        note_ending: Callable[[str], None],
        is_lost: bool = False,
        pause: Callable[[int], float] = pause_s,
    ) -> None:
        self._look, self._connect = look, connect
        self._config = config
        self._arguments = arguments
        self._note_ending = note_ending
        self._pause = pause
        self._is_file = database_file(config, state) is not None
        self._bounds = ExitStack()
        self._thread: threading.Thread | None = None
        # Both threads read and write what follows, holding this.
        self._changed = threading.Condition()
        self._trials = 0
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

    def notify(self, trials: int) -> None:
        """Has what the ledger holds delivered, now that there are so many finished trials."""
        with self._changed:
            self._trials, self._is_new = trials, True
            self._changed.notify_all()
        if self._thread is None:
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
                    log.info("writing to MLflow what is missing there%s", limit)
                self._changed.wait(min(1.0, max(0.01, patience_s - waited_s)))

    def _describe_left(self) -> str:
        left = self._trials - (0 if self._tracker is None else len(self._tracker.logged))
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
            while (ending := self._await_news()) is not GIVEN_UP:
                try:
                    tracker = self._deliver(ending, tracker)
                    attempt = 0
                except (TrackingLost, StorageLost, ConfigError, OSError) as error:
                    if isinstance(error, StudyTaken):
                        raise  # it is another process's now
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

    def _await_news(self) -> str | None:
        """Returns how the study ends, None where it goes on; ``GIVEN_UP`` at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_new or self._is_given_up or self._is_over)
            if self._is_given_up or self._is_over:
                return GIVEN_UP
            self._is_new = False
            return self._ending

    def _deliver(self, ending: str | None, tracker: Tracker | None) -> Tracker:
        snapshot = self._look()
        if tracker is None:
            # At its end the search measures no more, and waits.
            claim = partial(working, lambda: self._ending is not None)
            tracker = self._connect(snapshot, claim)
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
