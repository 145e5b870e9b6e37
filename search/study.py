"""The coordinator: asks Optuna for points, drives their trials, tells; knows no stage's meaning.

The study's ledger is the only truth about which trials there are. A trial's whole record is
written into it before the trial is told, so whatever moment the process is killed at, the next
run goes on where this one stood: recorded trials are told, begun ones are driven again with their
finished steps answered by the store.
"""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import optuna
from optuna.distributions import check_distribution_compatibility
from optuna.samplers import BaseSampler
from optuna.trial import TrialState
from pydantic import TypeAdapter

from search.archive import (
    CLOSING,
    CLOSINGS,
    CONFIGURATION,
    ENDING,
    FORMAT,
    IDENTITY,
    LAB,
    LABS,
    OWN_FORMAT,
    RECORD,
    SETTINGS,
    TAGS,
    check_format,
    closing_of,
    explained,
    read_record,
    records_of,
    write_record,
)
from search.attempt import Attempt
from search.config import PolicyConfig, SamplerConfig, StudyConfig, TpeConfig
from search.deployments import Hope, worth_deploying
from search.driving import drive_together
from search.engine.base import Engine
from search.errors import ConfigError
from search.experience import Experience
from search.front import losses
from search.judging import Judge
from search.records import Closing, Point, TrialRecord
from search.sampling import Memory, make_sampler, suggest
from search.space import Space, starting_points
from search.storage import Ledger
from search.trial import Lab, Referee, Unjudged, violated

log = logging.getLogger(__name__)

POINT = "point"
RUNGS = "rungs"
PLAN = "plan"
# Settings that nobody gives as they are: they say where and with what latency was measured.
THE_DEVICE = ("device.name", "device.cpu", "device.runtime", "device.protocol")


@dataclass(frozen=True)
class Plan:
    """What a study does before and beside its sampler.

    Attributes:
        samples_deployments: Whether bits and threads are sampled like all else.
        starting: Points to begin with.
        earlier: Points of other studies, to try as they are.
    """

    samples_deployments: bool
    starting: list[Point]
    earlier: list[Point]

    def training(self, point: Point) -> Point:
        """Returns what of a point decides its training."""
        return point if self.samples_deployments else replace(point, bits=0, threads=0)


@dataclass
class _Run:
    """What a run of a study works with.

    Attributes:
        lab: Where trials run.
        engine: Does their steps.
        plan: Of the study.
        known: What the trials so far have taught.
        left: Trials that an earlier process began.
        waiting: How many it was about to begin.
        ahead: Planned points whose training was not begun, the next one first.
    """

    lab: Lab
    engine: Engine
    plan: Plan
    known: Experience
    left: list[optuna.Trial]
    waiting: int
    ahead: list[Point]

    def begin(self, point: Point) -> None:
        """Notes that a point is being tried."""
        training = self.plan.training(point)
        self.ahead = [one for one in self.ahead if self.plan.training(one) != training]


PLANS, POINTS = TypeAdapter(Plan), TypeAdapter(Point)
REACHED = TypeAdapter(list[tuple[float, list[float]]])


class Study:
    """A named search that can be stopped and continued.

    Args:
        ledger: What it is written in, held by this process.
        config: Budgets, name and seed.
        sampler: How points are chosen.
        policy: What is done to save training.
        space: Where points are chosen from.
        objectives: Names of what the front trades.
        settings: Everything that must be the same when the study is continued, by dotted key.
        earlier: Points of other studies to try early.

    Raises:
        ConfigError: When the study exists and was begun with other settings.
    """

    def __init__(
        self,
        ledger: Ledger,
        config: StudyConfig,
        sampler: SamplerConfig,
        policy: PolicyConfig,
        space: Space,
        objectives: tuple[str, ...],
        settings: Mapping[str, Any],
        earlier: Sequence[Point] = (),
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._config = config
        self._sampler = sampler
        self._policy = policy
        self._earlier = earlier
        self._space = space
        self._sampled = space
        self._objectives = objectives
        self._under_way: list[Attempt] = []
        # Losses by rung and trial, as the ledger holds them too.
        self._reached: dict[float, dict[int, list[float]]] = {}
        with explained(ledger):
            self._optuna = optuna.create_study(
                storage=ledger.storage(),
                study_name=config.name,
                directions=["minimize"] * len(objectives),
                load_if_exists=True,
            )
            check_format(self._optuna, ledger)
            self._keep(FORMAT, OWN_FORMAT)
            self.records = records_of(self._optuna)
            self._memory = Memory(self._optuna) if isinstance(sampler, TpeConfig) else None
        self._begin_or_compare(settings)
        with explained(ledger):
            self._check_kept()
        if IDENTITY not in self._optuna.user_attrs:
            self._optuna.set_user_attr(IDENTITY, uuid.uuid4().hex)

    def _check_kept(self) -> None:
        """Reads what is needed later on, so that damage shows before anything is begun.

        Raises:
            ValueError: If something is damaged.
        """
        closing_of(self._optuna)
        begun, points = self._optuna.get_trials(deepcopy=False), []
        if PLAN in self._optuna.user_attrs:
            plan: Plan = PLANS.validate_python(self._optuna.user_attrs[PLAN])
            points += [*plan.starting, *plan.earlier]
        for number, kept in ((one.number, one.user_attrs) for one in begun):
            for share, lost in REACHED.validate_python(kept.get(RUNGS, [])):
                self._reached.setdefault(share, {})[number] = lost
            points += [POINTS.validate_python(kept[POINT])] if POINT in kept else []
            points += [read_record(kept[RECORD]).point] if RECORD in kept else []
        trained: set[int | None] = {None}
        for record in self.records:
            if record.student_of not in trained:
                raise ValueError(f"trial {record.number} deploys a network that none trained")
            if record.student_of is None and record.deployable is not None:
                trained.add(record.number)
        counts = self._space.thread_counts()
        if begun and any(point.threads not in counts for point in points):
            raise ValueError("a point has threads that none can have")
        own = self._space.distributions()
        for name, other in ((n, d) for one in begun for n, d in one.distributions.items()):
            if name in own:
                check_distribution_compatibility(own[name], other)

    @property
    def identity(self) -> str:
        """Tells this study from others of its name, here or elsewhere."""
        return str(self._optuna.user_attrs[IDENTITY])

    def keep_lab(self, lab: Lab, configuration: str) -> None:
        """Writes down what trials are compared with, for those who read the study later.

        Args:
            lab: The study's own.
            configuration: Of this run, resolved, as YAML without passwords.
        """
        self._keep(CONFIGURATION, configuration)
        # Last: where it stands, a study can be read.
        self._keep(LAB, LABS.dump_python(lab, mode="json"))

    @property
    def closing(self) -> Closing | None:
        """The latest closing round; None if none was held."""
        return closing_of(self._optuna)

    def keep_closing(self, closing: Closing) -> None:
        """Writes down the closing round; it replaces that of an earlier run."""
        self._keep(CLOSING, CLOSINGS.dump_python(closing, mode="json"))

    def keep_tags(self, tags: Mapping[str, str]) -> None:
        """Writes down facts about the study for those who show it later."""
        self._keep(TAGS, dict(tags))

    def keep_ending(self, status: str) -> None:
        """Writes down how this run ends, or would if it were killed now."""
        self._keep(ENDING, status)

    def _keep(self, name: str, value: Any) -> None:
        # The journal only grows: what stands in it already is not written again.
        if self._optuna.user_attrs.get(name) != value:
            self._optuna.set_user_attr(name, value)

    def _begin_or_compare(self, settings: Mapping[str, Any]) -> None:
        begun = self._optuna.user_attrs.get(SETTINGS)
        # Until there is a trial, nothing binds: the teacher may have needed other settings.
        if begun is None or not self._optuna.get_trials(deepcopy=False):
            self._optuna.set_user_attr(SETTINGS, dict(settings))
            return
        for key in sorted({*begun, *settings}):
            if begun.get(key) != settings.get(key):
                now, then = _shown(settings.get(key)), _shown(begun.get(key))
                other = "or start another one with study.name=..."
                if key in THE_DEVICE:
                    raise ConfigError(
                        f"the device is {now}, but the study {self._config.name} was begun on "
                        f"{then}; latencies do not compare: go on there, {other}"
                    )
                raise ConfigError(
                    f"{key}={now}: the study {self._config.name} was begun with {then}; give "
                    f"that, {other}"
                )

    def trials(self, lab: Lab, engine: Engine) -> Iterator[TrialRecord]:
        """Searches until a budget is used up, yielding every trial as it finishes.

        After each trial that Optuna asked for come those that deploy its student otherwise.
        """
        if self._config.n_trials == 0:
            return
        plan = self._make_plan(lab)
        if not plan.samples_deployments:
            self._sampled = self._space.fix(
                bits=self._space.bit_widths()[0], threads=self._space.thread_counts()[0]
            )
        left = []
        for asked in self._unfinished():
            if RECORD in asked.user_attrs:  # only the telling was cut off
                yield self._tell(asked, read_record(asked.user_attrs[RECORD]))
            else:
                left.append(asked)
        known = Experience(self.records, lab, self._objectives)
        waiting = len(self._optuna.get_trials(deepcopy=False, states=(TrialState.WAITING,)))
        run = _Run(lab, engine, plan, known, left, waiting, self._left_over(plan))
        deadline = time.monotonic() + (self._config.timeout_s or float("inf"))

        def begin() -> Attempt | None:
            attempt = self._begin(run) if time.monotonic() < deadline else None
            if attempt is not None:
                self._under_way.append(attempt)
            return attempt

        for attempt in drive_together(begin, engine.slots):
            self._under_way.remove(attempt)
            record = self._finish(attempt)
            known.add(record)
            yield record

    def _begin(self, run: _Run) -> Attempt | None:
        """Begins the next trial; None while there is none, or for good when all were asked for.

        Deployments of trained students come first. Before the planned points are through, which
        show whose turn it is, bits and threads are only tried where they are new. Samplers are not
        told of them: they would take many points for one training.
        """
        is_spent = self._is_spent(run)
        hope = self._next_deployment(run, only_new=bool(run.ahead) and not is_spent)
        if hope is not None:
            attempt = Attempt(hope.point, run.lab, run.engine, Unjudged(), student_of=hope.student)
        elif is_spent and not run.left:
            return None
        else:
            asked = self._ask(run)
            point, referee = self._point(asked), self._referee(asked, run)
            attempt = Attempt(point, run.lab, run.engine, referee, asked=asked)
        run.begin(attempt.point)
        return attempt

    def _finish(self, attempt: Attempt) -> TrialRecord:
        """Writes down how an attempt ended."""
        if attempt.asked is not None:
            record = attempt.record(attempt.asked.number)
            attempt.asked.set_user_attr(RECORD, write_record(record))
            return self._tell(attempt.asked, record)
        record = attempt.record(len(self._optuna.get_trials(deepcopy=False)))
        attributes = {POINT: asdict(attempt.point), RECORD: write_record(record)}
        # Samplers pass over failed trials.
        self._optuna.add_trial(
            optuna.trial.create_trial(state=TrialState.FAIL, user_attrs=attributes)
        )
        self.records.append(record)
        return record

    def _prices_bits(self, lab: Lab) -> bool:
        """Whether bits count for more than the latency by which deployments are chosen."""
        others, limits = set(self._objectives) - {"accuracy", "latency"}, lab.bench.limits
        return bool(others or limits.max_size_bytes or limits.max_memory_bytes)

    def _make_plan(self, lab: Lab) -> Plan:
        """Returns what the study's first run planned, and the points that this one brings."""
        kept = self._optuna.user_attrs.get(PLAN)
        earlier = [self._space.nearest(point) for point in self._earlier]
        if kept is None:
            joint = self._policy.deployments == 0 or self._prices_bits(lab)
            threads = lab.yardstick.best_threads
            plan = Plan(joint, starting_points(self._space, threads, joint), earlier)
        else:
            plan = PLANS.validate_python(kept)
            plan = replace(plan, earlier=list(dict.fromkeys([*plan.earlier, *earlier])))
        self._optuna.set_user_attr(PLAN, PLANS.dump_python(plan, mode="json"))
        return plan

    def _is_spent(self, run: _Run) -> bool:
        asked = run.known.asked + sum(attempt.asked is not None for attempt in self._under_way)
        return self._config.n_trials is not None and asked >= self._config.n_trials

    def _unfinished(self) -> list[optuna.Trial]:
        """Returns the trials that an earlier process left running."""
        # Optuna offers no other way back to a running trial than its storage's number.
        return [
            optuna.Trial(self._optuna, trial._trial_id)
            for trial in self._optuna.get_trials(deepcopy=False)
            if trial.state == TrialState.RUNNING
        ]

    def _ask(self, run: _Run) -> optuna.Trial:
        """Returns a trial that an earlier process left unfinished, else a new one."""
        if run.left:
            asked = run.left.pop(0)
        else:
            if run.waiting:
                run.waiting -= 1
            elif run.ahead:
                self._enqueue(run.ahead[0])
            asked = self._optuna.ask()
        self._optuna.sampler = self._make_sampler(asked.number)
        if self._is_inside(asked):
            for name, distribution in self._sampled.distributions().items():
                suggest(asked, name, distribution)
        return asked

    def _make_sampler(self, number: int) -> BaseSampler:
        under_way = [a.asked for a in self._under_way if a.asked is not None]
        dimensions, seed = self._sampled.distributions(), self._seed(number)
        return make_sampler(self._sampler, dimensions, seed, self._memory, under_way)

    def _left_over(self, plan: Plan) -> list[Point]:
        """Returns the planned points whose training was not tried, the first ones first."""
        tried = {plan.training(record.point) for record in self.records}
        planned = [*plan.starting, *plan.earlier]
        return [point for point in planned if plan.training(point) not in tried]

    def _enqueue(self, point: Point) -> None:
        params = self._space.params(point) if self._space.contains(point) else {}
        sampled = {name: params[name] for name in self._sampled.distributions() if name in params}
        self._optuna.enqueue_trial(sampled, user_attrs={POINT: asdict(point)})

    def _next_deployment(self, run: _Run, only_new: bool) -> Hope | None:
        """Returns the fastest deployment to hope for.

        Args:
            run: Under way.
            only_new: Whether bits and threads count that no pruned network has had yet.
        """
        known, allowed = run.known, self._space.deployments()
        busy = [a for a in self._under_way if a.student_of is not None]
        if only_new:
            had = {(p.bits, p.threads) for p in known.tried if p.prune_ratio > 0}
            allowed = [deployment for deployment in allowed if deployment not in had]
        hopes = worth_deploying(
            known.students,
            known.students.open(
                self._policy.deployments,
                [a.student_of for a in busy if a.student_of is not None],
                only_pruned=only_new,
            ),
            known.tried,
            known.front.members,
            known.outlook,
            allowed,
            self._objectives,
        )
        sound = [
            hope
            for hope in hopes
            if self._space.contains(hope.point)
            and all(hope.point != attempt.point for attempt in busy)
            and all(excess <= 0 for excess in violated(hope.figures, run.lab).values())
        ]
        return min(sound, key=lambda hope: hope.figures.latency_ms or 0.0, default=None)

    def _is_inside(self, asked: optuna.Trial) -> bool:
        """Tells whether the space holds the trial's point; the yardstick may lie outside."""
        enqueued = asked.user_attrs.get(POINT)
        return enqueued is None or self._space.contains(Point(**enqueued))

    def _seed(self, number: int) -> int:
        """Returns a trial's own seed.

        A continued study draws what an uninterrupted one would have drawn, instead of repeating
        its first random points.
        """
        return (self._config.seed * 1_000_003 + number) % 2**32

    def _point(self, asked: optuna.Trial) -> Point:
        enqueued = asked.user_attrs.get(POINT)
        return self._sampled.point(asked.params) if enqueued is None else Point(**enqueued)

    def _referee(self, asked: optuna.Trial, run: _Run) -> Referee:
        if asked.number == 0:  # the yardstick stays as it is
            return Unjudged()
        # Earlier points were good as they are.
        stays = run.plan.samples_deployments or self._point(asked) in run.plan.earlier
        allowed = [] if stays else self._space.deployments()
        note = partial(self._note_rung, asked)
        return Judge(run.known, self._policy, allowed, note)

    def _note_rung(self, asked: optuna.Trial, end: float, own: list[float]) -> list[list[float]]:
        """Writes a rung's losses into the trial; returns those of all at this rung, its own last.

        They lie in Optuna's trials so that a continued study compares with them too.
        """
        for share, reached in self._reached.items():
            if share >= end:  # it is driven again
                reached.pop(asked.number, None)
        self._reached.setdefault(end, {})[asked.number] = own
        shares = sorted(share for share, there in self._reached.items() if asked.number in there)
        asked.set_user_attr(
            RUNGS, [(share, self._reached[share][asked.number]) for share in shares]
        )
        there = self._reached[end]
        return [*(there[number] for number in sorted(there) if number != asked.number), own]

    def _tell(self, asked: optuna.Trial, record: TrialRecord) -> TrialRecord:
        values = losses(record.figures, self._objectives)
        told = asked.constraints
        for name, excess in record.violations.items():
            if name not in told:
                asked.set_constraint(name, excess)
        # A yardstick outside the space lacks parameters that samplers would miss.
        if record.outcome == "failed" or not self._is_inside(asked):
            ended = self._optuna.tell(asked, state=TrialState.FAIL)
        elif values is None or record.figures.val_accuracy is None:
            # Without its accuracy it lacks a constraint too, and samplers want all or none.
            ended = self._optuna.tell(asked, state=TrialState.PRUNED)
        else:
            ended = self._optuna.tell(asked, values)
        if self._memory is not None:
            self._memory.add(ended)
        self.records.append(record)
        return record


def _shown(value: object) -> str:
    """Writes a setting as the command line takes it."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}: {_shown(item)}" for key, item in value.items()) + "}"
    return value if isinstance(value, str) else json.dumps(value)
