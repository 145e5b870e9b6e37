"""The command line ``python -m search.sync [study=NAME]``."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from search.cli import command as cli
from search.config.commands import SyncConfig
from search.config.parsing import parse
from search.config.places import TrackingConfig
from search.errors import ConfigError, StudyNotReady, TrackingLost, TrackingSilent

if TYPE_CHECKING:
    from search.storage import Ledgers
    from search.study.archive import Archive

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

    from search.cli.progress import configure_logging
    from search.storage import open_ledgers
    from search.study.archive import existing

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
    from search.study.archive import read_archive

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
    from search.records.formats import format_counted
    from search.tracking.snapshot import open_tracker, show, snapshot_of

    snapshot = snapshot_of(archive, Store(cli.STATE / "store"))
    # Who calls by hand waits for nobody who measures.
    tracker = open_tracker(snapshot, tracking, cli.STATE, storage)
    before = tracker.logged
    show(snapshot, tracker)
    tracker.end(archive.ending, snapshot.ended_at)
    there = len(archive.records) - len(tracker.logged - before)
    new = format_counted(len(tracker.logged - before), "trial")
    restored = f", {format_counted(tracker.restored, 'file')} restored" if tracker.restored else ""
    log.info("%s: %s delivered, %d %s there%s", archive.name, new, there, _were(there), restored)


def _were(count: int) -> str:
    return "was" if count == 1 else "were"


if __name__ == "__main__":
    sys.exit(main())
