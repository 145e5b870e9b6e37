"""Studies in a PostgreSQL database, each held by one process."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from functools import partial
from shlex import quote
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from optuna import get_all_study_names
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, RDBStorage, get_storage
from sqlalchemy import NullPool, event, text
from sqlalchemy.exc import InterfaceError, OperationalError, SQLAlchemyError

from search.config.places import PostgresStorageConfig
from search.errors import ConfigError, StudyNotReady, StudyTaken
from search.storage.database import DRIVER, Database, lock_key, reason_of
from search.storage.patient import ConnectionBroke, PatientStorage

if TYPE_CHECKING:
    from psycopg import Connection
    from sqlalchemy.engine import ExceptionContext

log = logging.getLogger(__name__)
# Of its own, because MLflow's tables may be in the same database and both call one alembic_version.
SCHEMA = "cnn_search"
# A process that was just killed is still being cleared away.
REFUSED_AFTER_S = 1.0
ASK_AGAIN_S = 0.1
TAKE = "SELECT pg_try_advisory_lock(%s)"
# PostgreSQL shows a lock's number as its two halves.
FIND_HOLDER = """
SELECT pid, application_name FROM pg_locks JOIN pg_stat_activity USING (pid)
WHERE locktype = 'advisory' AND granted AND objsubid = 1
AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
AND classid::bigint = %s AND objid::bigint = %s
"""
# Who began to write a study last: a lock alone tells nobody who came and went in the meantime.
HOLDERS = f"{SCHEMA}.holders"
MAKE_HOLDERS = f"""
CREATE TABLE IF NOT EXISTS {HOLDERS} (study text PRIMARY KEY, holder text NOT NULL)
"""
KEEP_HOLDER = f"""
INSERT INTO {HOLDERS} VALUES (%s, %s) ON CONFLICT (study) DO UPDATE SET holder = EXCLUDED.holder
"""
READ_ONLY = "25006"  # PostgreSQL's error code for a transaction that may not write
LAST_HOLDER = f"SELECT holder FROM {HOLDERS} WHERE study = %s"


class PostgresLedgers:
    """The studies of a database.

    Args:
        config: Its address, and how long a lost connection is waited for.

    Raises:
        ConfigError: When the driver is not installed.
    """

    def __init__(self, config: PostgresStorageConfig) -> None:
        self._database = Database(config.url, "storage.url")
        self._database.check_driver()
        self._retry_s = config.retry_s

    @property
    def arguments(self) -> str:
        """The overrides that other command lines find it by, after a space; without passwords."""
        return f" storage=postgres {quote(f'storage.url={self._database.shown}')}"

    def of(self, name: str) -> PostgresLedger:
        """Returns the ledger of a study, which need not exist."""
        return PostgresLedger(self._database, name, self._retry_s)

    def names(self) -> list[str]:
        """Returns the names of the studies that are there, sorted."""
        with _explained(self._database):
            if not _has_tables(self._database):
                return []
            return sorted(get_all_study_names(_open_for_reading(self._database)))


class PostgresLedger(AbstractContextManager["PostgresLedger"]):
    """A study in a database, held by one process at a time.

    The lock belongs to the very connection that writes: a new connection takes it before anything
    else, so nothing can be written by a process that lost the study without noticing.

    Args:
        database: Where it is.
        name: The study's name.
        retry_s: Seconds that a lost connection is waited for.
    """

    def __init__(self, database: Database, name: str, retry_s: float) -> None:
        self._database = database
        self._name = name
        self._retry_s = retry_s
        self._key = lock_key(f"study {name}")
        self._label = _label()
        self._was_held = self._was_left = False
        self._inner: RDBStorage | None = None
        self._held: BaseStorage | None = None

    @property
    def where(self) -> str:
        """Names study and database in messages."""
        return f"study {self._name} in {self._database.shown}"

    def __enter__(self) -> Self:
        self._was_held = self._was_left = False
        with _explained(self._database):
            _make_tables(self._database)
            self._inner = _open(self._connect, pool_size=1, max_overflow=0, pool_pre_ping=True)
        event.listen(self._inner.engine, "handle_error", _tell_broken)
        # Optuna's cache of finished trials, which it would wrap around the storage itself.
        self._held = PatientStorage(get_storage(self._inner), self._retry_s, self.where)
        self._was_held = True
        return self

    def __exit__(self, *_: object) -> None:
        self._was_left = True
        if self._inner is not None:
            self._inner.remove_session()
            self._inner.engine.dispose()
        self._inner = self._held = None

    def exists(self) -> bool:
        """Tells whether the study was ever begun."""
        with _explained(self._database):
            if self._held is None and not _has_tables(self._database):
                return False
            try:
                self.storage().get_study_id_from_name(self._name)
            except KeyError:
                return False
            return True

    def storage(self) -> BaseStorage:
        """Opens it for Optuna: for reading, or for all while it is held."""
        if self._held is not None:
            return self._held
        with _explained(self._database):
            reader = _open_for_reading(self._database)
        return PatientStorage(reader, self._retry_s, self.where)

    def _connect(self) -> Connection[Any]:
        """Opens a connection that holds the study.

        Raises:
            StudyNotReady: When another process holds it; names that process.
            StudyTaken: When another one held it since the connection broke.
        """
        if self._was_left:
            raise RuntimeError(f"{self.where}: is not held any more")
        return self._database.connect(self._label, self._hold)

    def _hold(self, connection: Connection[Any]) -> None:
        _look_into_schema(connection)
        deadline = time.monotonic() + REFUSED_AFTER_S
        while not _ask(connection, TAKE, self._key)[0]:
            holder = self._find_holder(connection)
            if holder is not None and holder.label == self._label:
                # Of this process, from before the network broke: its server has not noticed yet.
                connection.execute("SELECT pg_terminate_backend(%s)", (holder.session,))
            if time.monotonic() >= deadline:
                self._refuse(holder)
            time.sleep(ASK_AGAIN_S)
        if not self._was_held:
            connection.execute(KEEP_HOLDER, (self._name, self._label))
            return
        (last,) = _ask(connection, LAST_HOLDER, self._name) or ("somebody",)
        if last != self._label:
            raise self._taken(last)

    def _find_holder(self, connection: Connection[Any]) -> _Holder | None:
        high, low = (self._key >> 32) & 0xFFFFFFFF, self._key & 0xFFFFFFFF
        found = _ask(connection, FIND_HOLDER, high, low)
        return _Holder(*found) if found else None

    def _refuse(self, holder: _Holder | None) -> None:
        import psycopg

        if holder is None or holder.label == self._label:  # it is just going
            raise psycopg.OperationalError("an earlier session still holds the study")
        if self._was_held:
            raise self._taken(holder.label)
        named = _name_process(holder.label) or f"server session {holder.session}"
        raise StudyNotReady(
            f"study.name={self._name} is being searched by process {named}; wait for it, stop it, "
            "or choose another study.name"
        )

    def _taken(self, label: str) -> StudyTaken:
        return StudyTaken(
            f"{self.where}: process {_name_process(label) or label} took it over while the "
            "connection was lost; finished trials are kept, wait for that process or stop it"
        )


class _Holder(NamedTuple):
    """The server's session that holds a study."""

    session: int
    label: str


def _label() -> str:
    """Names this process and the time, within the 63 letters that PostgreSQL keeps of a name."""
    host = socket.gethostname().encode("ascii", "replace").decode()[:20]
    return (
        f"{host}:{os.getpid()} since {datetime.now(UTC):%Y-%m-%d %H:%M} UTC {secrets.token_hex(3)}"
    )


def _name_process(label: str) -> str:
    """Returns a label without the token that tells a process's ledgers apart."""
    return label.rpartition(" ")[0]


def _ask(connection: Connection[Any], question: str, *values: int | str) -> tuple[Any, ...]:
    """Returns the first row of the answer, or nothing."""
    row = connection.execute(question, values).fetchone()
    return () if row is None else tuple(row)


def _look_into_schema(connection: Connection[Any]) -> None:
    connection.execute(f"SET search_path TO {SCHEMA}")


def _connect(database: Database) -> Connection[Any]:
    """Opens a connection to the studies' tables, by which none is held."""
    return database.connect("cnn-search", _look_into_schema)


def _open(connect: Callable[[], Connection[Any]], **options: Any) -> RDBStorage:
    """Opens the tables, which are there."""
    return RDBStorage(
        f"{DRIVER}://",
        engine_kwargs={"creator": connect, **options},
        skip_compatibility_check=True,
        skip_table_creation=True,
    )


def _open_for_reading(database: Database) -> BaseStorage:
    storage = _open(partial(_connect, database), poolclass=NullPool)
    event.listen(storage.engine, "handle_error", _tell_broken)
    return get_storage(storage)


def _has_tables(database: Database) -> bool:
    with database.engine("cnn-search").connect() as connection:
        # Its row is the last that Optuna writes when it makes them.
        there = connection.scalar(text(f"SELECT to_regclass('{SCHEMA}.alembic_version')"))
        if there is None:
            return False
        return bool(connection.scalar(text(f"SELECT count(*) FROM {SCHEMA}.alembic_version")))


def _has_holders(database: Database) -> bool:
    with database.engine("cnn-search").connect() as connection:
        return connection.scalar(text(f"SELECT to_regclass('{HOLDERS}')")) is not None


def _make_tables(database: Database) -> None:
    """Makes Optuna's tables once; processes that begin together wait for the first one.

    Raises:
        ConfigError: When they are another version's.
    """
    if not (_has_tables(database) and _has_holders(database)):
        with database.alone("tables"):
            with database.engine("cnn-search").begin() as connection:
                connection.execute(text(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}"))
                connection.execute(text(MAKE_HOLDERS))
            _open_whole(database)
    else:
        _open_whole(database)


def _open_whole(database: Database) -> None:
    """Makes the tables that are missing, and compares their version with Optuna's."""
    connect = partial(_connect, database)
    try:
        RDBStorage(f"{DRIVER}://", engine_kwargs={"creator": connect, "poolclass": NullPool})
    except RuntimeError as error:
        raise ConfigError(
            f"{database.key}={database.shown!r}: its tables are of another version of Optuna "
            f"({reason_of(error)})"
        ) from error


def _tell_broken(context: ExceptionContext) -> None:
    """Tells a broken connection from all else that a database may complain of.

    One to a server that became read-only is as good as broken: it was the primary before.

    Raised from here, because Optuna would repeat the creation of a trial by itself, and twice is
    one too many if the connection broke after the first one was committed.
    """
    error = context.sqlalchemy_exception
    if context.is_pre_ping or error is None:
        return
    is_read_only = getattr(context.original_exception, "sqlstate", None) == READ_ONLY
    if is_read_only or isinstance(error, OperationalError | InterfaceError):
        context.is_disconnect = True
        raise ConnectionBroke(reason_of(error)) from context.original_exception


@contextmanager
def _explained(database: Database) -> Iterator[None]:
    """Says in one line that a database cannot be used.

    Raises:
        ConfigError: When it cannot.
    """
    try:
        yield
    except (SQLAlchemyError, StorageInternalError, ConnectionBroke) as error:
        cause = error.__cause__ if isinstance(error, StorageInternalError) else error
        raise ConfigError(
            f"{database.key}={database.shown!r}: cannot be used ({reason_of(cause or error)}); "
            "mend it, or leave storage=journal"
        ) from error
