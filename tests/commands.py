"""Runs the project's command lines.

Most of a command's time goes into importing other people's packages. ``run`` therefore has its
process forked from one that has imported them already, and nothing of the project's own; from
there on it is as any other: working directory, arguments, environment, streams and the way it
ends are its own. ``run_fresh`` starts Python anew, for what is to be proved from the first
instruction on; so does whoever signals a process or gives it a terminal.
"""

from __future__ import annotations

import atexit
import functools
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
TIMEOUT_S = 300
# Without onnxruntime, which is quick, and starts a thread that no fork takes along. The threads
# of the others are the pools of OpenBLAS and jemalloc, which stop and restart at a fork.
PACKAGES = (
    "hydra",
    "matplotlib.figure",
    "mlflow.store.db.utils",
    "mlflow.store.tracking.sqlalchemy_store",
    "mlflow.tracking",
    "numpy",
    "onnx",
    "onnxscript",
    "optuna",
    "PIL.Image",
    "plotly",
    "pydantic",
    "rich.console",
    "rich.live",
    "safetensors.torch",
    "sklearn.ensemble",
    "torch._dynamo",
    "torch.onnx",
    "torch_pruning",
)


def line(module: str, *arguments: str) -> list[str]:
    """Returns the command as it is typed, but for the name of Python."""
    return [sys.executable, "-m", module, *arguments]


def environment() -> dict[str, str]:
    """Returns this process's variables, with the project where modules are looked for."""
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def run_fresh(
    folder: Path,
    module: str,
    *arguments: str,
    timeout_s: float = TIMEOUT_S,
    encoding: str | None = None,
) -> subprocess.CompletedProcess[str]:
    """Runs a command in a Python of its own."""
    return subprocess.run(
        line(module, *arguments),
        cwd=folder,
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        encoding=encoding,
        timeout=timeout_s,
        check=False,
    )


def run(
    folder: Path, module: str, *arguments: str, timeout_s: float = TIMEOUT_S
) -> subprocess.CompletedProcess[str]:
    """Runs a command in a process that has imported everybody else's packages already."""
    try:
        return _warm().run(folder, module, arguments, timeout_s)
    except BaseException:
        _warm.cache_clear()  # the next command starts another one
        raise


def expect_success(result: subprocess.CompletedProcess[str]) -> str:
    """Returns what a command printed that had nothing to complain of."""
    assert (result.returncode, result.stderr) == (0, ""), result
    return result.stdout


# ---- on the tests' side


class Warm:
    """A process that has imported packages and runs one command at a time in a fork.

    Args:
        packages: What it imports.
    """

    def __init__(self, packages: Sequence[str] = PACKAGES) -> None:
        self._channel, far = socket.socketpair()
        self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115 - as long as the process
        with far:
            self._process = subprocess.Popen(
                line("tests.commands", str(far.fileno()), *packages),
                cwd=ROOT,
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._said,
                pass_fds=[far.fileno()],
            )
        self._answers = self._channel.makefile("r", encoding="utf-8")

    def run(
        self, folder: Path, module: str, arguments: Sequence[str], timeout_s: float
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command; one that takes too long is killed, and this process ended."""
        with tempfile.TemporaryDirectory() as name:
            streams = [Path(name, "stdout"), Path(name, "stderr")]
            request = {
                "folder": str(folder),
                "module": module,
                "arguments": arguments,
                "environment": environment(),
                "streams": list(map(str, streams)),
            }
            self._channel.settimeout(None)  # for its imports
            self._channel.sendall(f"{json.dumps(request)}\n".encode())
            child = self._answer()
            try:
                self._channel.settimeout(timeout_s)
                status = self._answer()
            except BaseException as error:
                os.kill(child, signal.SIGKILL)
                self.end()
                if isinstance(error, TimeoutError):
                    command = line(module, *arguments)
                    raise subprocess.TimeoutExpired(command, timeout_s) from None
                raise
            printed, said = (path.read_text(encoding="utf-8") for path in streams)
        return subprocess.CompletedProcess(line(module, *arguments), status, printed, said)

    def _answer(self) -> int:
        text = self._answers.readline()
        if not text:
            self._process.wait()
            self._said.seek(0)
            raise RuntimeError(f"the process to fork from has ended: {self._said.read()}")
        return int(text)

    def end(self) -> None:
        """Ends the process."""
        self._answers.close()
        self._channel.close()
        self._process.wait()
        self._said.close()


@functools.cache
def _warm() -> Warm:
    warm = Warm()
    atexit.register(warm.end)
    return warm


# ---- on the other side


def _serve(channel: socket.socket, packages: Sequence[str]) -> dict[str, Any] | None:
    """Imports packages, then forks for every request until there are no more.

    Returns:
        In a fork, the request that it is for; None in the process itself, at the end.
    """
    # As search.tracking does before it imports MLflow, which would start a thread.
    before = dict(os.environ)
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    for package in packages:
        importlib.import_module(package)
    os.environ.clear()
    os.environ.update(before)
    gc.freeze()  # or a fork would copy all that its collector looks at
    with channel, channel.makefile("r", encoding="utf-8") as requests:
        for text in requests:
            with warnings.catch_warnings():
                # Python 3.12 warns of any thread; see PACKAGES.
                warnings.simplefilter("ignore", DeprecationWarning)
                child = os.fork()
            if not child:
                return dict(json.loads(text))
            channel.sendall(f"{child}\n".encode())
            _, status = os.waitpid(child, 0)
            channel.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
    return None


def _become(
    folder: str,
    module: str,
    arguments: list[str],
    environment: dict[str, str],
    streams: list[str],
) -> None:
    """Turns this process into the command's, and runs it to its end."""
    import numpy  # not before: whoever starts this file anew has to wait for it

    status = 0
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for descriptor, path in enumerate(streams, start=1):
        stream = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(stream, descriptor)
        os.close(stream)
    sys.path[0] = str(Path.cwd())
    sys.argv = [module, *arguments]
    numpy.random.seed()  # Python's own generator is seeded anew at a fork, this one is not
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as stop:
        if not isinstance(stop.code, int):
            raise
        status = stop.code
    # As Python ends, but for taking its memory apart, which takes half a second.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    asked = _serve(socket.socket(fileno=int(sys.argv[1])), sys.argv[2:])
    if asked is not None:
        _become(**asked)
