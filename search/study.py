"""The coordinator: asks Optuna for points, drives their trials, tells; knows no stage's meaning.

The study's journal is the only truth about which trials there are. A trial's whole record is
written into it before the trial is told, so whatever moment the process is killed at, the next
run goes on where this one stood: recorded trials are told, begun ones are driven again with their
finished steps answered by the store.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, Self, TypeVar

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState
from pydantic import TypeAdapter

from search.config import (
    GpConfig,
    NsgaConfig,
    RandomConfig,
    SamplerConfig,
    StudyConfig,
    TpeConfig,
)
from search.engine.base import Engine
from search.errors import ConfigError, InfeasiblePoint, StageFailed
from search.front import losses
from search.records import Figures, Point, TrialRecord
from search.space import Space, starting_points
from search.trial import Ending, Lab, Recipe, trial

log = logging.getLogger(__name__)
T = TypeVar("T")

RECORD = "record"
POINT = "point"
SETTINGS = "settings"
STARTED = "starting_points_queued"
IDENTITY = "identity"
# Settings that nobody gives as they are: they say where and with what latency was measured.
THE_DEVICE = ("device.name", "device.cpu", "device.runtime", "device.protocol")
RECORDS = TypeAdapter(TrialRecord)


@dataclass
class Effort:
    """What driving a recipe took; a step that is asked for again counts once.

    Attributes:
        stage_s: Seconds by stage, as first computed.
        reused_steps: Steps that were not computed for this recipe.
        keys: Of the steps counted.
    """

    stage_s: dict[str, float] = field(default_factory=dict)
    reused_steps: int = 0
    keys: set[str] = field(default_factory=set)

    def add(self, key: str, kind: str, seconds: float, reused: bool) -> None:
        """Counts a finished step."""
        if key not in self.keys:
            self.keys.add(key)
            self.stage_s[kind] = self.stage_s.get(kind, 0.0) + seconds
            self.reused_steps += reused


def drive(recipe: Recipe[T], engine: Engine, effort: Effort) -> T:
    """Runs a recipe's steps to its end, adding what they took to ``effort``.

    Raises:
        SearchError: As a step raised it.
    """
    answer = None
    while True:
        try:
            step = recipe.send(answer)
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]  # StopIteration is not generic
        done = engine.run(step)
        answer = done.result
        effort.add(step.key, step.kind, done.seconds, done.reused)


class Journal(AbstractContextManager["Journal"]):
    """A study's file, held by one process at a time.

    Args:
        folder: Where studies are kept; the journal is ``<name>.journal`` in it.
        name: The study's name.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.path = folder / f"{name}.journal"
        self._lock_path = folder / f"{name}.lock"
        self._lock: IO[str] | None = None

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = self._hold()
        self._lock.truncate(0)
        self._lock.write(str(os.getpid()))
        self._lock.flush()
        self._drop_torn_line()
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            if not self.path.exists():  # refused before it was begun
                self._lock_path.unlink(missing_ok=True)
            self._lock.close()

    def _hold(self) -> IO[str]:
        """Opens the lock file and takes its lock.

        Raises:
            ConfigError: When another process has it; names that process.
        """
        while True:
            lock = self._lock_path.open("a+")
            try:
                # Not flock, which forked processes, such as a data loader's, would hold on to.
                fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.seek(0)
                holder = lock.read().strip() or "unknown"
                lock.close()
                raise ConfigError(
                    f"study.name={self.path.stem} is being searched by process {holder}; wait for "
                    "it, stop it, or choose another study.name"
                ) from None
            with suppress(FileNotFoundError):
                if os.path.samestat(self._lock_path.stat(), os.fstat(lock.fileno())):
                    return lock
            lock.close()  # its last holder removed it in the meantime

    def storage(self) -> JournalStorage:
        """Opens the journal for Optuna."""
        return JournalStorage(JournalFileBackend(str(self.path), _AlreadyHeld(str(self.path))))

    def _drop_torn_line(self) -> None:
        """Cuts off a last line that a killed process left half written."""
        if not self.path.exists():
            return
        with self.path.open("rb+") as stream:
            content = stream.read()
            whole = content.rfind(b"\n") + 1
            if whole < len(content):
                log.warning("dropping a half-written line at the end of %s", self.path)
                stream.truncate(whole)


class _AlreadyHeld(JournalFileOpenLock):
    """Optuna's lock of the journal: nothing to do, the whole study is held by this process.

    Optuna's own lock files outlive a killed process and make the next one wait.
    """

    def acquire(self) -> bool:
        """Succeeds."""
        return True

    def release(self) -> None:
        """Does nothing."""


class Study:
    """A named search that can be stopped and continued.

    Args:
        journal: Its file, held by this process.
        config: Budgets, name and seed.
        sampler: How points are chosen.
        space: Where points are chosen from.
        objectives: Names of what the front trades.
        settings: Everything that must be the same when the study is continued, by dotted key.

    Raises:
        ConfigError: When the study exists and was begun with other settings.
    """

    def __init__(
        self,
        journal: Journal,
        config: StudyConfig,
        sampler: SamplerConfig,
        space: Space,
        objectives: tuple[str, ...],
        settings: Mapping[str, Any],
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._config = config
        self._sampler = sampler
        self._space = space
        self._objectives = objectives
        try:
            self._optuna = optuna.create_study(
                storage=journal.storage(),
                study_name=config.name,
                directions=["minimize"] * len(objectives),
                load_if_exists=True,
            )
            self.records = [
                RECORDS.validate_python(t.user_attrs[RECORD])
                for t in self._optuna.get_trials(deepcopy=False)
                if t.state.is_finished()
            ]
        except (ValueError, KeyError, TypeError, AssertionError) as error:  # as Optuna has it
            raise ConfigError(
                f"{journal.path}: is damaged, or another version wrote it "
                f"({type(error).__name__}); move it away to begin the study anew, or give another "
                "study.name=...; steps that are finished are not computed again"
            ) from error
        self._begin_or_compare(settings)
        if IDENTITY not in self._optuna.user_attrs:
            self._optuna.set_user_attr(IDENTITY, uuid.uuid4().hex)

    @property
    def identity(self) -> str:
        """Tells this study from others of its name, here or elsewhere."""
        return str(self._optuna.user_attrs[IDENTITY])

    def _begin_or_compare(self, settings: Mapping[str, Any]) -> None:
        begun = self._optuna.user_attrs.get(SETTINGS)
        # Until there is a trial, nothing binds: the teacher may have needed other settings.
        if begun is None or not self._optuna.get_trials(deepcopy=False):
            self._optuna.set_user_attr(SETTINGS, dict(settings))
            return
        for key in sorted({*begun, *settings}):
            if begun.get(key) != settings.get(key):
                given = (
                    "give that"
                    if key not in THE_DEVICE
                    else "latencies do not compare: go on there"
                )
                raise ConfigError(
                    f"{key}={_shown(settings.get(key))}: the study {self._config.name} was begun "
                    f"with {_shown(begun.get(key))}; {given}, or start another one with "
                    "study.name=..."
                )

    def _enqueue_starting_points(self, threads: int) -> None:
        """Queues the points that need no sampler, unless an earlier run did."""
        if STARTED in self._optuna.user_attrs:
            return
        present = len(self._optuna.get_trials(deepcopy=False))
        for point in starting_points(self._space, threads)[present:]:
            self._enqueue(point)
        self._optuna.set_user_attr(STARTED, True)

    def _enqueue(self, point: Point) -> None:
        params = self._space.params(point) if self._space.contains(point) else {}
        self._optuna.enqueue_trial(params, user_attrs={POINT: asdict(point)})

    def trials(self, lab: Lab, engine: Engine) -> Iterator[TrialRecord]:
        """Searches until a budget is used up, yielding every trial as it finishes."""
        self._enqueue_starting_points(lab.yardstick.best_threads)
        started = time.monotonic()
        while not self._is_spent(time.monotonic() - started):
            asked = self._ask()
            kept = asked.user_attrs.get(RECORD)
            if kept is None:
                record = self._try_point(asked, lab, engine)
                asked.set_user_attr(RECORD, RECORDS.dump_python(record, mode="json"))
            else:
                record = RECORDS.validate_python(kept)
            self._tell(asked, record)
            self.records.append(record)
            yield record

    def _is_spent(self, elapsed_s: float) -> bool:
        n_trials, timeout_s = self._config.n_trials, self._config.timeout_s
        return (n_trials is not None and len(self.records) >= n_trials) or (
            timeout_s is not None and elapsed_s >= timeout_s
        )

    def _ask(self) -> optuna.Trial:
        """Returns the trial that an earlier process left unfinished, else a new one."""
        trials = self._optuna.get_trials(deepcopy=False)
        left = next((t for t in trials if t.state == TrialState.RUNNING), None)
        if left is None:
            self._optuna.sampler = self._make_sampler(_next_number(trials))
            asked = self._optuna.ask()
        else:
            self._optuna.sampler = self._make_sampler(left.number)
            # Optuna offers no other way back to a running trial than its storage's number.
            asked = optuna.Trial(self._optuna, left._trial_id)
        if self._is_inside(asked):
            for name, distribution in self._space.distributions().items():
                _suggest(asked, name, distribution)
        return asked

    def _is_inside(self, asked: optuna.Trial) -> bool:
        """Tells whether the space holds the trial's point; the yardstick may lie outside."""
        enqueued = asked.user_attrs.get(POINT)
        return enqueued is None or self._space.contains(Point(**enqueued))

    def _make_sampler(self, number: int) -> BaseSampler:
        """Builds the sampler for one trial.

        Seeded by the trial's number, so that a continued study draws what an uninterrupted one
        would have drawn instead of repeating its first random points.
        """
        seed = (self._config.seed * 1_000_003 + number) % 2**32
        match self._sampler:
            case TpeConfig(n_startup_trials=n_startup_trials, multivariate=multivariate):
                return TPESampler(
                    n_startup_trials=n_startup_trials, multivariate=multivariate, seed=seed
                )
            case NsgaConfig(population_size=population_size):
                return NSGAIISampler(population_size=population_size, seed=seed)
            case GpConfig(n_startup_trials=n_startup_trials):
                return GPSampler(n_startup_trials=n_startup_trials, seed=seed)
            case RandomConfig():
                return RandomSampler(seed=seed)

    def _point(self, asked: optuna.Trial) -> Point:
        enqueued = asked.user_attrs.get(POINT)
        return self._space.point(asked.params) if enqueued is None else Point(**enqueued)

    def _try_point(self, asked: optuna.Trial, lab: Lab, engine: Engine) -> TrialRecord:
        """Drives one trial; whatever goes wrong inside it becomes its outcome."""
        point, started = self._point(asked), time.monotonic()
        effort = Effort()
        try:
            ending = drive(trial(point, lab), engine, effort)
        except InfeasiblePoint as error:
            ending = Ending("infeasible", str(error), Figures(), {}, None)
        except StageFailed as error:
            ending = Ending("failed", str(error), Figures(), {}, None)
        return TrialRecord(
            number=asked.number,
            point=point,
            outcome=ending.outcome,
            reason=ending.reason,
            figures=ending.figures,
            violations=ending.violations,
            deployable=ending.deployable,
            stage_s=effort.stage_s,
            reused_steps=effort.reused_steps,
            wall_s=time.monotonic() - started,
            finished_at=time.time(),
        )

    def _tell(self, asked: optuna.Trial, record: TrialRecord) -> None:
        values = losses(record.figures, self._objectives)
        told = self._optuna.get_trials(deepcopy=False)[asked.number].constraints
        for name, excess in record.violations.items():
            if name not in told:
                asked.set_constraint(name, excess)
        # A yardstick outside the space lacks parameters that samplers would miss: they pass over
        # failed trials.
        if record.outcome == "failed" or not self._is_inside(asked):
            self._optuna.tell(asked.number, state=TrialState.FAIL)
        elif values is None or record.figures.val_accuracy is None:
            # Without its accuracy it lacks a constraint too, and samplers want all or none.
            self._optuna.tell(asked.number, state=TrialState.PRUNED)
        else:
            self._optuna.tell(asked.number, values)


def _shown(value: object) -> str:
    """Writes a setting as the command line takes it."""
    return value if isinstance(value, str) else json.dumps(value)


def _suggest(asked: optuna.Trial, name: str, distribution: BaseDistribution) -> None:
    """Fixes one parameter of a trial: as enqueued or suggested before, else from the sampler."""
    match distribution:
        case FloatDistribution(low=low, high=high, log=log_scale):
            asked.suggest_float(name, low, high, log=log_scale)
        case IntDistribution(low=low, high=high, log=log_scale):
            asked.suggest_int(name, low, high, log=log_scale)
        case CategoricalDistribution(choices=choices):
            asked.suggest_categorical(name, choices)


def _next_number(trials: list[FrozenTrial]) -> int:
    """Returns the number that the next asked trial gets: the first waiting one's, or a new one."""
    waiting = [t.number for t in trials if t.state == TrialState.WAITING]
    return min(waiting, default=len(trials))
