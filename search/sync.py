"""The command line ``python -m search.sync [study=NAME]``; knows not what MLflow makes of it."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from search import cli
from search.config import SyncConfig, TrackingConfig
from search.errors import ConfigError, StudyNotReady, TrackingLost, TrackingSilent
from search.parsing import parse

if TYPE_CHECKING:
    from search.archive import Archive
    from search.engine.store import Store
    from search.storage import Ledgers
    from search.tracking.delivery import Snapshot
    from search.tracking.tracker import Tracker

log = logging.getLogger("search.sync")  # started with -m its own name is __main__


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs ``search.sync`` and returns its exit status."""
    check = partial(parse, shape=SyncConfig)
    return cli.main(lambda raw, _: sync(check(raw)), arguments, "sync", check)


def sync(config: SyncConfig) -> int:
    """Logs what MLflow lacks of one study, or of all in this folder.

    Returns:
        Exit status.

    Raises:
        TrackingLost: When the server does not answer, or stopped answering.
        ConfigError: When there is no such study, or it is being searched; of several studies those
            that cannot be delivered are told instead, and the others delivered.
    """
    # Imported here, so that --help and a mistyped override answer at once.
    from rich.console import Console

    from search.archive import existing
    from search.progress import configure_logging
    from search.storage import open_ledgers

    configure_logging(Console())
    ledgers = open_ledgers(config.storage, cli.STATE / "studies")
    if config.study is not None:
        existing(ledgers, config.study, "study")
    names = ledgers.names() if config.study is None else [config.study]
    if not names:
        raise ConfigError("study is not given, and there is none; run it where one is kept")
    try:
        return max(_deliver(name, ledgers, config) for name in names)
    except TrackingSilent as error:
        raise TrackingLost(f"{error.what}; run it again when it answers") from error
    except TrackingLost as error:
        raise TrackingLost(f"{error}; the same command goes on from here") from error


def _deliver(name: str, ledgers: Ledgers, config: SyncConfig) -> int:
    """Logs a study and says how much of it; returns an exit status."""
    from search.archive import read_archive

    try:
        with ledgers.of(name):
            archive = read_archive(ledgers, name, "study")
            _bring_up(archive, config.tracking, ledgers.arguments)
    except (TrackingSilent, TrackingLost):
        raise
    except ConfigError as error:
        if config.study is not None:
            raise
        log.warning("%s", error)
        return 0 if isinstance(error, StudyNotReady) else cli.USAGE_ERROR
    return 0


def _bring_up(archive: Archive, tracking: TrackingConfig, storage: str) -> None:
    from search.engine.store import Store
    from search.report.formats import format_counted
    from search.tracking.delivery import show

    snapshot = _snapshot(archive, Store(cli.STATE / "store"))
    tracker = _connect(archive, snapshot, tracking, storage)
    before = tracker.logged
    show(snapshot, tracker)
    tracker.end(archive.ending, snapshot.ended_at)
    there = len(archive.records) - len(tracker.logged - before)
    new = format_counted(len(tracker.logged - before), "trial")
    restored = f", {format_counted(tracker.restored, 'file')} restored" if tracker.restored else ""
    log.info("%s: %s delivered, %d %s there%s", archive.name, new, there, _were(there), restored)


def _were(count: int) -> str:
    return "was" if count == 1 else "were"


def _connect(
    archive: Archive, snapshot: Snapshot, tracking: TrackingConfig, storage: str
) -> Tracker:
    from search.importance import importances
    from search.tracking.tracker import Tracker

    return Tracker(
        tracking,
        cli.STATE,
        archive.name,
        archive.identity,
        archive.objectives,
        snapshot.tags,
        archive.configuration,
        partial(importances, objectives=archive.objectives),
        snapshot.began_at,
        is_running=False,  # who calls by hand waits for nobody who measures
        storage=storage,
    )


def _snapshot(archive: Archive, store: Store) -> Snapshot:
    """Gathers what MLflow shows of a study; of what the store forgot it shows less."""
    from search import exhibits
    from search.engine.remembered import RememberedSteps
    from search.tracking.delivery import Snapshot

    lab, closing = archive.lab, archive.closing
    files = [r.deployable.model for r in archive.records if r.deployable is not None]
    if files and not any(store.path(file).exists() for file in files):
        raise ConfigError(
            f"study={archive.name}: none of its models is in {store.root}, and MLflow would never "
            "get them; run it in the folder that it was searched in"
        )
    canaries = exhibits.known_canaries(lab, archive.identity, len(archive.records) + 1, store)
    snapshot = Snapshot(
        tags={**archive.tags, **exhibits.device_tags(lab.bench.device)},
        canaries=tuple(canaries),
        records=archive.records,
        models=exhibits.models(archive.records, store),
    )
    if closing is None:
        return snapshot
    return replace(
        snapshot,
        closing=closing,
        final_models=exhibits.final_models(closing, store),
        explanations=exhibits.explanations(closing.finalists, lab, RememberedSteps(store)),
    )


if __name__ == "__main__":
    sys.exit(main())
