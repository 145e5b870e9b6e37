"""Who may reach the pages: this machine, and others only with an account."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from search import ui
from search.config.engine import is_loopback
from search.errors import ConfigError
from search.ui import check_reach, environment, main, server_command

ACCOUNTS = """[mlflow]
default_permission = READ
database_uri = sqlite:///accounts.db
admin_username = admin
admin_password = 12-letters-%-long
"""


@pytest.fixture
def accounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "accounts.ini"
    path.write_text(ACCOUNTS)
    path.chmod(0o600)
    monkeypatch.setattr(ui, "find_spec", lambda name: object())
    return path


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_this_machine_needs_no_account(host: str) -> None:
    assert is_loopback(host)
    assert check_reach(host, None) is None


OTHERS = ["0.0.0.0", "::", "", "*", "192.168.0.5", "board", "127.0.0.1.evil.org", "127.1", "0"]


@pytest.mark.parametrize("host", OTHERS)
def test_another_address_is_refused_without_accounts(
    host: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--host", host, "--auth", ""]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: --host {host}: others could read and change everything")
    assert said.count("\n") == 1


@pytest.mark.parametrize("host", OTHERS)
def test_another_address_is_served_with_accounts(host: str, accounts: Path) -> None:
    assert check_reach(host, str(accounts)) == accounts
    words = server_command(host, 5000, Path("/state"), has_accounts=True)
    assert words[words.index("--app-name") + 1] == "basic-auth"
    assert words[words.index("--host") + 1] == host
    added = environment(accounts, {})
    assert added["MLFLOW_AUTH_CONFIG_PATH"] == str(accounts)
    assert len(added["MLFLOW_FLASK_SERVER_SECRET_KEY"]) == 64
    assert (
        environment(accounts, {"MLFLOW_FLASK_SERVER_SECRET_KEY": "k"})[
            "MLFLOW_FLASK_SERVER_SECRET_KEY"
        ]
        == "k"
    )


def test_a_folder_without_searches_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nowhere = tmp_path / "nowhere"
    assert main(["--state", str(nowhere)]) == 2
    assert f"error: --state {nowhere}: no search was tracked there, for" in capsys.readouterr().err
    assert not nowhere.exists()


@pytest.mark.parametrize("port", [-1, 99999999])
def test_a_port_that_is_none_is_refused(
    port: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mlflow.db").touch()
    assert main(["--state", str(tmp_path), "--port", str(port)]) == 2
    said = capsys.readouterr()
    assert said.err.startswith(f"error: --host 127.0.0.1 --port {port}: cannot be listened at (")
    assert (said.err.count("\n"), said.out) == (1, "")


def test_a_port_that_is_taken_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mlflow.db").touch()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["--state", str(tmp_path), "--port", str(port)]) == 2
    assert "(Address already in use); give another --port" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "is no file of accounts"),
        ("", "is no file of accounts"),
        ("rubbish", "is no file of accounts"),
        (ACCOUNTS.replace("admin_password", "# "), "lacks admin_password"),
        (ACCOUNTS.replace("12-letters-%-long", "short"), "shorter than 12 letters"),
        ("[mlflow]\n", "lacks default_permission, database_uri"),
    ],
)
def test_accounts_that_protect_nothing(accounts: Path, content: str | None, says: str) -> None:
    accounts.unlink() if content is None else accounts.write_text(content)
    with pytest.raises(ConfigError, match=says):
        check_reach("0.0.0.0", str(accounts))


def test_accounts_that_others_may_read(accounts: Path) -> None:
    accounts.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        check_reach("0.0.0.0", str(accounts))


def test_accounts_need_their_package(accounts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ui, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'cnn-search\[auth\]'"):
        check_reach("127.0.0.1", str(accounts))


def test_make_hands_on_who_may_reach_it(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    words = ["make", "-n", "-o", ".venv/.ready", "ui"]
    plain = subprocess.run(words, cwd=root, capture_output=True, text=True, check=True).stdout
    assert '--host "127.0.0.1"' in plain
    asked = [*words, "HOST=0.0.0.0", "AUTH=a.ini", f"STATE={tmp_path}"]
    told = subprocess.run(asked, cwd=root, capture_output=True, text=True, check=True).stdout
    assert '--host "0.0.0.0"' in told
    assert '--auth "a.ini"' in told


def test_the_server_is_refused_as_a_program(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "search.ui", "--host", "0.0.0.0"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_fault_of_a_flag_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--port", "none"]) == 2
    said = capsys.readouterr().err
    assert said == "error: argument --port: invalid int value: 'none'; --help shows what there is\n"


def test_a_killed_make_ends_the_server(tmp_path: Path) -> None:
    """With a stand-in for the server, which takes seconds to start: make's part is to be shown."""
    project = Path(__file__).parents[2]
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / ".ready").touch()
    stand_in = tmp_path / ".venv" / "bin" / "python"
    stand_in.write_text('#!/bin/sh\necho "$$"\nexec sleep 60\n')
    stand_in.chmod(0o755)
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "requirements.lock"):
        (tmp_path / name).write_bytes((project / name).read_bytes())
    (tmp_path / ".venv" / ".ready").touch()
    with subprocess.Popen(["make", "ui"], cwd=tmp_path, stdout=subprocess.PIPE, text=True) as make:
        assert make.stdout is not None
        server = int(make.stdout.readline())
        make.terminate()
        make.wait(timeout=30)
    deadline = time.monotonic() + 30
    while Path(f"/proc/{server}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
