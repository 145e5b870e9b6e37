"""The coordinator: chooses what a study tries next and has it tried.

Whatever moment it is killed at, the next one goes on where it stood: trials that were recorded are
told, those that were begun are driven again, with their finished steps answered by the store.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence, ValuesView
from dataclasses import replace
from functools import partial

import optuna
from optuna.samplers import BaseSampler
from optuna.trial import TrialState

from search.config.study import PolicyConfig, SamplerConfig, TpeConfig
from search.engine.base import Engine
from search.engine.driving import drive_together
from search.front.front import original
from search.policy.deployments import Prediction, deployment_of, worth_deploying
from search.policy.experience import Experience
from search.policy.judging import Judge
from search.recipes.preparing import sound_rate, sweep
from search.recipes.referee import Referee, Unjudged
from search.recipes.trial import violated
from search.records.bench import Lab
from search.records.point import Point
from search.records.trial import ScoredTrial, TrialRecord
from search.space.starting import starting_points
from search.study.attempt import Attempt
from search.study.sampling import History, choose, make_sampler, together
from search.study.study import InitialDesign, Study


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
        self._design = design = self._make_design(earlier)
        # The dimensions that the sampler chooses.
        self._sampled = study.space
        if not design.samples_deployments:
            bits, threads = study.space.bit_widths()[0], study.space.thread_counts()[0]
            self._sampled = study.space.fix(bits=bits, threads=threads)
        if not lab.bench.prunes:
            self._sampled = self._sampled.unpruned()
        self._sampled = self._sampled.suited(lab.teacher.network)
        self._history = History(study.optuna) if isinstance(sampler, TpeConfig) else None
        self._known = Experience(study.records, lab, study.objectives)
        # Planned points whose training was not begun, the next one first.
        tried = {design.training(record.point) for record in study.records}
        planned = [*design.starting, *design.earlier]
        self._ahead = [point for point in planned if design.training(point) not in tried]
        # Trials that an earlier process began, and how many it was about to begin.
        self._left: list[optuna.Trial] = []
        self._waiting = study.count(TrialState.WAITING)
        self._under_way: list[Attempt] = []

    def _make_design(self, earlier: Sequence[Point]) -> InitialDesign:
        """Returns what the study's first run planned, and the points that this one brings."""
        space, design = self._study.space, self._study.design
        moved = [space.nearest(point) for point in earlier]
        if design is not None:
            return replace(design, earlier=list(dict.fromkeys([*design.earlier, *moved])))
        joint = self._policy.deployments == 0 or self._prices_bits()
        config, threads = self._study.config, self._lab.baseline.best_threads
        cuts = sweep(self._lab, config.n_trials or math.inf, config.timeout_s or math.inf)
        rate = partial(sound_rate, self._lab)
        return InitialDesign(joint, starting_points(space, threads, joint, cuts, rate), moved)

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
        self._study.keep_design(self._design)
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
            referee, is_original = self._referee(asked, point), self._is_original(point)
            attempt = Attempt(point, lab, engine, referee, asked, is_original=is_original)
        self._note_begun(attempt.point)
        return attempt

    def _note_begun(self, point: Point) -> None:
        training = self._design.training(point)
        self._ahead = [one for one in self._ahead if self._design.training(one) != training]

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
        if not isinstance(first, ScoredTrial) or self._design.samples_deployments:
            return None
        if 8 not in self._study.space.bit_widths():
            return None
        point = self._study.space.moved(first.point, bits=8)
        is_begun = point in self._known.tried or any(point == a.point for a in self._under_way)
        return None if is_begun or not self._study.space.contains(point) else (first.number, point)

    def _next_deployment(self, only_new: bool) -> tuple[int, Point] | None:
        """Returns the point of the fastest predicted deployment, and the trial whose student it is.

        Args:
            only_new: Whether bits and threads count that no pruned network has had yet.
        """
        known, allowed = self._known, self._study.space.deployments()
        busy = [a for a in self._under_way if a.student_of is not None]
        if only_new:
            whole = self._design.original.compression
            had = {deployment_of(p) for p in known.tried if p.compression != whole}
            allowed = [deployment for deployment in allowed if deployment not in had]
        predictions = worth_deploying(
            known.students,
            known.students.open(
                self._policy.deployments,
                [a.student_of for a in busy if a.student_of is not None],
                only_changed=only_new,
            ),
            known.tried,
            known.front.members,
            known.latency_model,
            allowed,
            self._study.space,
            self._study.objectives,
        )
        sound = [
            prediction
            for prediction in predictions
            if self._study.space.contains(prediction.point)
            and all(prediction.point != attempt.point for attempt in busy)
            and all(excess <= 0 for excess in self._violated(prediction))
        ]
        best = min(sound, key=lambda prediction: prediction.figures.latency_ms, default=None)
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
            choose(asked, self._sampled)
        return asked

    def _make_sampler(self, number: int) -> BaseSampler:
        under_way = [a.asked for a in self._under_way if a.asked is not None]
        dimensions, seed = together(self._sampled), self._seed(number)
        return make_sampler(self._sampler, dimensions, seed, self._history, under_way)

    def _seed(self, number: int) -> int:
        """Returns a trial's own seed.

        A continued study draws what an uninterrupted one would have drawn, instead of repeating
        its first random points.
        """
        return (self._study.config.seed * 1_000_003 + number) % 2**32

    def _is_original(self, point: Point) -> bool:
        """Whether a point is tried as the uncompressed network's, which all begins with."""
        return point == self._design.original and original(self._study.records) is None

    def _violated(self, prediction: Prediction) -> ValuesView[float]:
        return violated(prediction.figures, prediction.figures.val_accuracy, self._lab).values()

    def _referee(self, asked: optuna.Trial, point: Point) -> Referee:
        if self._is_original(point):  # the baseline stays as it is
            return Unjudged()
        # Earlier points were good as they are.
        stays = self._design.samples_deployments or point in self._design.earlier
        allowed = [] if stays else self._study.space.deployments()
        note_rung = partial(self._study.keep_rung, asked)
        return Judge(self._known, self._policy, allowed, self._study.space, note_rung)

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
        if self._history is not None:
            self._history.add(ended)
        return record
