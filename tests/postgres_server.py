"""A real PostgreSQL server on loopback, for tests of what is kept in one."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import psycopg

PASSWORD = "Geheim:42/ja"  # with letters that an address must quote
USER = "searcher"
START_S = 60


def find_programs() -> Path | None:
    """Returns the folder of the newest server that Debian's packages installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return found[-1].parent if found else None


class PostgresServer:
    """A server with its data in a folder; every connection needs the password.

    Attributes:
        folder: Holds the data, and ``log``, in which every statement that makes tables stands.
    """

    def __init__(self, programs: Path, folder: Path) -> None:
        self.folder = folder
        self._programs = programs
        self._databases = 0
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        given = folder / "password"
        given.write_text(PASSWORD)
        self._own(folder, given)
        made = ("--auth=scram-sha-256", f"--username={USER}", f"--pwfile={given}", "--no-sync")
        self._run("initdb", "-D", self._data, "--encoding=UTF8", "--no-locale", *made)

    @property
    def _data(self) -> str:
        return str(self.folder / "data")

    def _own(self, *paths: Path) -> None:
        if os.getuid() == 0:
            for path in paths:
                shutil.chown(path, "postgres", "postgres")

    def _run(self, program: str, *arguments: str) -> None:
        # The server refuses to run as root.
        who = {"user": "postgres", "group": "postgres"} if os.getuid() == 0 else {}
        subprocess.run(
            [str(self._programs / program), *arguments],
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            check=True,
            timeout=START_S,
            **who,  # type: ignore[call-overload]
        )

    def start(self) -> None:
        options = (
            f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= "
            "-c fsync=off -c log_statement=ddl -c max_connections=40 -c shared_buffers=16MB"
        )
        log = str(self.folder / "log")
        self._run("pg_ctl", "-D", self._data, "-w", "-l", log, "-o", options, "start")

    def stop(self, mode: str = "fast") -> None:
        self._run("pg_ctl", "-D", self._data, "-w", "-m", mode, "stop")

    def freeze(self) -> None:
        """Stops all of its processes where they are; the system keeps their connections."""
        first = self._first()
        # The first process starts the others, and reaps them: none comes or goes while it stands.
        os.kill(first, signal.SIGSTOP)
        for process in _children(first):
            os.kill(process, signal.SIGSTOP)

    def thaw(self) -> None:
        """Lets them go on."""
        first = self._first()
        for process in _children(first):
            os.kill(process, signal.SIGCONT)
        os.kill(first, signal.SIGCONT)

    def _first(self) -> int:
        return int((self.folder / "data" / "postmaster.pid").read_text().split()[0])

    def address(self, database: str, with_password: bool = True) -> str:
        password = f":{quote(PASSWORD, safe='')}" if with_password else ""
        return f"postgresql://{USER}{password}@127.0.0.1:{self.port}/{database}"

    def new_database(self) -> str:
        """Makes an empty database and returns its address."""
        self._databases += 1
        name = f"test_{self._databases}"
        self.ask(f"CREATE DATABASE {name}", "postgres")
        return self.address(name)

    def ask(self, question: str, database: str) -> list[tuple[object, ...]]:
        """Returns what a statement answers, committed at once.

        Args:
            question: SQL.
            database: Name of the database, or its address.
        """
        where = database if "://" in database else self.address(database)
        with psycopg.connect(where, autocommit=True) as connection:
            answer = connection.execute(question.encode())
            return answer.fetchall() if answer.description else []

    def dump(self, address: str) -> str:
        """Returns all that a database holds."""
        command = [str(self._programs / "pg_dump"), "--dbname", address]
        return subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=START_S
        ).stdout


def _children(process: int) -> list[int]:
    found = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return [int(child) for child in found]


@contextmanager
def running_server(programs: Path) -> Iterator[PostgresServer]:
    """Starts a server, and removes it with all that it holds."""
    # Not in pytest's folder, which is closed to the user that the server runs as.
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    try:
        server = PostgresServer(programs, folder)
        server.start()
        try:
            yield server
        finally:
            server.stop("immediate")
    finally:
        shutil.rmtree(folder)
