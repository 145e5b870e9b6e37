"""Studies in a real PostgreSQL database whose connections break, and which is restarted."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, event

from search.config.parsing import parse
from search.config.places import (
    JournalStorageConfig,
    PostgresStorageConfig,
    TrackingConfig,
)
from search.errors import (
    ConfigError,
    StorageLost,
    StudyTaken,
    TrackingSilent,
    hide_password,
    hide_passwords,
)
from search.records.steps.step import Step
from search.storage import database, open_ledgers
from search.storage.database import Database
from search.storage.postgres import PostgresLedger, PostgresLedgers
from search.tracking.server import answering, check_tracking, connect
from tests.contract.test_storage import search
from tests.fakes import FakeEngine
from tests.postgres_server import PASSWORD, PostgresServer

TRIALS = 6


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "FIRST_PAUSE_S", 0.02)


@pytest.fixture
def url(postgres: PostgresServer) -> str:
    return postgres.new_database()


@pytest.fixture(scope="module")
def wanted(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What a study comes to that nothing happens to."""
    ledgers = open_ledgers(JournalStorageConfig("journal"), tmp_path_factory.mktemp("whole"))
    with ledgers.of("s") as ledger:
        return search(ledger, TRIALS)


def ledger_in(url: str, retry_s: float = 30.0) -> PostgresLedger:
    return PostgresLedgers(PostgresStorageConfig("postgres", url, retry_s)).of("s")


def created_trials(server: PostgresServer, url: str) -> Any:
    return server.ask("SELECT count(*) FROM cnn_search.trials", url)[0][0]


# ---- a server that goes and comes back


@pytest.mark.parametrize("stop_at", [3, 20])
def test_a_restart_in_the_middle_loses_and_repeats_nothing(
    postgres: PostgresServer,
    url: str,
    wanted: Any,
    stop_at: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    steps: list[Step[Any]] = []
    later = threading.Timer(1.0, postgres.start)

    def restart(step: Step[Any]) -> None:
        steps.append(step)
        if len(steps) == stop_at:  # back before anybody asks
            postgres.stop("immediate")
            postgres.start()
        if len(steps) == stop_at + 5:  # asked while it is away
            postgres.stop("immediate")
            later.start()

    engine = FakeEngine(restart)
    with ledger_in(url) as ledger:
        found = search(ledger, TRIALS, engine)
    later.join()
    assert found == wanted
    assert created_trials(postgres, url) == TRIALS
    keys = [step.key for step in engine.computed]
    assert len(keys) == len(set(keys)), "a finished step was computed again"
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    (warning,) = warnings
    assert re.search(r"^study s in postgresql://searcher:\*\*\*@.* the connection broke", warning)
    assert [m for m in caplog.messages if m.endswith("the connection is back")]
    assert PASSWORD not in caplog.text


@pytest.mark.parametrize("committed", [True, False])
def test_a_connection_that_breaks_at_a_commit_loses_and_repeats_nothing(
    postgres: PostgresServer, url: str, wanted: Any, committed: bool
) -> None:
    commits = 0

    def break_off(connection: Connection) -> None:
        nonlocal commits
        commits += 1
        if commits % 7 == 3:
            driver: Any = connection.connection.dbapi_connection
            if committed:
                driver.commit()
            driver.close()

    with ledger_in(url) as ledger:
        assert ledger._inner is not None
        event.listen(ledger._inner.engine, "commit", break_off)
        found = search(ledger, TRIALS)
    assert commits > 50
    assert found == wanted
    assert created_trials(postgres, url) == TRIALS


def test_a_server_that_stays_away_ends_the_search_and_the_same_command_goes_on(
    postgres: PostgresServer, url: str, wanted: Any
) -> None:
    def stop(step: Step[Any]) -> None:
        if len(engine.computed) == 20:
            postgres.stop()

    engine = FakeEngine(stop)
    try:
        with ledger_in(url, 0.3) as ledger, pytest.raises(StorageLost) as caught:
            search(ledger, TRIALS, engine)
    finally:
        postgres.start()
    said = str(caught.value)
    assert "did not come back within 0.3 s (" in said
    assert said.endswith("; finished trials are kept")
    assert "\n" not in said
    assert PASSWORD not in said
    with ledger_in(url) as ledger:
        assert search(ledger, TRIALS) == wanted


# ---- holding a study


def cut(server: PostgresServer, url: str, pid: object) -> None:
    server.ask(f"SELECT pg_terminate_backend({pid}, 5000)", url)


def sessions(server: PostgresServer, url: str) -> list[object]:
    """Returns the server's sessions that hold a study."""
    held = "SELECT pid FROM pg_locks JOIN pg_stat_activity USING (pid) WHERE locktype = 'advisory'"
    return [row[0] for row in server.ask(f"{held} AND datname = current_database()", url)]


def test_who_lost_the_study_to_another_process_writes_nothing_more(
    postgres: PostgresServer, url: str
) -> None:
    with ledger_in(url) as first:
        search(first, 1)
        cut(postgres, url, *sessions(postgres, url))
        with ledger_in(url) as second:
            before = created_trials(postgres, url)
            with pytest.raises(StorageLost, match=r"process \S+:\d+ since .* UTC took it over"):
                search(first, 3)
            assert created_trials(postgres, url) == before
            search(second, 2)
    assert created_trials(postgres, url) == 2


def test_who_lost_the_study_to_a_process_that_is_gone_again_writes_nothing_more(
    postgres: PostgresServer, url: str
) -> None:
    steps: list[Step[Any]] = []

    def lose(step: Step[Any]) -> None:
        steps.append(step)
        if len(steps) == 12:  # as when a machine sleeps in the middle of a training
            cut(postgres, url, *sessions(postgres, url))
            with ledger_in(url) as second:
                search(second, TRIALS)

    with ledger_in(url) as first, pytest.raises(StudyTaken, match=r"process \S+:\d+ since"):
        search(first, TRIALS + 2, FakeEngine(lose))
    assert created_trials(postgres, url) == TRIALS


def test_a_server_that_froze_is_one_that_went_away(
    postgres: PostgresServer, url: str, wanted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "SILENT_S", 0.5)
    thaw = threading.Timer(2.0, postgres.thaw)

    def freeze(step: Step[Any]) -> None:
        if len(engine.computed) == 20:
            postgres.freeze()
            thaw.start()

    engine = FakeEngine(freeze)
    try:
        with ledger_in(url) as ledger:
            assert search(ledger, TRIALS, engine) == wanted
    finally:
        thaw.join()
    postgres.freeze()
    try:
        with pytest.raises(ConfigError, match="cannot be used"):
            ledger_in(url).__enter__()
    finally:
        postgres.thaw()


def test_a_server_that_is_read_only_for_a_while_is_one_that_went_away(
    postgres: PostgresServer, url: str, wanted: Any
) -> None:
    name = url.rpartition("/")[2]

    def make(writable: bool) -> None:
        word = "off" if writable else "on"
        postgres.ask(
            f"ALTER DATABASE {name} SET default_transaction_read_only = {word}", "postgres"
        )
        if not writable:
            cut(postgres, url, *sessions(postgres, url))

    later = threading.Timer(1.0, make, [True])

    def close(step: Step[Any]) -> None:
        if len(engine.computed) == 20:
            make(False)
            later.start()

    engine = FakeEngine(close)
    with ledger_in(url) as ledger:
        assert search(ledger, TRIALS, engine) == wanted
    later.join()
    assert created_trials(postgres, url) == TRIALS


def test_a_refusal_ends_the_search_and_the_same_command_goes_on(
    postgres: PostgresServer, url: str, wanted: Any
) -> None:
    def break_up(step: Step[Any]) -> None:
        if len(engine.computed) == 8:
            postgres.ask("ALTER TABLE cnn_search.trials RENAME TO mine", url)

    engine = FakeEngine(break_up)
    refused = r"study s in postgresql://.*: refuses what the search asks \(relation .*; finished tr"
    with ledger_in(url) as ledger, pytest.raises(StorageLost, match=refused):
        search(ledger, TRIALS, engine)
    postgres.ask("ALTER TABLE cnn_search.mine RENAME TO trials", url)
    with ledger_in(url) as ledger:
        assert search(ledger, TRIALS) == wanted
    assert created_trials(postgres, url) == TRIALS


def test_who_makes_tables_for_ever_is_not_waited_for(
    postgres: PostgresServer, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "ALONE_S", 0.3)
    where = TrackingConfig(url, 2.0)
    said = r"making its tracking tables for 0\.3 s"
    with (
        Database(url, "tracking.uri").alone("tracking"),
        pytest.raises(TrackingSilent, match=said),
    ):
        check_tracking(where, tmp_path, "s")
    check_tracking(where, tmp_path, "s")


def test_a_study_is_held_again_although_the_server_keeps_the_broken_session(
    postgres: PostgresServer, url: str
) -> None:
    with ledger_in(url) as ledger:
        search(ledger, 1)
        assert ledger._inner is not None
        # As when the network breaks: this side gives the connection up, the server hears nothing.
        ghost = ledger._inner.engine.pool.connect()
        ghost.detach()
        search(ledger, 2)
        assert len(sessions(postgres, url)) == 1
        ghost.close()


# ---- tables


def test_processes_that_begin_together_make_the_tables_once(
    postgres: PostgresServer, url: str
) -> None:
    log = postgres.folder / "log"
    seen = len(log.read_text())
    script = (
        "from search.storage.postgres import *\n"
        f"config = PostgresStorageConfig('postgres', {url!r}, 1.0)\n"
        "import sys; sys.stdin.readline()\n"
        "with PostgresLedgers(config).of(sys.argv[1]): pass"
    )
    both = [
        subprocess.Popen([sys.executable, "-c", script, name], stdin=subprocess.PIPE)
        for name in ("a", "b")
    ]
    for process in both:
        assert process.stdin is not None
        process.stdin.write(b"\n")
        process.stdin.close()
    assert [process.wait(60) for process in both] == [0, 0]
    said = log.read_text()[seen:]
    assert len(re.findall(r"CREATE TABLE studies", said)) == 1
    assert "ERROR" not in said
    assert postgres.ask("SELECT count(*) FROM cnn_search.alembic_version", url) == [(1,)]


def test_tables_of_another_version_are_refused(postgres: PostgresServer, url: str) -> None:
    with ledger_in(url):
        pass
    postgres.ask("UPDATE cnn_search.alembic_version SET version_num = 'v9.9.9.a'", url)
    with pytest.raises(ConfigError, match=r"^storage\.url='.*': its tables are of another version"):
        ledger_in(url).__enter__()


# ---- what cannot work


def test_a_wrong_password_is_told_without_it(postgres: PostgresServer, url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ledger_in(url.replace("Geheim", "Falsch")).__enter__()
    said = str(caught.value)
    assert said.startswith("storage.url='postgresql://searcher:***@127.0.0.1:")
    assert "password authentication failed" in said
    assert "Falsch" not in said


def test_a_missing_driver_is_told_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ConfigError) as caught:
        ledger_in("postgresql://me@host/db")
    assert str(caught.value).endswith(
        "needs the package psycopg: pip install 'cnn-search[postgres]'"
    )


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("postgresql://me:se/cret@host/db", "postgresql://me:***@host/db"),
        ("postgresql://me@host/db?password=secret&a=b", "postgresql://me@host/db?password=***&a=b"),
        ("postgresql://me@host/db", "postgresql://me@host/db"),
    ],
)
def test_passwords_are_hidden_in_text(address: str, shown: str) -> None:
    assert hide_passwords(f"see {address} there") == f"see {shown} there"


def test_passwords_are_hidden_in_a_wrong_address() -> None:
    assert hide_password("postgresql://me:two words@host/db") == "postgresql://me:***@host/db"
    asked = "postgresql://host/db?user=me&password=Geh'eim \"42&sslmode=require"
    assert hide_password(asked) == "postgresql://host/db?user=me&password=***&sslmode=require"
    with pytest.raises(ConfigError, match=r"password=\*\*\*&sslmode=require': input should be"):
        parse({"name": "postgres", "url": asked, "retry_s": 1.0}, PostgresStorageConfig)


# ---- MLflow beside the studies


@pytest.fixture
def tracking(url: str) -> TrackingConfig:
    return TrackingConfig(url, 10.0)


@pytest.fixture
def stopped_later(postgres: PostgresServer) -> Iterator[threading.Timer]:
    timer = threading.Timer(0.5, postgres.start)
    yield timer
    timer.join()


def test_mlflow_shares_the_database_and_waits_for_it(
    postgres: PostgresServer,
    url: str,
    tracking: TrackingConfig,
    stopped_later: threading.Timer,
    tmp_path: Path,
) -> None:
    check_tracking(tracking, tmp_path, "s")
    with ledger_in(url) as ledger:
        search(ledger, 1)
    client = connect(tracking, tmp_path)
    with answering(tracking, tmp_path):
        client.create_experiment("s")
        postgres.stop()
        stopped_later.start()
        assert client.get_experiment_by_name("s") is not None
    check_tracking(tracking, tmp_path, "s")
