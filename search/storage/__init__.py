"""Where studies are kept, one interface for all places."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from search.config.places import JournalStorageConfig, StorageConfig

if TYPE_CHECKING:
    from optuna.storages import BaseStorage


class Damaged(ValueError):  # noqa: N818 - what was found, as in the message
    """A ledger is not as it was written; says in few words where."""


class Ledger(Protocol):
    """What a study is written in; entered, it is held by this process alone.

    Entering raises ``StudyNotReady`` when another process holds it, and names that process.
    """

    @property
    def where(self) -> str:
        """Names it in messages."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
        /,
    ) -> bool | None: ...

    def exists(self) -> bool:
        """Tells whether the study was ever begun."""

    def storage(self) -> BaseStorage:
        """Opens it for Optuna: for reading, or for all while it is held."""


class Ledgers(Protocol):
    """The place that the ledgers of all studies are in."""

    @property
    def arguments(self) -> str:
        """The overrides that other command lines find it by, after a space; without passwords."""

    def of(self, name: str) -> Ledger:
        """Returns the ledger of a study, which need not exist."""

    def names(self) -> list[str]:
        """Returns the names of the studies that are there, sorted."""


def open_ledgers(config: StorageConfig, folder: Path) -> Ledgers:
    """Returns the place that a configuration chooses; nothing is opened yet.

    Args:
        config: Where studies are kept.
        folder: Where they are if that is files.

    Raises:
        ConfigError: When the driver of a database is not installed.
    """
    if isinstance(config, JournalStorageConfig):
        from search.storage.journal import Journals

        return Journals(folder)
    from search.storage.postgres import PostgresLedgers

    return PostgresLedgers(config)
