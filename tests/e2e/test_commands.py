"""A command that ``commands.run`` forks cannot tell itself from one that is started anew."""

from __future__ import annotations

import functools
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import commands

FACTS = """
import atexit, json, multiprocessing, os, signal, sys, threading

def late():
    threading.main_thread().join()
    print("from a thread")

ignored = [number for number in signal.Signals if signal.getsignal(number) is signal.SIG_IGN]
atexit.register(print, "at the end")
threading.Thread(target=late).start()
print(json.dumps({
    "argv": sys.argv,
    "path": sys.path[:2],
    "modules": sorted(name for name in sys.modules if name.partition(".")[0] in OURS),
    "main": [__name__, __spec__.name, sys.modules["__main__"].__spec__.name],
    "folder": os.getcwd(),
    "environment": {k: v for k, v in os.environ.items() if k not in OF_A_SHELL},
    "terminals": [os.isatty(descriptor) for descriptor in range(3)],
    "input": sys.stdin.read(),
    "buffered": [sys.stdout.line_buffering, sys.stderr.line_buffering],
    "encodings": [sys.stdin.encoding, sys.stdout.encoding, sys.stderr.encoding],
    "ignored": ignored,
    "interrupted": signal.getsignal(signal.SIGINT) is signal.default_int_handler,
    "group": os.getpgrp(),
    "inherited": multiprocessing.parent_process() is not None,
}))
sys.stderr.write("said")
sys.exit(3)
""".replace("OURS", "('search', 'models')").replace("OF_A_SHELL", "('PYTEST_CURRENT_TEST', '_')")
ENDINGS = {
    "falls off the end": ("print('done')", 0, ""),
    "exits with nothing": ("import sys; sys.exit()", 0, ""),
    "exits with text": ("import sys; sys.exit('broken')", 1, "broken"),
    "raises": ("raise RuntimeError('broken')", 1, "RuntimeError: broken"),
    "is interrupted": ("raise KeyboardInterrupt", -2, "KeyboardInterrupt"),
    "is killed": ("import os; os.kill(os.getpid(), 9)", -9, ""),
    "does not wait": ("import os; os._exit(7)", 7, ""),
}


@pytest.fixture(scope="module")
def light() -> Iterator[commands.Warm]:
    """A process to fork from that has imported nothing; others' packages do not end commands."""
    warm = commands.Warm(packages=())
    yield warm
    warm.end()


def test_it_finds_itself_in_the_same_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands.run(tmp_path, "program")  # so that it is forked from what ran before
    (tmp_path / "program.py").write_text(FACTS)
    monkeypatch.setenv("CNN_SEARCH_TEST", "given late")
    given = (tmp_path, "program", "--flag", "key=ä b")
    forked, fresh = commands.run(*given), commands.run_fresh(*given)
    assert forked.stdout == fresh.stdout
    assert "given late" in forked.stdout
    assert (forked.returncode, forked.stderr) == (fresh.returncode, fresh.stderr) == (3, "said")
    assert forked.stdout.splitlines()[1:] == ["from a thread", "at the end"]


@pytest.mark.parametrize("ending", ENDINGS)
def test_it_ends_in_the_same_way(ending: str, light: commands.Warm, tmp_path: Path) -> None:
    source, status, said = ENDINGS[ending]
    (tmp_path / "program.py").write_text(source)
    forked = light.run(tmp_path, "program", (), commands.TIMEOUT_S)
    fresh = commands.run_fresh(tmp_path, "program")
    assert forked.returncode == fresh.returncode == status
    assert forked.stdout == fresh.stdout
    last = [(result.stderr.splitlines() or [""])[-1] for result in (forked, fresh)]
    assert last == [said, said]


def test_one_that_takes_too_long_is_killed_and_the_next_one_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[commands.Warm] = []

    @functools.cache
    def make() -> commands.Warm:
        made.append(commands.Warm(packages=()))
        return made[-1]

    monkeypatch.setattr(commands, "_warm", make)
    (tmp_path / "program.py").write_text(
        "import os, time; print(os.getpid(), file=open('pid', 'w'), flush=True); time.sleep(60)"
    )
    with pytest.raises(subprocess.TimeoutExpired):
        commands.run(tmp_path, "program", timeout_s=6.0)
    assert not Path("/proc", (tmp_path / "pid").read_text().strip()).exists()
    (tmp_path / "program.py").write_text("print('well')")
    assert commands.expect_success(commands.run(tmp_path, "program")) == "well\n"
    assert len(made) == 2
    made[-1].end()
