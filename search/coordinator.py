"""The coordinator: chooses what a study tries next and has it tried; knows no stage's meaning.

Whatever moment it is killed at, the next one goes on where it stood: trials that were recorded are
told, those that were begun are driven again, with their finished steps answered by the store.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import optuna
from optuna.samplers import BaseSampler
from optuna.trial import TrialState

from search.attempt import Attempt
from search.config import PolicyConfig, SamplerConfig, TpeConfig
from search.deployments import worth_deploying
from search.driving import drive_together
from search.engine.base import Engine
from search.experience import Experience
from search.front import original
from search.judging import Judge
from search.records import Point, TrialRecord
from search.sampling import Memory, make_sampler, suggest
from search.space import starting_points
from search.study import Plan, Study
from search.trial import Lab, Referee, Unjudged, sound_rate, sweep, violated


class Coordinator:
    """One run of a study.

    Args:
        study: To begin or go on with.
        sampler: How points are chosen.
        policy: What is done to save training.
        lab: Where trials run.
        engine: Does their steps.
        earlier: Points of other studies to try early.
    """

    def __init__(
        self,
        study: Study,
        sampler: SamplerConfig,
        policy: PolicyConfig,
        lab: Lab,
        engine: Engine,
        earlier: Sequence[Point] = (),
    ) -> None:
        self._study = study
        self._sampler = sampler
        self._policy = policy
        self._lab = lab
        self._engine = engine
        self._plan = plan = self._make_plan(earlier)
        # The dimensions that the sampler chooses.
        self._sampled = study.space
        if not plan.samples_deployments:
            bits, threads = study.space.bit_widths()[0], study.space.thread_counts()[0]
            self._sampled = study.space.fix(bits=bits, threads=threads)
        if not lab.bench.prunes:
            self._sampled = self._sampled.unpruned()
        self._memory = Memory(study.optuna) if isinstance(sampler, TpeConfig) else None
        self._known = Experience(study.records, lab, study.objectives)
        # Planned points whose training was not begun, the next one first.
        tried = {plan.training(record.point) for record in study.records}
        planned = [*plan.starting, *plan.earlier]
        self._ahead = [point for point in planned if plan.training(point) not in tried]
        # Trials that an earlier process began, and how many it was about to begin.
        self._left: list[optuna.Trial] = []
        self._waiting = study.count(TrialState.WAITING)
        self._under_way: list[Attempt] = []

    def _make_plan(self, earlier: Sequence[Point]) -> Plan:
        """Returns what the study's first run planned, and the points that this one brings."""
        space, plan = self._study.space, self._study.plan
        moved = [space.nearest(point) for point in earlier]
        if plan is not None:
            return replace(plan, earlier=list(dict.fromkeys([*plan.earlier, *moved])))
        joint = self._policy.deployments == 0 or self._prices_bits()
        config, threads = self._study.config, self._lab.yardstick.best_threads
        cuts = sweep(self._lab, config.n_trials or math.inf, config.timeout_s or math.inf)
        rate = partial(sound_rate, self._lab)
        return Plan(joint, starting_points(space, threads, joint, cuts, rate), moved)

    def _prices_bits(self) -> bool:
        """Whether bits count for more than the latency by which deployments are chosen."""
        others = set(self._study.objectives) - {"accuracy", "latency"}
        limits = self._lab.bench.limits
        return bool(others or limits.max_size_bytes or limits.max_memory_bytes)

    def trials(self) -> Iterator[TrialRecord]:
        """Searches until a budget is used up, yielding every trial as it finishes.

        After each trial that Optuna asked for come those that deploy its student otherwise.
        """
        config = self._study.config
        for asked in self._study.unfinished():
            record = self._study.kept_record(asked)
            if record is None:
                self._left.append(asked)
            else:  # only the telling was cut off
                self._note_begun(record.point)
                yield self._tell(asked, record)
        if config.n_trials == 0:
            return
        self._study.keep_plan(self._plan)
        deadline = time.monotonic() + (config.timeout_s or float("inf"))

        def begin() -> Attempt | None:
            attempt = self._begin() if time.monotonic() < deadline else None
            if attempt is not None:
                self._under_way.append(attempt)
            return attempt

        for attempt in drive_together(begin, self._engine.slots):
            self._under_way.remove(attempt)
            yield self._finish(attempt)

    # ---- what to try

    def _begin(self) -> Attempt | None:
        """Begins the next trial; None while there is none, or for good when all were asked for.

        Deployments of trained students come first. Before the planned points are through, which
        show whose turn it is, bits and threads are only tried where they are new. Samplers are not
        told of them: they would take many points for one training.
        """
        lab, engine, is_spent = self._lab, self._engine, self._is_spent()
        deployment = self._original_in_8_bits() or self._next_deployment(
            only_new=bool(self._ahead) and not is_spent
        )
        if deployment is not None:
            student, point = deployment
            attempt = Attempt(point, lab, engine, Unjudged(), student_of=student)
        elif is_spent and not self._left:
            return None
        else:
            asked = self._ask()
            point = self._study.enqueued(asked) or self._sampled.point(asked.params)
            attempt = Attempt(point, lab, engine, self._referee(asked, point), asked=asked)
        self._note_begun(attempt.point)
        return attempt

    def _note_begun(self, point: Point) -> None:
        training = self._plan.training(point)
        self._ahead = [one for one in self._ahead if self._plan.training(one) != training]

    def _is_spent(self) -> bool:
        most = self._study.config.n_trials
        asked = self._known.asked + sum(attempt.asked is not None for attempt in self._under_way)
        return most is not None and asked >= most

    def _original_in_8_bits(self) -> tuple[int, Point] | None:
        """Returns the original's number and its point in 8 bits, which needs no training.

        An original that breaks a limit counts too: in 8 bits it may keep it. None where that is no
        point, was tried, or is one of those that are asked for.
        """
        first = original(self._study.records)
        if first is None or first.deployable is None or self._plan.samples_deployments:
            return None
        point = replace(first.point, bits=8)
        is_begun = point in self._known.tried or any(point == a.point for a in self._under_way)
        return None if is_begun or not self._study.space.contains(point) else (first.number, point)

    def _next_deployment(self, only_new: bool) -> tuple[int, Point] | None:
        """Returns the fastest deployment to hope for, and the trial whose student it is.

        Args:
            only_new: Whether bits and threads count that no pruned network has had yet.
        """
        known, allowed = self._known, self._study.space.deployments()
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
            self._study.objectives,
        )
        sound = [
            hope
            for hope in hopes
            if self._study.space.contains(hope.point)
            and all(hope.point != attempt.point for attempt in busy)
            and all(excess <= 0 for excess in violated(hope.figures, self._lab).values())
        ]
        best = min(sound, key=lambda hope: hope.figures.latency_ms or 0.0, default=None)
        return None if best is None else (best.student, best.point)

    def _ask(self) -> optuna.Trial:
        """Returns a trial that an earlier process left unfinished, else a new one."""
        if self._left:
            asked = self._left.pop(0)
        else:
            if self._waiting:
                self._waiting -= 1
            elif self._ahead:
                self._study.enqueue(self._ahead[0], self._sampled)
            asked = self._study.optuna.ask()
        self._study.optuna.sampler = self._make_sampler(asked.number)
        if self._study.is_inside(asked):
            for name, distribution in self._sampled.distributions().items():
                suggest(asked, name, distribution)
        return asked

    def _make_sampler(self, number: int) -> BaseSampler:
        under_way = [a.asked for a in self._under_way if a.asked is not None]
        dimensions, seed = self._sampled.distributions(), self._seed(number)
        return make_sampler(self._sampler, dimensions, seed, self._memory, under_way)

    def _seed(self, number: int) -> int:
        """Returns a trial's own seed.

        A continued study draws what an uninterrupted one would have drawn, instead of repeating
        its first random points.
        """
        return (self._study.config.seed * 1_000_003 + number) % 2**32

    def _referee(self, asked: optuna.Trial, point: Point) -> Referee:
        if asked.number == 0:  # the yardstick stays as it is
            return Unjudged()
        # Earlier points were good as they are.
        stays = self._plan.samples_deployments or point in self._plan.earlier
        allowed = [] if stays else self._study.space.deployments()
        return Judge(self._known, self._policy, allowed, partial(self._study.keep_rung, asked))

    # ---- how it ended

    def _finish(self, attempt: Attempt) -> TrialRecord:
        """Writes down how an attempt ended."""
        if attempt.asked is not None:
            record = attempt.record(attempt.asked.number)
            self._study.keep_record(attempt.asked, record)
            return self._tell(attempt.asked, record)
        record = attempt.record(self._study.count())
        self._study.add(record)
        self._known.add(record)
        return record

    def _tell(self, asked: optuna.Trial, record: TrialRecord) -> TrialRecord:
        ended = self._study.tell(asked, record)
        self._known.add(record)
        if self._memory is not None:
            self._memory.add(ended)
        return record
