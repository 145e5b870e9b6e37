"""Reaches MLflow's server or database in bounded time, and says in one line why it cannot."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from requests import RequestException
from sqlalchemy import make_url
from sqlalchemy.exc import SQLAlchemyError

from search.config import TrackingConfig
from search.database import Database, is_postgres, patient_connecting, with_driver
from search.errors import ConfigError, TrackingLost, hide_passwords

DATABASE = "mlflow.db"


def check_tracking(config: TrackingConfig, state: Path, study: str) -> None:
    """Looks for what would stop a ``Tracker``, without beginning an experiment or a run.

    Raises:
        ConfigError: When the server does not answer or the database cannot be opened.
    """
    with explained(config, state):
        connect(config, state).get_experiment_by_name(study)


def address(config: TrackingConfig, state: Path) -> str:
    """Returns the address of the server or database, with its password."""
    return with_driver(config.uri) if config.uri else f"sqlite:///{state.resolve() / DATABASE}"


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
        fcntl.flock(folder, fcntl.LOCK_EX)  # against another study's search
        if not (state / DATABASE).exists():
            part = state / f"{DATABASE}.part"
            for left in state.glob(f"{part.name}*"):  # with SQLite's journal, or it were replayed
                left.unlink()
            MlflowClient(f"sqlite:///{part}").search_experiments(max_results=1)
            part.rename(state / DATABASE)
    finally:
        os.close(folder)


# What the libraries say in many words.
PLAIN_REASONS = {
    "Connection refused": "nothing listens there",
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
    """
    try:
        with _bounded(config, retries=0):
            yield
    except (MlflowException, SQLAlchemyError, ImportError, OSError) as error:
        if config.uri is None and isinstance(error, OSError):
            raise  # of the state's folder, not of a database in it
        uri = address(config, state)
        shown = hide_passwords(uri)
        text = hide_passwords(str(error))
        plain = next((plain for sign, plain in PLAIN_REASONS.items() if sign in text), "{text}")
        reason = plain.format(timeout_s=config.timeout_s, text=_first_line(text))
        remedy = remedy or (
            "mend it, or leave tracking.uri=null for mlruns/mlflow.db"
            if config.uri
            else "move the file away, and the trials are logged into a new one"
        )
        raise ConfigError(f"tracking.uri={shown!r}: cannot be used ({reason}); {remedy}") from error


@contextmanager
def answering(config: TrackingConfig) -> Iterator[None]:
    """Turns a server that went away in the middle of a study into one line.

    Raises:
        TrackingLost: When it did.
    """
    try:
        with _bounded(config, retries=2):
            yield
    except (MlflowException, SQLAlchemyError, RequestException) as error:
        raise TrackingLost(
            f"tracking stopped answering ({_first_line(hide_passwords(str(error)))}); finished "
            "trials are kept, and the same command logs them and goes on"
        ) from error


@contextmanager
def _bounded(config: TrackingConfig, retries: int) -> Iterator[None]:
    """Gives up after ``retries``, where MLflow would try again for minutes."""
    if config.uri is None or not config.uri.startswith("http"):
        with _database_opened_once(), _patient(config, retries):
            yield
        return
    bounds = {
        "MLFLOW_HTTP_REQUEST_TIMEOUT": str(max(1, round(config.timeout_s))),
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": str(retries),
    }
    before = {name: os.environ.get(name) for name in bounds}
    os.environ.update(bounds)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _patient(config: TrackingConfig, retries: int) -> AbstractContextManager[None]:
    """Gives a database the time to come back that the user allows a server."""
    if config.uri is None or not is_postgres(config.uri) or retries == 0:
        return nullcontext()
    return patient_connecting(with_driver(config.uri), config.timeout_s)


@contextmanager
def _database_opened_once() -> Iterator[None]:
    from mlflow.store.db import utils  # takes a second, which a server's user need not wait

    tries, utils.MAX_RETRY_COUNT = utils.MAX_RETRY_COUNT, 1
    try:
        yield
    finally:
        utils.MAX_RETRY_COUNT = tries


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0][:200]
