"""The live display of a study, from records alone."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.logging import RichHandler
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from search.config.study import StudyConfig
from search.engine.base import Event
from search.front.front import GrowingFront
from search.process.activity import Activity, listening
from search.process.logs import PROJECT, Discreet
from search.records.formats import (
    format_counted,
    format_duration,
    format_ms,
    format_share,
    format_speedup,
)
from search.records.trial import CompleteTrial, TrialRecord
from search.report.table import front_table

log = logging.getLogger(__name__)

ACTIVITIES = {
    "probe": "probing the device",
    "placement": "choosing where and how to train",
    "teacher": "training the teacher",
    "prune": "pruning",
    "trace": "tracing the graph",
    "export": "exporting",
    "quantize": "quantizing",
    "measure": "measuring on the device",
    "sweep": "choosing how much to prune",
    "reestimate": "taking statistics of batch normalisation anew",
    "rate": "looking for a learning rate",
    "finetune": "fine-tuning",
    "evaluate": "scoring the ONNX model",
    "evaluate_on_device": "scoring the ONNX model on the device",
    "confirm": "measuring the finalists together",
    "profile": "finding out where the time goes",
}
BEST_SHOWN = 8
TELL_EVERY_S = 30.0
FORGOTTEN_S = 10.0  # after which work that no longer tells of itself counts as over


@dataclass
class _Running:
    """A step under way.

    Attributes:
        kind: The step's; empty for what belongs to none.
        title: What it is done for.
        since_s: When it began, by the monotonic clock.
        told_s: When it last told how far it is.
        first: What it told first of what it is at now, and when.
        latest: What it told last.
    """

    kind: str
    title: str
    since_s: float
    told_s: float = 0.0
    first: tuple[Activity, float] | None = None
    latest: Activity | None = None

    def note(self, activity: Activity, now_s: float) -> None:
        """Notes how far it is."""
        known = self.first[0] if self.first is not None else None
        if known is None or (known.what, known.total) != (activity.what, activity.total):
            self.first = activity, now_s
        self.latest, self.told_s = activity, now_s

    def describe(self, now_s: float) -> str:
        """Returns what it does and how far it is, on one line."""
        parts, latest = [ACTIVITIES.get(self.kind, self.kind)], self.latest
        if latest is not None and latest.what and now_s - self.told_s > FORGOTTEN_S:
            latest = None  # it was a part of the step, and is over
        if latest is not None and latest.what:
            parts = [latest.what]
        if latest is not None and latest.total:
            parts.append(f"{latest.unit} {latest.done} of {latest.total}")
            if latest.loss is not None:
                parts.append(f"loss {latest.loss:.3g}")
        left_s = self._left_s()
        if left_s is not None:
            parts.append(f"about {format_duration(left_s)} left")
        else:
            parts.append(f"for {format_duration(now_s - self.since_s)}")
        return f"{self.title}: {', '.join(parts)}" if self.title else ", ".join(parts)

    def _left_s(self) -> float | None:
        """Estimates from its own pace; None while there is none."""
        if self.first is None or self.latest is None:
            return None
        (first, first_s), latest = self.first, self.latest
        if latest.done <= first.done:
            return None
        pace_s = (self.told_s - first_s) / (latest.done - first.done)
        return pace_s * (latest.total - latest.done)


class Progress(AbstractContextManager["Progress"]):
    """Shows a running study: a live display on a terminal, one line per trial elsewhere.

    Args:
        console: Where to write; whether it is a terminal decides the form.
        config: Name and budgets of the study.
        objectives: Names of what the front trades.
    """

    def __init__(self, console: Console, config: StudyConfig, objectives: Sequence[str]) -> None:
        self._console = console
        self._config = config
        self._done = 0
        self._front = GrowingFront(objectives)
        # Steps come from other threads too.
        self._lock = threading.Lock()
        self._running: dict[str, _Running] = {}
        self._own: _Running | None = None  # what this process does outside of steps
        self._stack = ExitStack()
        self._searching_since: float | None = None
        self._done_before = 0
        self._live = (
            Live(get_renderable=self._render, console=console, refresh_per_second=2, transient=True)
            if console.is_terminal
            else None
        )

    def __enter__(self) -> Self:
        """Begins to show; it can be left and entered again."""
        self._stack.enter_context(listening(self._note_own))
        if self._live is not None:
            self._live.start()
            self._stack.callback(self._live.stop)
        else:
            ended = threading.Event()
            ticker = threading.Thread(target=self._tell, args=(ended,), daemon=True)
            ticker.start()
            self._stack.callback(ticker.join)
            self._stack.callback(ended.set)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _tell(self, ended: threading.Event) -> None:
        """Writes a line every half minute about what runs."""
        while not ended.wait(TELL_EVERY_S):
            if running := self._describe_running():
                log.info("%s", "; ".join([*running, *self._describe_study()]))

    def note(self, event: Event) -> None:
        """Notes what happens to a step."""
        step, now_s = event.step, time.monotonic()
        with self._lock:
            match event.state:
                case "began":
                    self._own = None
                    self._running[step.key] = _Running(step.kind, event.title, now_s)
                case "goes on":
                    if step.key in self._running and event.activity is not None:
                        self._running[step.key].note(event.activity, now_s)
                case "ended":
                    self._running.pop(step.key, None)
        if event.state == "began" and step.kind == "teacher":
            log.info("preparing the teacher; it is kept for later runs")

    def _note_own(self, activity: Activity) -> None:
        with self._lock:
            if self._own is None:
                self._own = _Running("", "", time.monotonic())
            self._own.note(activity, time.monotonic())

    def _describe_running(self) -> list[str]:
        now_s = time.monotonic()
        with self._lock:
            running = list(self._running.values())
            if not running and self._own is not None and now_s - self._own.told_s < FORGOTTEN_S:
                running = [self._own]
            return [one.describe(now_s) for one in running]

    def _describe_study(self) -> list[str]:
        """Returns how far the study is, where it is searched."""
        if self._searching_since is None:
            return []
        left = self._time_left()
        return [f"{self._count()} done{', ' if left else ''}{left}"]

    def _count(self) -> str:
        total, done = self._config.n_trials, self._done
        return f"{done} of {total} trials" if total else format_counted(done, "trial")

    def begin(self, records: Sequence[TrialRecord]) -> None:
        """Notes that searching begins, with the trials of earlier runs."""
        for record in records:
            self._add(record)
        self._done_before = self._done
        self._searching_since = time.monotonic()
        name, wanted = self._config.name, self._config.n_trials
        counted = format_counted(self._done, "trial")
        if wanted is not None and self._done >= wanted:
            log.info("%s has %s already: for more, give study.n_trials above it", name, counted)
        elif records:
            log.info("continuing %s after %s", name, counted)
        if self._live is not None:
            self._live.refresh()

    def end(self) -> None:
        """Notes that the search is over; what comes now belongs to no trial."""
        self._searching_since = None

    def finished(self, record: TrialRecord) -> None:
        """Shows a trial that has just ended."""
        self._add(record)
        log.info("%s", describe(record, record in self._front.members))

    def _add(self, record: TrialRecord) -> None:
        # Here and not where it is drawn twice a second, perhaps while the device is measured.
        self._done += record.student_of is None
        self._front.add(record)

    def _render(self) -> RenderableType:
        members = self._front.members
        bar = Table.grid(padding=(0, 2))
        for can_wrap in (False, False, False, True):  # what goes on may be long
            bar.add_column(no_wrap=not can_wrap)
        running = self._describe_running() or ["starting"]
        bar.add_row(
            Text(self._config.name, style="bold"),
            ProgressBar(total=self._config.n_trials or None, completed=self._done, width=24),
            self._count(),
            Text("\n".join(running)),
        )
        bar.add_row(
            "",
            Text(f"front of {len(members)}"),
            f"hypervolume {self._front.hypervolume:.3f}",
            self._time_left(),
        )
        if not members:
            return bar
        # The fastest points are the reason for searching; on a long front the rest waits.
        return Group(bar, front_table(members[:BEST_SHOWN], self._front.original))

    def _time_left(self) -> str:
        """Estimates from this run's own pace; the time limit may come first."""
        new = self._done - self._done_before
        if self._searching_since is None or new == 0:
            return ""
        elapsed = time.monotonic() - self._searching_since
        limits = []
        if self._config.n_trials is not None:
            limits.append(elapsed / new * (self._config.n_trials - self._done))
        if self._config.timeout_s is not None:
            limits.append(self._config.timeout_s - elapsed)
        left_s = max(0.0, min(limits, default=0.0))
        return f"about {format_duration(left_s)} left"


def describe(record: TrialRecord, on_front: bool) -> str:
    """Returns one line about a finished trial."""
    point = record.point
    removed = None if record.figures is None else record.figures.channels_removed
    head = f"trial {record.number} {record.outcome}"
    if isinstance(record, CompleteTrial):
        figures = record.figures
        head += (
            f": {format_share(figures.val_accuracy)} at {format_ms(figures.latency_ms)}, "
            f"{format_speedup(figures)}"
        )
    else:
        head += f": {record.reason}"
    tail = (
        f"pruned {format_share(removed, 0)}, {point['bits']} bits, "
        f"{format_counted(point.whole('threads'), 'thread')}, {record.wall_s:.0f} s"
    )
    if on_front:
        tail += "; on the front so far"
    if record.student_of is not None:
        tail = f"trial {record.student_of}'s student, {tail}"
    elif isinstance(record, CompleteTrial) and record.reason:
        tail += f"; {record.reason}"
    return f"{head}; {tail}"


def configure_logging(console: Console, level: int = logging.INFO) -> None:
    """Sends the project's log to ``console``, below the live display where there is one.

    Args:
        console: Where to write.
        level: Least level that is shown there; others may want more of the log.
    """
    handler: Any
    if console.is_terminal:
        handler = RichHandler(
            console=console, show_level=False, show_path=False, log_time_format="%H:%M:%S"
        )
        handler.setFormatter(Discreet("%(message)s"))
    else:
        handler = logging.StreamHandler(console.file)
        handler.setFormatter(Discreet("%(asctime)s %(message)s", "%H:%M:%S"))
    handler.setLevel(level)
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger(PROJECT).setLevel(level)
