"""The live display of a study, from records alone; knows nothing of who runs what."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.logging import RichHandler
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from search.config import StudyConfig
from search.errors import hide_passwords
from search.front import GrowingFront
from search.records import TrialRecord
from search.report.formats import format_counted, format_ms, format_share, format_speedup
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
    "finetune": "fine-tuning",
    "evaluate": "scoring the ONNX model",
    "confirm": "measuring the finalists together",
    "profile": "finding out where the time goes",
}
BEST_SHOWN = 8


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
        self._activity, self._since = "starting", time.monotonic()
        self._searching_since: float | None = None
        self._done_before = 0
        self._live = (
            Live(get_renderable=self._render, console=console, refresh_per_second=2, transient=True)
            if console.is_terminal
            else None
        )

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def step(self, kind: str) -> None:
        """Notes which stage begins."""
        self._activity, self._since = ACTIVITIES.get(kind, kind), time.monotonic()
        if kind == "teacher":
            log.info("preparing the teacher; it is kept for later runs")

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
        total, done = self._config.n_trials, self._done
        bar = Table.grid(padding=(0, 2))
        for can_wrap in (False, False, False, True):  # what goes on may be long
            bar.add_column(no_wrap=not can_wrap)
        counted = f"{done} of {total} trials" if total else format_counted(done, "trial")
        trial = f"trial {self._front.trials}: " if self._searching_since is not None else ""
        waited = f"{trial}{self._activity} ({time.monotonic() - self._since:.0f} s)"
        bar.add_row(
            Text(self._config.name, style="bold"),
            ProgressBar(total=total or None, completed=done, width=24),
            counted,
            waited,
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
        left = max(0.0, min(limits, default=0.0))
        return f"about {left / 60:.0f} min left" if left > 90 else f"about {left:.0f} s left"


def describe(record: TrialRecord, on_front: bool) -> str:
    """Returns one line about a finished trial."""
    point, figures = record.point, record.figures
    head = f"trial {record.number} {record.outcome}"
    if record.outcome == "complete":
        head += (
            f": {format_share(figures.val_accuracy)} at {format_ms(figures.latency_ms)}, "
            f"{format_speedup(figures)}"
        )
    else:
        head += f": {record.reason}"
    tail = (
        f"pruned {format_share(figures.channels_removed, 0)}, {point.bits} bits, "
        f"{format_counted(point.threads, 'thread')}, {record.wall_s:.0f} s"
    )
    if record.student_of is not None:
        tail = f"trial {record.student_of}'s student, {tail}"
    if record.outcome == "complete" and record.reason:
        tail += f"; {record.reason}"
    return f"{head}; {tail}{'; on the front so far' if on_front else ''}"


class _Discreet(logging.Formatter):
    """Hides passwords, whoever wrote the message."""

    def format(self, record: logging.LogRecord) -> str:
        return hide_passwords(super().format(record))


def configure_logging(console: Console, level: int = logging.INFO) -> None:
    """Sends the project's log to ``console``, below the live display where there is one."""
    handler: Any
    if console.is_terminal:
        handler = RichHandler(
            console=console, show_level=False, show_path=False, log_time_format="%H:%M:%S"
        )
        handler.setFormatter(_Discreet("%(message)s"))
    else:
        handler = logging.StreamHandler(console.file)
        handler.setFormatter(_Discreet("%(asctime)s %(message)s", "%H:%M:%S"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger("search").setLevel(level)
