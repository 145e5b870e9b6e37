"""MLflow's own server over a folder's database and artifacts, as a team would run it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

START_S = 120.0
QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}


class Server:
    """A server on a free port, where it can be killed and started again.

    Args:
        folder: With ``mlflow.db`` and ``artifacts``.
        log: File for what it prints.

    Attributes:
        address: Where it answers.
    """

    def __init__(self, folder: Path, log: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.address = f"http://127.0.0.1:{port}"
        self._log = log
        self._command = [
            sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port),
            "--workers", "1", "--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}",
            "--artifacts-destination", str(folder / "artifacts"),
        ]  # fmt: skip
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts it if it is down; it takes seconds until it answers."""
        if self._process is not None and self._process.poll() is None:
            return
        # MLflow starts its workers by name.
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        with self._log.open("ab") as stream:
            self._process = subprocess.Popen(
                self._command,
                stdout=stream,
                stderr=stream,
                env={**os.environ, **QUIET, "PATH": path},
                start_new_session=True,
            )

    def wait(self) -> None:
        """Waits until it answers."""
        assert self._process is not None
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                with urllib.request.urlopen(f"{self.address}/health", timeout=5):
                    return
            except OSError:
                time.sleep(0.2)
        pytest.fail(f"the server did not start: {self._log.read_text()[-2000:]}")

    def kill(self) -> None:
        """Kills it if it is up."""
        if self._process is not None and self._process.returncode is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


@contextmanager
def serve(folder: Path, log: Path) -> Iterator[Server]:
    """Runs a server that answers already; see ``Server``."""
    server = Server(folder, log)
    try:
        server.start()
        server.wait()
        yield server
    finally:
        server.kill()
