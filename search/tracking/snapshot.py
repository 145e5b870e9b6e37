"""What MLflow should show of a study, as its ledger has it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from search.config.places import TrackingConfig
from search.engine.driving import drive
from search.engine.remembered import RememberedSteps
from search.engine.store import Store
from search.errors import ConfigError, NotRemembered
from search.front.importance import importances
from search.recipes.deploying import profile
from search.records.bench import Lab
from search.records.closing import Closing, Finalist
from search.records.files import ReadFile
from search.records.measurement import Canary
from search.records.trial import TrialRecord
from search.report.explanation import explain, explanation_html
from search.study.archive import Archive
from search.tracking.tracker import Claim, Tracker


@dataclass(frozen=True)
class Snapshot:
    """What MLflow should show of a study.

    Attributes:
        study: Its name.
        identity: Tells it from others of its name.
        objectives: Names of what its front trades.
        configuration: Of its latest run, resolved, as YAML without passwords.
        tags: Facts about it.
        canaries: What its device was found to be like so far.
        records: All finished trials.
        models: ONNX file of every trial that has one, by trial number.
        closing: The latest closing round; None if none was held.
        final_models: ONNX file of every finalist, by trial number.
        explanations: HTML that says what the finalists' time goes into.
    """

    study: str
    identity: str
    objectives: tuple[str, ...]
    configuration: str
    tags: Mapping[str, str]
    canaries: tuple[Canary, ...]
    records: tuple[TrialRecord, ...]
    models: Mapping[int, ReadFile]
    closing: Closing | None
    final_models: Mapping[int, ReadFile]
    explanations: str

    @property
    def began_at(self) -> float | None:
        """Seconds since the epoch when the first trial began; None without trials."""
        return min((record.finished_at - record.wall_s for record in self.records), default=None)

    @property
    def ended_at(self) -> float | None:
        """Seconds since the epoch when the last trial ended; None without trials."""
        return max((record.finished_at for record in self.records), default=None)


def snapshot_of(archive: Archive, store: Store) -> Snapshot:
    """Gathers what MLflow shows of a study; of what the store forgot it shows less.

    Raises:
        ConfigError: When the store has none of its models.
    """
    closing = archive.closing
    files = [r.deployable.model for r in archive.records if r.deployable is not None]
    if files and not any(store.path(file).exists() for file in files):
        raise ConfigError(
            f"study={archive.name}: none of its models is in {store.root}, and MLflow would never "
            "get them; run it in the folder that it was searched in"
        )
    finalists = () if closing is None else closing.finalists
    return Snapshot(
        study=archive.name,
        identity=archive.identity,
        objectives=archive.objectives,
        configuration=archive.configuration,
        tags=archive.tags,
        canaries=archive.canaries,
        records=archive.records,
        models=_read_models(archive.records, store),
        closing=closing,
        final_models=_read_models(finalists, store),
        explanations=_explain(finalists, archive.lab, store),
    )


def _read_models(of: Sequence[TrialRecord | Finalist], store: Store) -> dict[int, ReadFile]:
    """Returns what reads the ONNX file of each that has one, by trial number."""
    return {
        one.number: partial(store.read, one.deployable.model)
        for one in of
        if one.deployable is not None
    }


def _explain(finalists: Sequence[Finalist], lab: Lab, store: Store) -> str:
    """Says as HTML what the time of the front's points goes into, as far as that was profiled."""
    told = []
    for finalist in finalists:
        if finalist.deployable == lab.reference or not finalist.stands:
            continue
        recipe = profile(finalist.deployable, finalist.point.whole("threads"), lab)
        with suppress(NotRemembered):
            found = drive(recipe, RememberedSteps(store))
            macs, round_to = lab.teacher.network.macs, lab.bench.device.round_to
            told.append(explain(finalist.number, finalist.figures, found, macs, round_to))
    return "\n".join(map(explanation_html, told))


def open_tracker(
    snapshot: Snapshot,
    tracking: TrackingConfig,
    state: Path,
    storage: str,
    claim: Claim = nullcontext,
    is_running: bool = False,
) -> Tracker:
    """Opens MLflow for a study.

    Args:
        snapshot: Of the study.
        tracking: Where the tracking server or database is.
        state: Folder of the working directory's state.
        storage: Overrides by which commands find where the study is kept, after a space.
        claim: Entered for what takes this machine's processors.
        is_running: Whether the study is being searched.

    Raises:
        ConfigError: When the server does not answer or the database cannot be opened.
    """
    return Tracker(
        tracking,
        state,
        snapshot.study,
        snapshot.identity,
        snapshot.objectives,
        snapshot.tags,
        snapshot.configuration,
        partial(importances, objectives=snapshot.objectives),
        snapshot.began_at,
        claim,
        is_running,
        storage,
    )


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
