"""Reaches MLflow's server or database in bounded time, and says in one line why it cannot."""

from __future__ import annotations

import fcntl
import logging
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from pathlib import Path

from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from requests import RequestException
from sqlalchemy import URL, make_url
from sqlalchemy.exc import InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from search.config.places import TrackingConfig
from search.devices.agent.locks import describe_holders, find_holders, is_stopped
from search.errors import ConfigError, TrackingLost, TrackingSilent, hide_passwords
from search.storage.database import (
    Database,
    is_postgres,
    patient_connecting,
    with_driver,
)

log = logging.getLogger(__name__)

DATABASE = "mlflow.db"
# A database is made within seconds.
LONG_WAIT_S = 30.0
POLL_S = 0.1
# Such answers a server may take back; other ones say that this address will never do.
PASSING_STATUSES = (408, 429)
SERVER_ERROR, UNAVAILABLE = 500, 503


def check_tracking(config: TrackingConfig, state: Path, study: str) -> None:
    """Looks for what would stop a ``Tracker``, without beginning an experiment or a run.

    Raises:
        TrackingSilent: When a server does not answer, or says that it cannot now.
        ConfigError: When the database cannot be opened, or the address is wrong.
    """
    file = database_file(config, state)
    with explained(config, state):
        if file is not None and not file.exists():
            _try_making(file)
        else:
            connect(config, state).get_experiment_by_name(study)


def _try_making(file: Path) -> None:
    """Makes a database where there is none, and removes it: the study may yet be refused."""
    made = [folder for folder in file.parents if not folder.exists()]
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        with closing(sqlite3.connect(file)) as database:
            database.execute("BEGIN IMMEDIATE")
    finally:
        if file.exists() and file.stat().st_size == 0:  # nobody else's by now
            file.unlink()
        for folder in made:
            folder.rmdir()


def address(config: TrackingConfig, state: Path) -> str:
    """Returns the address of the server or database, with its password.

    Raises:
        ConfigError: When the folder's name cannot be part of an address.
    """
    return with_driver(config.uri) if config.uri else _file_address(state.resolve() / DATABASE)


def _file_address(path: Path) -> str:
    try:
        # Written so that whatever is in a folder's name stays a part of it.
        return URL.create("sqlite", database=str(path)).render_as_string()
    except UnicodeEncodeError:
        raise ConfigError(
            f"{path}: MLflow keeps no file in a folder whose name is not UTF-8; rename it, or work "
            "in another one"
        ) from None


def database_file(config: TrackingConfig, state: Path) -> Path | None:
    """Returns the file that the database is; None where it is no file."""
    url = address(config, state)
    name = make_url(url).database if url.startswith("sqlite") else None
    return None if name is None else Path(name)


def connect(config: TrackingConfig, state: Path) -> MlflowClient:
    """Returns a client; the database is made if there is none."""
    if config.uri is None and not (state / DATABASE).exists():
        _make_database(state.resolve())
    uri = address(config, state)
    if is_postgres(uri):
        # MLflow's own lock is a file, which the processes of another machine do not see.
        with Database(uri, "tracking.uri").alone("tracking"):
            MlflowClient(uri).search_experiments(max_results=1)
    return MlflowClient(uri)


def _make_database(state: Path) -> None:
    """Makes MLflow's tables aside: half of them, which a kill may leave, it could not mend."""
    folder = os.open(state, os.O_RDONLY)
    try:
        _lock(folder)  # against another study's search
        if not (state / DATABASE).exists():
            part = state / f"{DATABASE}.part"
            for left in state.glob(f"{part.name}*"):  # with SQLite's journal, or it were replayed
                left.unlink()
            MlflowClient(_file_address(part)).search_experiments(max_results=1)
            part.rename(state / DATABASE)
    finally:
        os.close(folder)


def _lock(folder: int) -> None:
    """Takes the lock of the state's folder; whoever has it for long is named.

    Raises:
        TrackingLost: When whoever has it for long is stopped, and may be for ever.
    """
    began, is_told = time.monotonic(), False
    while True:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            is_long = time.monotonic() - began > LONG_WAIT_S
        if is_long:
            who = describe_holders(folder) or "a process that cannot be seen from here"
            holders = find_holders(folder)
            if holders and all(map(is_stopped, holders)):
                raise TrackingLost(f"MLflow's database waits for {who}, which began to make it")
            if not is_told:
                log.warning(
                    "MLflow's database waits for %s, which makes it; trials are kept meanwhile", who
                )
            is_told = True
        time.sleep(POLL_S)


FULL = "database or disk is full"
# What the libraries say in many words.
PLAIN_REASONS = {
    "Connection aborted": "it closed the connection",
    "Connection refused": "nothing listens there",
    FULL: "its disk is full",
    "error responses": "it answers with errors of its own",
    "Failed to resolve": "there is no such host",
    "No module named 'psycopg'": "its driver is missing: pip install 'cnn-search[postgres]'",
    "No module named": "its driver is not installed: {text}",
    "file is not a database": "the file is no database",
    "timed out": "no answer within {timeout_s:g} s",
    "unable to open database file": "the file cannot be opened",
}


@contextmanager
def explained(config: TrackingConfig, state: Path, remedy: str = "") -> Iterator[None]:
    """Turns what a server or database cannot do into one line about ``tracking.uri``.

    Args:
        config: Where it is.
        state: Folder of the working directory's state.
        remedy: What the user can do; by default, what helps where none can be opened.

    Raises:
        TrackingSilent: When a server does not answer, or says that it cannot now.
        ConfigError: When nothing but another configuration can help.
    """
    try:
        with bounded(config), _patient(config, wait_s=0.0):
            yield
    except (MlflowException, SQLAlchemyError, sqlite3.Error, ImportError, OSError) as error:
        if config.uri is None and isinstance(error, OSError):
            raise  # of the state's folder, not of a database in it
        uri = address(config, state)
        what = f"tracking.uri={hide_passwords(uri)!r}: cannot be used ({_reason(config, error)})"
        if not remedy and FULL in str(error):
            remedy = "make room there"
        elif not remedy and config.uri:
            remedy = "mend it, or leave tracking.uri=null for mlruns/mlflow.db"
        elif not remedy:
            remedy = "move the file away, and the trials are logged into a new one"
        if _is_silence(uri, error):
            raise TrackingSilent(what, remedy) from error
        raise ConfigError(f"{what}; {remedy}") from error


def _is_silence(uri: str, error: Exception) -> bool:
    """Whether the same address may do later."""
    if uri.startswith("sqlite"):
        return False
    if not uri.startswith("http"):
        if isinstance(error, MlflowException):  # which also says so of tables of another version
            return _status(error) == UNAVAILABLE
        return isinstance(error, OperationalError | InterfaceError | PoolTimeoutError)
    if "SSLError" in str(error):
        return False
    status = _status(error)
    return status >= SERVER_ERROR or status in PASSING_STATUSES


def _status(error: Exception) -> int:
    """Returns the HTTP status of an answer; that of a server's error where there was none."""
    if isinstance(error, MlflowException):
        return int(error.get_http_status_code())  # type: ignore[no-untyped-call]  # MLflow's own
    return int(getattr(getattr(error, "response", None), "status_code", SERVER_ERROR))


def _reason(config: TrackingConfig, error: Exception) -> str:
    """Says in few words, without a password, what went wrong."""
    text = hide_passwords(str(error))
    plain = next((plain for sign, plain in PLAIN_REASONS.items() if sign in text), "{text}")
    return plain.format(timeout_s=config.timeout_s, text=_first_line(text))


@contextmanager
def answering(config: TrackingConfig, state: Path) -> Iterator[None]:
    """Turns a server or database that went away into one line.

    Raises:
        TrackingLost: When it did.
    """
    try:
        with bounded(config), _patient(config, config.timeout_s):
            yield
    except (MlflowException, SQLAlchemyError, RequestException) as error:
        shown = hide_passwords(address(config, state))
        raise TrackingLost(
            f"tracking.uri={shown!r}: stopped answering ({_reason(config, error)})"
        ) from error


@contextmanager
def bounded(config: TrackingConfig) -> Iterator[None]:
    """Waits ``tracking.timeout_s`` for an answer, and asks once, where MLflow asks for minutes.

    Only once also because a server may have done already what it did not confirm in time: a run
    would be made twice.
    """
    if config.uri is None or not config.uri.startswith("http"):
        with _database_opened_once():
            _mend_folders()
            yield
        return
    bounds = {
        "MLFLOW_HTTP_REQUEST_TIMEOUT": str(max(1, round(config.timeout_s))),
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    }
    # What is so already stays untouched: other threads may be reading the environment.
    before = {name: os.environ.get(name) for name in bounds if os.environ.get(name) != bounds[name]}
    os.environ.update({name: bounds[name] for name in before})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _patient(config: TrackingConfig, wait_s: float) -> AbstractContextManager[None]:
    """Gives a database that long to come back."""
    if config.uri is None or not is_postgres(config.uri):
        return nullcontext()
    return patient_connecting(with_driver(config.uri), wait_s)


@contextmanager
def _database_opened_once() -> Iterator[None]:
    from mlflow.store.db import utils  # takes a second, which a server's user need not wait

    tries, utils.MAX_RETRY_COUNT = utils.MAX_RETRY_COUNT, 1
    try:
        yield
    finally:
        utils.MAX_RETRY_COUNT = tries


def _mend_folders() -> None:
    """Has MLflow make a database's folder by its name.

    By itself it makes one that is called as the address spells it: ``a%20b`` beside ``a b``.
    """
    from mlflow.store.db import utils

    utils._make_parent_dirs_if_sqlite = _make_folder  # type: ignore[assignment]


def _make_folder(uri: str) -> None:
    name = make_url(uri).database if uri.startswith("sqlite:///") else None
    if name and name != ":memory:":
        Path(name).parent.mkdir(parents=True, exist_ok=True)


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0][:200]
