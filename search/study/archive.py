"""What a study's ledger keeps, and reading it back."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Literal

import optuna
from pydantic import ConfigDict, Field, TypeAdapter

from search.config.study import ObjectiveConfig
from search.errors import ConfigError, SearchError, StudyNotReady
from search.front.front import front
from search.process import home
from search.records.baseline import least_accuracy
from search.records.bench import Lab
from search.records.closing import Closing
from search.records.measurement import Canary
from search.records.point import Point
from search.records.trial import AnyTrial, ScoredTrial, TrialRecord
from search.storage import Damaged, Ledger, Ledgers

# User attributes of Optuna's study, and of its trials.
FORMAT, SETTINGS, IDENTITY, LAB, CONFIGURATION = (
    "format", "settings", "identity", "lab", "configuration"
)  # fmt: skip
CANARIES, CLOSING, TAGS, ENDING = "canaries", "closing", "tags", "ending"
RECORD = "record"
# Goes up with every change by which one version of this program would misread another's studies.
OWN_FORMAT = 5
BEGIN_ANEW = (
    "remove it to begin the study anew, or give another study.name=...; steps that are finished "
    "are not computed again"
)
RESTORE = "restore it from a copy, or search again under another name"
LABS, CLOSINGS = TypeAdapter(Lab), TypeAdapter(Closing)
_RECORDS: TypeAdapter[TrialRecord] = TypeAdapter(
    # A damaged name looks like a figure that is missing.
    Annotated[AnyTrial, Field(union_mode="left_to_right")],
    config=ConfigDict(extra="forbid"),
)
FACTS = TypeAdapter(dict[str, str])
ALL_CANARIES = TypeAdapter(tuple[Canary, ...])
Ending = Literal["FINISHED", "KILLED", "FAILED"]
ENDINGS: TypeAdapter[Ending | None] = TypeAdapter(Ending | None)


@dataclass(frozen=True)
class Archive:
    """A study as its ledger holds it, finished or not.

    Attributes:
        name: The study's name.
        identity: Tells it from others of its name.
        configuration: Of its latest run, resolved, as YAML without passwords.
        lab: What its trials were compared with, and on what.
        records: Finished trials.
        closing: Its closing round; None if none was held.
        tags: Facts about it for whoever shows it, by name.
        ending: How its latest run ended; None if unknown.
        canaries: What its device was found to be like so far.
    """

    name: str
    identity: str
    configuration: str
    lab: Lab
    records: tuple[TrialRecord, ...]
    closing: Closing | None
    tags: Mapping[str, str]
    ending: Ending | None
    canaries: tuple[Canary, ...]

    @property
    def objectives(self) -> tuple[str, ...]:
        """Names of what the front trades."""
        return self.lab.bench.limits.names


def read_archive(ledgers: Ledgers, name: str | None, key: str) -> Archive:
    """Reads a study, also while it is being searched.

    Args:
        ledgers: Where studies are kept.
        name: Of the study.
        key: What the user calls ``name``, for errors.

    Raises:
        ConfigError: When there is no such study, it cannot be read, or it has not begun.
    """
    if name is None:
        raise ConfigError(f"{key} is not given; add {key}=...: there are {_names(ledgers)}")
    return ArchiveReader(existing(ledgers, name, key), name, key).read()


class ArchiveReader:
    """Reads a study again and again, each finished trial once.

    Args:
        ledger: Of the study, which is there.
        name: Of the study.
        key: What the user calls ``name``, for errors.
    """

    def __init__(self, ledger: Ledger, name: str, key: str = "study.name") -> None:
        self._ledger, self._name, self._key = ledger, name, key
        self._study: optuna.Study | None = None
        self._records: dict[int, TrialRecord] = {}

    def read(self) -> Archive:
        """Returns the study as it is now.

        Raises:
            ConfigError: When it cannot be read, or has not begun.
        """
        with explained(self._ledger, RESTORE):
            study = self._open()
            kept = study.user_attrs
            if LAB not in kept:
                raise self._not_ready()
            for trial in study.get_trials(deepcopy=False):
                if trial.state.is_finished() and trial.number not in self._records:
                    self._records[trial.number] = _record_of(trial)
            return Archive(
                name=self._name,
                identity=str(kept[IDENTITY]),
                configuration=str(kept[CONFIGURATION]),
                lab=LABS.validate_python(kept[LAB]),
                records=tuple(self._records[number] for number in sorted(self._records)),
                closing=closing_of(study),
                tags=FACTS.validate_python(kept.get(TAGS, {})),
                ending=ENDINGS.validate_python(kept.get(ENDING)),
                canaries=canaries_of(study),
            )

    def _open(self) -> optuna.Study:
        if self._study is None:
            storage = self._ledger.storage()
            if self._name not in optuna.get_all_study_names(storage):  # killed at its first line
                raise self._not_ready()
            self._study = optuna.load_study(study_name=self._name, storage=storage)
            check_format(self._study, self._ledger, RESTORE)
        return self._study

    def _not_ready(self) -> StudyNotReady:
        return StudyNotReady(
            f"{self._key}={self._name}: its uncompressed network is not measured yet; run "
            f"{home.command('run')} study.name={self._name} with its settings again"
        )


def earlier_points(ledgers: Ledgers, names: Sequence[str], limits: ObjectiveConfig) -> list[Point]:
    """Returns the fronts of other studies, as confirmed where a closing round was held.

    Args:
        ledgers: Where studies are kept.
        names: Of the studies.
        limits: Of this study: what its front trades, and which networks it takes for worthless.

    Raises:
        ConfigError: When there is no such study, or it cannot be read.
    """
    points: list[Point] = []
    for name in names:
        ledger = existing(ledgers, name, "study.warm_start")
        remedy = f"leave {name} out of study.warm_start"
        with explained(ledger, remedy):
            storage = ledger.storage()
            if name not in optuna.get_all_study_names(storage):  # killed before its first line
                continue
            study = optuna.load_study(study_name=name, storage=storage)
            check_format(study, ledger, remedy)
            if LAB in study.user_attrs:  # else it has no trials
                points += _front_of(study, LABS.validate_python(study.user_attrs[LAB]), limits)
    return points


def _front_of(study: optuna.Study, lab: Lab, limits: ObjectiveConfig) -> list[Point]:
    """Returns a study's front but for what this study's ``min_accuracy_share`` forbids."""
    chances, share = lab.bench.data.chances, limits.min_accuracy_share
    closing = closing_of(study)
    finalists = () if closing is None else closing.finalists
    whole = next((f.test_accuracy for f in finalists if f.is_original), lab.reference_accuracy)
    least = least_accuracy(chances[2], whole, share)
    standing = [f.point for f in finalists if f.stands and f.test_accuracy >= least]
    if standing:
        return standing
    least = least_accuracy(chances[1], lab.reference_accuracy, share)
    scored = [record for record in records_of(study) if isinstance(record, ScoredTrial)]
    fit = [record for record in scored if record.figures.val_accuracy >= least]
    return [record.point for record in front(fit, limits.names)]


def existing(ledgers: Ledgers, name: str, key: str) -> Ledger:
    """Returns the ledger of a study, which nobody holds yet.

    Raises:
        ConfigError: When there is no such study.
    """
    ledger = ledgers.of(name)
    if not ledger.exists():
        raise ConfigError(f"{key}={name}: there is no such study; there are {_names(ledgers)}")
    return ledger


def _names(ledgers: Ledgers) -> str:
    return ", ".join(ledgers.names()) or "none"


def records_of(study: optuna.Study) -> list[TrialRecord]:
    """Returns the records of all finished trials.

    Raises:
        ValueError: If one is damaged.
    """
    return [
        _record_of(trial) for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()
    ]


def write_record(record: TrialRecord) -> str:
    """Returns a record as a trial keeps it: text takes less memory than what it says."""
    # Not pydantic's own text, in which a figure that is no number is missing.
    return json.dumps(_RECORDS.dump_python(record, mode="json"), separators=(",", ":"))


def read_record(kept: str) -> TrialRecord:
    """Returns what ``write_record`` wrote.

    Raises:
        ValueError: If it is damaged.
    """
    record: TrialRecord = _RECORDS.validate_python(json.loads(kept))
    return record


def _record_of(trial: optuna.trial.FrozenTrial) -> TrialRecord:
    record = read_record(trial.user_attrs[RECORD])
    if record.number != trial.number:
        raise ValueError(f"trial {trial.number} has another trial's record")
    return record


def closing_of(study: optuna.Study) -> Closing | None:
    """Returns the study's latest closing round; None if none was held."""
    kept = study.user_attrs.get(CLOSING)
    if kept is None:
        return None
    closing: Closing = CLOSINGS.validate_python(kept)
    return closing


def canaries_of(study: optuna.Study) -> tuple[Canary, ...]:
    """Returns what the study's device was found to be like so far."""
    found: tuple[Canary, ...] = ALL_CANARIES.validate_python(study.user_attrs.get(CANARIES, ()))
    return found


def check_format(study: optuna.Study, ledger: Ledger, remedy: str = BEGIN_ANEW) -> None:
    """Refuses a study that is kept in another version's way.

    Raises:
        ConfigError: When it is.
    """
    is_begun = study.user_attrs or study.get_trials(deepcopy=False)
    kept = study.user_attrs.get(FORMAT)
    if is_begun and kept != OWN_FORMAT:
        theirs = "one without a number" if kept is None else kept
        raise ConfigError(
            f"{ledger.where}: another version of this program wrote it (its format is {theirs}, "
            f"this version's {OWN_FORMAT}); go on with that version, or {remedy}"
        )


@contextmanager
def explained(ledger: Ledger, remedy: str = BEGIN_ANEW) -> Iterator[None]:
    """Says in one line that a ledger cannot be understood."""
    try:
        yield
    except (SearchError, OSError):
        raise
    except Exception as error:  # what Optuna makes of damage has no other base
        reason = str(error) if isinstance(error, Damaged) else type(error).__name__
        raise ConfigError(
            f"{ledger.where}: is damaged, or another version wrote it ({reason}); {remedy}"
        ) from error
