"""A study as its ledger holds it: begun or gone on with, and written trial by trial.

The ledger is the only truth about which trials there are. A trial's whole record is written into
it before the trial is told, so that a process killed in between loses nothing.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import check_distribution_compatibility
from optuna.trial import FrozenTrial, TrialState
from pydantic import TypeAdapter

from search.config.study import StudyConfig
from search.errors import ConfigError
from search.front.front import losses
from search.records.bench import Lab
from search.records.closing import Closing
from search.records.measurement import Canary
from search.records.point import Point
from search.records.trial import FailedTrial, ScoredTrial, TrialRecord
from search.space.space import Space
from search.storage import Ledger
from search.study.archive import (
    ALL_CANARIES,
    CANARIES,
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
    canaries_of,
    check_format,
    closing_of,
    explained,
    read_record,
    records_of,
    write_record,
)
from search.study.settings import SPACE, compare, dimensions_of
from search.techniques.finetuning import USUAL_RATE

log = logging.getLogger(__name__)
POINT = "point"
RUNGS = "rungs"
PLAN = "plan"


@dataclass(frozen=True)
class InitialDesign:
    """What a study does before and beside its sampler.

    Attributes:
        samples_deployments: Whether bits and threads are sampled like all else.
        starting: Points to begin with.
        earlier: Points of other studies, to try as they are.
    """

    samples_deployments: bool
    starting: list[Point]
    earlier: list[Point]

    @property
    def original(self) -> Point:
        """The uncompressed network's point, the first to be tried."""
        return self.starting[0]

    def training(self, point: Point) -> Hashable:
        """Returns what of a point decides its training."""
        deployment = point.deployment if self.samples_deployments else ()
        return point.compression, point.training, deployment


DESIGNS, POINTS = TypeAdapter(InitialDesign), TypeAdapter(Point)
REACHED = TypeAdapter(list[tuple[float, list[float]]])


class Study:
    """A named search that can be stopped and continued.

    Args:
        ledger: What it is written in, held by this process.
        config: Budgets, name and seed.
        space: Where points are chosen from.
        objectives: Names of what the front trades.
        settings: Everything that must be the same when the study is continued, by dotted key.

    Attributes:
        config: As given.
        space: As given; with the network's own learning rates once there is a lab.
        objectives: As given.
        optuna: The study as Optuna knows it.
        records: Finished trials.

    Raises:
        ConfigError: When the study exists and was begun with other settings.
    """

    def __init__(
        self,
        ledger: Ledger,
        config: StudyConfig,
        space: Space,
        objectives: tuple[str, ...],
        settings: Mapping[str, Any],
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.config, self.space, self.objectives = config, space, objectives
        # Losses by rung and trial, as the ledger holds them too.
        self._reached: dict[float, dict[int, list[float]]] = {}
        self._lab: Lab | None = None
        with explained(ledger):
            self.optuna = _open(ledger, config.name, len(objectives))
            check_format(self.optuna, ledger)
            self._keep(FORMAT, OWN_FORMAT)
            self.records = records_of(self.optuna)
            self._begin_or_compare(settings)
            self._check_kept()
        if IDENTITY not in self.optuna.user_attrs:
            self.optuna.set_user_attr(IDENTITY, uuid.uuid4().hex)

    def _begin_or_compare(self, settings: Mapping[str, Any]) -> None:
        begun = self.optuna.user_attrs.get(SETTINGS)
        # Until there is a trial, nothing binds: the teacher may have needed other settings.
        if begun is None or not self.optuna.get_trials(deepcopy=False):
            self.optuna.set_user_attr(SETTINGS, dict(settings))
            return
        added = dimensions_of(settings) - dimensions_of(begun)
        if added and dimensions_of(begun):  # by packages that were not there then
            names = ", ".join(sorted(added))
            log.info("the study %s was begun without %s, and goes on so", self.config.name, names)
            self.space = self.space.only(dimensions_of(begun))
            settings = {k: v for k, v in settings.items() if k.removeprefix(SPACE) not in added}
        compare(self.config.name, begun, settings)

    def _check_kept(self) -> None:
        """Reads what is needed later on, so that damage shows before anything is begun.

        Raises:
            ValueError: If something is damaged.
        """
        closing_of(self.optuna)
        canaries_of(self.optuna)
        if LAB in self.optuna.user_attrs:
            self._lab = LABS.validate_python(self.optuna.user_attrs[LAB])
        begun, points = self.optuna.get_trials(deepcopy=False), []
        if (design := self.design) is not None:
            points += [*design.starting, *design.earlier]
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
        counts = self.space.thread_counts()
        if begun and any(point["threads"] not in counts for point in points):
            raise ValueError("a point has threads that none can have")
        if any(len(one.values or self.objectives) != len(self.objectives) for one in begun):
            raise ValueError("a trial has values of other objectives")
        if not all(isinstance(v, float | int) for one in begun for v in one.constraints.values()):
            raise ValueError("a constraint is no number")
        own = self.space.distributions()
        for name, other in ((n, d) for one in begun for n, d in one.distributions.items()):
            if name in own:
                check_distribution_compatibility(own[name], other)

    # ---- about all of it

    @property
    def identity(self) -> str:
        """Tells this study from others of its name, here or elsewhere."""
        return str(self.optuna.user_attrs[IDENTITY])

    @property
    def closing(self) -> Closing | None:
        """The latest closing round; None if none was held."""
        return closing_of(self.optuna)

    @property
    def design(self) -> InitialDesign | None:
        """What was planned; None before the first run."""
        kept = self.optuna.user_attrs.get(PLAN)
        return None if kept is None else DESIGNS.validate_python(kept)

    def keep_design(self, design: InitialDesign) -> None:
        """Writes down what is planned; it replaces an earlier design."""
        self._keep(PLAN, DESIGNS.dump_python(design, mode="json"))

    def keep_lab(self, lab: Lab, configuration: str) -> None:
        """Writes down what trials are compared with, for those who read the study later.

        Args:
            lab: The study's own.
            configuration: Of this run, resolved, as YAML without passwords.

        Raises:
            ConfigError: When earlier trials were compared with another teacher, as where the store
                is gone in which it was.
        """
        if self.records and self._lab is not None and _school(self._lab) != _school(lab):
            raise ConfigError(
                f"the study {self.config.name} was begun with another teacher, or trained in "
                "another precision: its trials would not compare; go on in the folder where it was "
                "begun, or with that folder's mlruns/store copied here, or start another one with "
                "study.name=..."
            )
        self._keep(CONFIGURATION, configuration)
        self._lab = lab
        if self.space.changes:
            found = USUAL_RATE if lab.rate is None else lab.rate.learning_rate
            self.space = self.space.around(found)
        # Last: where it stands, a study can be read.
        self._keep(LAB, LABS.dump_python(lab, mode="json"))

    def keep_closing(self, closing: Closing) -> None:
        """Writes down the closing round; it replaces that of an earlier run."""
        self._keep(CLOSING, CLOSINGS.dump_python(closing, mode="json"))

    @property
    def canaries(self) -> tuple[Canary, ...]:
        """What the device was found to be like so far."""
        return canaries_of(self.optuna)

    def keep_canary(self, canary: Canary) -> None:
        """Writes down what the device was found to be like now."""
        self._keep(CANARIES, ALL_CANARIES.dump_python((*self.canaries, canary), mode="json"))

    def keep_tags(self, tags: Mapping[str, str]) -> None:
        """Writes down facts about the study for those who show it later."""
        self._keep(TAGS, dict(tags))

    def keep_ending(self, status: str) -> None:
        """Writes down how this run ends, or would if it were killed now."""
        self._keep(ENDING, status)

    def _keep(self, name: str, value: Any) -> None:
        # The journal only grows: what stands in it already is not written again.
        if self.optuna.user_attrs.get(name) != value:
            self.optuna.set_user_attr(name, value)

    # ---- about its trials

    def count(self, *states: TrialState) -> int:
        """Returns how many trials there are, or how many in some states."""
        return len(self.optuna.get_trials(deepcopy=False, states=states or None))

    def unfinished(self) -> list[optuna.Trial]:
        """Returns the trials that an earlier process left running."""
        # Optuna offers no other way back to a running trial than its storage's number.
        return [
            optuna.Trial(self.optuna, trial._trial_id)
            for trial in self.optuna.get_trials(deepcopy=False)
            if trial.state == TrialState.RUNNING
        ]

    def enqueue(self, point: Point, sampled: Space) -> None:
        """Has Optuna ask for a point next.

        Args:
            point: Inside of the space or not.
            sampled: The dimensions that samplers choose.
        """
        params = self.space.params(point) if self.space.contains(point) else {}
        fixed = {name: params[name] for name in sampled.distributions() if name in params}
        self.optuna.enqueue_trial(fixed, user_attrs={POINT: POINTS.dump_python(point, mode="json")})

    def enqueued(self, asked: optuna.Trial) -> Point | None:
        """Returns the point of a trial that was enqueued; None of one that was sampled."""
        kept = asked.user_attrs.get(POINT)
        return None if kept is None else POINTS.validate_python(kept)

    def is_inside(self, asked: optuna.Trial) -> bool:
        """Tells whether the space holds the trial's point; the baseline may lie outside."""
        point = self.enqueued(asked)
        return point is None or self.space.contains(point)

    def keep_rung(self, asked: optuna.Trial, end: float, own: list[float]) -> list[list[float]]:
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

    def keep_record(self, asked: optuna.Trial, record: TrialRecord) -> None:
        """Writes down how a trial ended; it is still to be told."""
        asked.set_user_attr(RECORD, write_record(record))

    def kept_record(self, asked: optuna.Trial) -> TrialRecord | None:
        """Returns how a trial ended that was not told; None of one that did not end."""
        kept = asked.user_attrs.get(RECORD)
        return None if kept is None else read_record(kept)

    def tell(self, asked: optuna.Trial, record: TrialRecord) -> FrozenTrial:
        """Tells Optuna how a trial ended, and returns it as samplers see it."""
        told = asked.constraints
        for name, excess in record.violations.items():
            if name not in told:
                asked.set_constraint(name, excess)
        # A baseline outside the space lacks parameters that samplers would miss.
        if isinstance(record, FailedTrial) or not self.is_inside(asked):
            ended = self.optuna.tell(asked, state=TrialState.FAIL)
        elif isinstance(record, ScoredTrial):
            values = losses(record.figures, record.figures.val_accuracy, self.objectives)
            ended = self.optuna.tell(asked, values)
        else:
            # Without its accuracy it lacks a constraint too, and samplers want all or none.
            ended = self.optuna.tell(asked, state=TrialState.PRUNED)
        self.records.append(record)
        return ended

    def add(self, record: TrialRecord) -> None:
        """Writes down a trial that Optuna never asked for."""
        attributes = {
            POINT: POINTS.dump_python(record.point, mode="json"),
            RECORD: write_record(record),
        }
        # Samplers pass over failed trials.
        self.optuna.add_trial(
            optuna.trial.create_trial(state=TrialState.FAIL, user_attrs=attributes)
        )
        self.records.append(record)


def _school(lab: Lab) -> tuple[object, ...]:
    """Returns what students learn from, and in which arithmetic."""
    return lab.teacher.network, lab.placement.device, lab.placement.precision


def _open(ledger: Ledger, name: str, objectives: int) -> optuna.Study:
    """Returns a study, begun now if there is none; one that there is stays as it is."""
    storage = ledger.storage()
    try:
        return optuna.load_study(study_name=name, storage=storage)
    except KeyError:
        return optuna.create_study(
            study_name=name, storage=storage, directions=["minimize"] * objectives
        )
