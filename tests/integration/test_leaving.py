"""A process ends when its work has, whatever the user's code left running in it."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from torch import nn

from search.config.engine import LocalEngineConfig
from search.engine.local import LocalEngine
from search.engine.store import Store
from search.process import leaving
from search.records.network import NetworkSpec
from search.records.steps.training import ChoosePlacement
from tests import commands

LEFT_RUNNING = """
import atexit, multiprocessing, subprocess, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from search.process import leaving

leaving.CLEAR_UP_S = 2.0
never = threading.Event()

def work():
    threading.Thread(target=never.wait).start()
    ThreadPoolExecutor().submit(never.wait)
    print("done", end="")
    sys.stderr.write("told")
    return {status}

{more}
if __name__ == "__main__":
    leaving.leave_after(work)
"""
MORE = {
    "threads": "",
    "an exit function": "atexit.register(print, ', cleared up', end='')",
    "an exit function that never ends": "atexit.register(never.wait)",
}


@pytest.mark.parametrize("status", [0, 2])
@pytest.mark.parametrize("more", MORE)
def test_a_command_ends(more: str, status: int, tmp_path: Path) -> None:
    program = LEFT_RUNNING.replace("{status}", str(status)).replace("{more}", MORE[more])
    (tmp_path / "program.py").write_text(program)
    ended = commands.run_fresh(tmp_path, "program", timeout_s=60)
    printed = "done, cleared up" if more == "an exit function" else "done"
    assert (ended.returncode, ended.stdout, ended.stderr) == (status, printed, "told")


def test_a_fault_is_shown_and_what_exits_by_itself_does_so(tmp_path: Path) -> None:
    for name, work, status, said in (
        ("fault", "def work(): raise RuntimeError('broken')", 1, "RuntimeError: broken"),
        ("exits", "def work(): raise SystemExit(5)", 5, ""),
    ):
        start = f"from search.process.leaving import leave_after\n{work}\nleave_after(work)"
        (tmp_path / f"{name}.py").write_text(start)
        ended = commands.run_fresh(tmp_path, name, timeout_s=60)
        assert ended.returncode == status
        assert (ended.stderr.splitlines() or [""])[-1] == said


def test_a_reader_that_left_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(
        "from search.process.leaving import leave_after\n"
        "leave_after(lambda: print('x' * 100000) or 0)"
    )
    reader = subprocess.Popen(
        [sys.executable, "program.py"],
        cwd=tmp_path,
        env=commands.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert reader.stdout is not None
    reader.stdout.close()
    assert reader.wait(60) == leaving.FAILURE


def staying() -> nn.Module:
    """A user's function that starts a thread which never ends."""
    is_test = multiprocessing.parent_process() is None
    threading.Thread(target=threading.Event().wait, daemon=is_test).start()
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10)
    )


def test_a_worker_ends(tmp_path: Path) -> None:
    spec = NetworkSpec("custom", None, f"{__name__}:staying", (), "0" * 64, (1, 8, 8), 10)
    step = ChoosePlacement(spec, 4, "cpu", "auto", "this machine")
    config = LocalEngineConfig(name="local", workers=1, threads=1, memory_limit_bytes=None)
    with LocalEngine(Store(tmp_path / "store"), config, lambda step: None) as engine:
        assert engine.submit(step).result().result.device == "cpu"
        (worker,) = engine._workers
        process = worker._process
    assert process is not None
    assert process.exitcode == 1  # as it was told to, and not killed
