"""Starts MLflow's server for ``make ui``.

It is reached from this machine alone. Another address is served only with a file of accounts.
"""

from __future__ import annotations

import argparse
import configparser
import os
import secrets
import socket
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

from search.cli.command import reported, version_line
from search.config.engine import is_loopback
from search.errors import ConfigError
from search.process.home import command

DATABASE = "mlflow.db"
ACCOUNTS = ("default_permission", "database_uri", "admin_username", "admin_password")
LEAST_PASSWORD = 12
REMEDY = "see docs/security.md, or use ssh -L 5000:127.0.0.1:5000 and leave --host out"


class _Parser(argparse.ArgumentParser):
    """Complains in one line, as all commands do."""

    def error(self, message: str) -> NoReturn:
        """Refuses what was given."""
        raise ConfigError(f"{message}; --help shows what there is")


def main(arguments: Sequence[str] | None = None) -> int:
    """Becomes the server; returns only where that is refused."""
    parser = _Parser(
        command("ui"), description="Shows what was searched in a browser.", allow_abbrev=False
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (%(default)s)")
    parser.add_argument("--port", type=int, default=5000, help="port there (%(default)s)")
    folder = "folder of the searches (%(default)s)"
    parser.add_argument("--state", type=Path, default=Path("mlruns"), help=folder)
    parser.add_argument("--auth", help="file of accounts; needed for any other host")
    parser.add_argument("--version", action="version", version=version_line())
    return reported(lambda: _show(parser.parse_args(arguments)))


def _show(given: argparse.Namespace) -> int:
    accounts = check_reach(given.host, given.auth or None)
    _check_state(given.state)
    _check_port(given.host, given.port)
    shown = f"[{given.host}]" if ":" in given.host else given.host
    print(f"open http://{shown}:{given.port}/ in a browser; Ctrl-C ends it", flush=True)
    words = server_command(given.host, given.port, given.state.resolve(), accounts is not None)
    os.chdir(given.state)  # a folder of any name: see server_command
    return _become(words, {**os.environ, **environment(accounts, os.environ)})


def _check_state(state: Path) -> None:
    """Refuses a folder that no search was in: MLflow would show an empty one of its own."""
    if not (state / DATABASE).is_file():
        raise ConfigError(
            f"--state {state}: no search was tracked there, for it holds no {DATABASE}; correct "
            "it, or search first (what went to another tracking.uri is shown there)"
        )


def _check_port(host: str, port: int) -> None:
    """Refuses a port that cannot be had: MLflow would say so late, and end as if all were well."""
    try:
        if not 0 < port < 1 << 16:  # the system would take what is left of a larger one
            raise OverflowError("ports are 1 to 65535")
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM)
        with socket.socket(found[0][0], socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
            probe.bind(found[0][4])
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(
            f"--host {host} --port {port}: cannot be listened at ({reason}); give another --port"
        ) from error


def _become(words: list[str], environment: dict[str, str]) -> NoReturn:
    os.execve(words[0], words, environment)


def check_reach(host: str, auth: str | None) -> Path | None:
    """Returns the file of accounts, None where none is needed.

    Raises:
        ConfigError: When others could reach the server without an account.
    """
    if auth is None:
        if is_loopback(host):
            return None
        raise ConfigError(
            f"--host {host}: others could read and change everything; give --auth accounts.ini too "
            f"({REMEDY})"
        )
    path = Path(auth).expanduser()
    _check_accounts(path)
    if find_spec("flask_wtf") is None:
        raise ConfigError(f"--auth {auth}: needs Flask-WTF; pip install 'cnn-search[auth]'")
    return path.resolve()


def _check_accounts(path: Path) -> None:
    accounts = configparser.ConfigParser(interpolation=None)
    try:
        accounts.read_string(path.read_text(encoding="utf-8"))
        section: Mapping[str, str] = accounts["mlflow"]
    except (OSError, ValueError, KeyError, configparser.Error) as error:
        raise ConfigError(
            f"--auth {path}: is no file of accounts ({type(error).__name__}); {REMEDY}"
        ) from error
    missing = [key for key in ACCOUNTS if not section.get(key)]
    if missing:
        raise ConfigError(f"--auth {path}: lacks {', '.join(missing)} in [mlflow]; {REMEDY}")
    if len(section["admin_password"]) < LEAST_PASSWORD:
        raise ConfigError(f"--auth {path}: admin_password is shorter than {LEAST_PASSWORD} letters")
    if path.stat().st_mode & 0o077:
        raise ConfigError(f"--auth {path}: others may read it; chmod 600 {path}")


def server_command(host: str, port: int, state: Path, has_accounts: bool) -> list[str]:
    """Returns the words that start the server, in the folder of the searches.

    The database is named as from there: MLflow would make folders of what an address may spell.
    """
    accounts = ["--app-name", "basic-auth"] if has_accounts else []
    return [
        *(sys.executable, "-m", "mlflow", "server", "--workers", "1"),
        *("--host", host, "--port", str(port)),
        *("--backend-store-uri", f"sqlite:///{DATABASE}"),
        *("--artifacts-destination", (state / "artifacts").as_uri()),
        *accounts,
    ]


def environment(accounts: Path | None, given: Mapping[str, str]) -> dict[str, str]:
    """Returns what the server's environment has beside ``given``."""
    added = {
        # MLflow's workers for language models, which nothing here needs, are eight processes.
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        # Modules in the working directory, whatever their names, are none of the server's.
        "PYTHONSAFEPATH": "1",
    }
    if accounts is not None:
        added["MLFLOW_AUTH_CONFIG_PATH"] = str(accounts)
        key = "MLFLOW_FLASK_SERVER_SECRET_KEY"  # signs sessions, which end with the server
        added[key] = given.get(key) or secrets.token_hex(32)
    return added


if __name__ == "__main__":
    sys.exit(main())
