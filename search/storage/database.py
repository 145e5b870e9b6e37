"""Reaches a PostgreSQL database by its address."""

from __future__ import annotations

import os
import re
import time
import weakref
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine, NullPool, create_engine, event, make_url, text
from sqlalchemy.exc import ArgumentError, OperationalError

from search.errors import ConfigError, hide_passwords

if TYPE_CHECKING:
    from psycopg import Connection

DRIVER = "postgresql+psycopg"
NO_DRIVER = re.compile(r"postgres(ql)?(?=://)")
# A dead connection is found out within half a minute, on either side.
BOUNDS: Mapping[str, Any] = {
    "connect_timeout": 10,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 25_000,
}
SERVER_BOUNDS = (
    "SET tcp_keepalives_idle = 10; SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 3"
)
# A server that froze keeps its connections: so long without a sign of life, and one is given up.
SILENT_S = 30.0
# What only one process does at a time, others wait for so long.
ALONE_S, ASK_AGAIN_S = 30.0, 0.1
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.25, 15.0


def with_driver(address: str) -> str:
    """Names the driver in a PostgreSQL address that names none; returns others as they are."""
    return NO_DRIVER.sub(DRIVER, address, count=1) if NO_DRIVER.match(address) else address


def is_postgres(address: str) -> bool:
    """Tells whether an address is that of a PostgreSQL database."""
    return with_driver(address).startswith(DRIVER)


def lock_key(name: str) -> int:
    """Returns the number by which PostgreSQL knows the lock of that name."""
    return int.from_bytes(sha256(f"cnn-search {name}".encode()).digest()[:8], signed=True)


def pauses() -> Iterator[float]:
    """Yields the seconds to wait between attempts, longer and longer."""
    pause_s = FIRST_PAUSE_S
    while True:
        yield pause_s
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


def reason_of(error: BaseException) -> str:
    """Returns the first line of what the driver says, without SQLAlchemy's words around it."""
    said = str(getattr(error, "orig", None) or error).strip()
    return hide_passwords(said.partition("\n")[0][:200]) or type(error).__name__


class Database:
    """A PostgreSQL database.

    Args:
        address: Such as ``postgresql://user@host/name``.
        key: What the user calls the address, for errors.
    """

    def __init__(self, address: str, key: str) -> None:
        self.key = key
        self.shown = hide_passwords(address)
        try:
            self._url = make_url(with_driver(address))
        except (ArgumentError, ValueError) as error:
            raise ConfigError(f"{key}={self.shown!r}: is no address of a database") from error

    def connect(self, label: str, prepare: Callable[[Connection[Any]], None]) -> Connection[Any]:
        """Opens a connection, which forked processes let go of.

        Args:
            label: What the server shows as the application's name.
            prepare: Called with the connection, which commits every statement until then.
        """
        # Done here and not by SQLAlchemy, so that what Optuna is given holds no password.
        _, given = self._url.get_dialect()().create_connect_args(self._url)
        options = {**BOUNDS, **given, "application_name": label}
        connection: Connection[Any] = _watched().connect(**options, autocommit=True)
        try:
            connection.execute(SERVER_BOUNDS)
            prepare(connection)
            connection.autocommit = False
        except BaseException:
            connection.close()
            raise
        _OPEN.add(connection)
        return connection

    def engine(self, label: str) -> Engine:
        """Returns an engine whose connections are closed after each use."""
        return create_engine(
            f"{DRIVER}://",
            creator=lambda: self.connect(label, lambda connection: None),
            poolclass=NullPool,
        )

    def check_driver(self) -> None:
        """Refuses to go on where the driver is not installed.

        Raises:
            ConfigError: When it is not.
        """
        try:
            import psycopg  # noqa: F401 - an extra
        except ImportError as error:
            reason = f"{self.key} needs the package psycopg: pip install 'cnn-search[postgres]'"
            raise ConfigError(reason) from error

    @contextmanager
    def alone(self, name: str) -> Iterator[None]:
        """Does what only one process at a time may do; others wait.

        Raises:
            OperationalError: When another process does it for too long.
        """
        engine = self.engine("cnn-search")
        # Ends with the connection, whatever becomes of this process.
        take, deadline = text("SELECT pg_try_advisory_lock(:key)"), time.monotonic() + ALONE_S
        with engine.connect() as connection:
            while not connection.scalar(take, {"key": lock_key(name)}):
                if time.monotonic() >= deadline:
                    busy = f"another process has been making its {name} tables for {ALONE_S:g} s"
                    raise OperationalError(str(take), None, TimeoutError(busy))
                time.sleep(ASK_AGAIN_S)
            yield


@cache
def _watched() -> type[Connection[Any]]:
    """Returns a class of connections that give up a server which went silent."""
    import psycopg

    class Watched(psycopg.Connection[Any]):
        def wait(self, gen: Any, *given: Any, **named: Any) -> Any:
            """Waits for an answer, or for the end of patience."""
            return super().wait(self._in_time(gen), *given, **named)

        def _in_time(self, gen: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
            deadline = time.monotonic() + SILENT_S
            try:
                wanted = next(gen)
                while True:
                    ready = yield wanted
                    if ready:
                        deadline = time.monotonic() + SILENT_S
                    elif time.monotonic() >= deadline:
                        self.close()
                        raise psycopg.OperationalError(f"the server is silent for {SILENT_S:g} s")
                    wanted = gen.send(ready)
            except StopIteration as stop:
                return stop.value

    return Watched


# ---- forks


_OPEN: weakref.WeakSet[Connection[Any]] = weakref.WeakSet()


def _abandon() -> None:
    """Lets go of the parent's connections: a child that outlives it would keep its locks."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for connection in list(_OPEN):
        if not connection.closed:
            os.dup2(nothing, connection.fileno())
    os.close(nothing)


os.register_at_fork(after_in_child=_abandon)


# ---- patience


@contextmanager
def patient_connecting(address: str, wait_s: float) -> Iterator[None]:
    """Lets whoever connects to a database meanwhile try for a while before giving up.

    For libraries that make their connections themselves, and again when one broke.

    Args:
        address: Of the database, with its driver.
        wait_s: Seconds after which a failure is one.
    """
    wanted = make_url(address)

    def connect(dialect: Any, record: Any, words: Any, options: dict[str, Any]) -> Any:
        _, mine = dialect.create_connect_args(wanted)
        if dialect.name != wanted.get_backend_name() or not mine.items() <= options.items():
            return None
        return retry_connecting(
            lambda: dialect.connect(*words, **{**BOUNDS, **options}),
            dialect.loaded_dbapi.OperationalError,
            wait_s,
        )

    event.listen(Engine, "do_connect", connect)
    try:
        yield
    finally:
        event.remove(Engine, "do_connect", connect)


def retry_connecting(connect: Callable[[], Any], broken: type[Exception], wait_s: float) -> Any:
    """Calls ``connect`` until it answers or the time is over."""
    deadline = time.monotonic() + wait_s
    for pause_s in pauses():
        try:
            return connect()
        except broken:
            if time.monotonic() + pause_s >= deadline:
                raise
            time.sleep(pause_s)
    raise AssertionError("pauses never end")
