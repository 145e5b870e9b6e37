"""A run's whole log goes to a file, and nothing of a run that is refused."""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from search.cli.progress import configure_logging
from search.config.factory import load_factory
from search.engine.local import _log_here
from search.errors import ConfigError
from search.process.logs import RunLog

SECRET = "hunter2"
log = logging.getLogger("search.x")


@pytest.fixture(autouse=True)
def shown() -> Iterator[io.StringIO]:
    """What users see, as a command sets it up."""
    project = logging.getLogger("search")
    handlers, levels = logging.root.handlers[:], (logging.root.level, project.level)
    stream = io.StringIO()
    configure_logging(Console(file=stream))
    yield stream
    logging.root.handlers[:] = handlers
    logging.root.setLevel(levels[0])
    project.setLevel(levels[1])


def fail() -> None:
    raise ValueError("broken")


def refused(path: Path) -> None:
    with RunLog(path):
        log.debug("printed by a factory")
        raise ConfigError("refused")


def failing(path: Path) -> None:
    with RunLog(path) as run_log:
        run_log.begin()
        fail()


def test_the_file_has_what_users_do_not_see(tmp_path: Path, shown: io.StringIO) -> None:
    path = tmp_path / "logs" / "s.log"
    with RunLog(path) as run_log:
        log.debug("early")
        run_log.begin()
        log.info("news")
        try:
            fail()
        except ValueError:
            log.debug("a stage failed", exc_info=True)
        logging.getLogger("stranger").warning("old weights")
        logging.getLogger("stranger").info("chatter")
    log.info("late")
    written = path.read_text(encoding="utf-8")
    assert "DEBUG search.x: early" in written
    assert "INFO search.x: news" in written
    assert "in fail\n    raise ValueError" in written
    assert "WARNING stranger: old weights" in written
    assert "chatter" not in written
    assert "late" not in written
    assert [line[9:] for line in shown.getvalue().splitlines()] == ["news", "old weights", "late"]


def test_runs_follow_one_another_each_with_its_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "s.log"
    for number in (1, 2):
        address = f"storage.url=postgresql://me:{SECRET}@db/{number}"
        monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "search.run", address])
        with RunLog(path) as run_log:
            run_log.begin()
            log.info("run %d of password=%s", number, SECRET)
    first, second = path.read_text(encoding="utf-8").split("\n==== ")[1:]
    assert "run 1" in first
    assert "python -m search.run storage.url=postgresql://me:***@db/1" in first.replace("'", "")
    assert "run 2" in second
    assert SECRET not in first + second


def test_of_a_refused_run_nothing_is_left(tmp_path: Path) -> None:
    level = logging.getLogger("search").level
    with pytest.raises(ConfigError):
        refused(tmp_path / "logs" / "s.log")
    assert list(tmp_path.iterdir()) == []
    assert logging.getLogger("search").level == level


def test_what_ended_a_run_is_in_its_log(tmp_path: Path) -> None:
    path = tmp_path / "s.log"
    with pytest.raises(ValueError, match="broken"):
        failing(path)
    assert "in fail\n" in path.read_text(encoding="utf-8")


def test_any_letter_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / "s.log"
    with RunLog(path) as run_log:
        run_log.begin()
        log.info("\N{SNOWMAN} %s", os.fsdecode(b"\xff"))
    assert "\N{SNOWMAN} \\udcff" in path.read_text(encoding="utf-8")


def test_a_full_disk_ends_the_log_with_one_line(
    tmp_path: Path, shown: io.StringIO, capfd: pytest.CaptureFixture[str]
) -> None:
    with RunLog(tmp_path / "s.log") as run_log:
        run_log.begin()
        assert run_log._file is not None
        run_log._file.close()
        run_log._file = Path("/dev/full").open("wb", buffering=0)  # noqa: SIM115 - it closes it
        log.debug("lost")
        log.info("lost too")
    (lacking, told) = shown.getvalue().splitlines()
    assert "s.log lacks the rest of this run (OSError: [Errno 28]" in lacking
    assert told.endswith("lost too")
    assert capfd.readouterr().err == ""


def test_of_what_a_worker_logs_only_what_is_wanted_is_logged(shown: io.StringIO) -> None:
    for level in (logging.DEBUG, logging.INFO):
        _log_here(logging.LogRecord("search.x", level, __file__, 1, "level %d", (level,), None))
    _log_here(logging.LogRecord("stranger", logging.INFO, __file__, 1, "chatter", (), None))
    assert [line[9:] for line in shown.getvalue().splitlines()] == ["level 20"]


@pytest.mark.parametrize(
    "code",
    [
        "from logging.config import dictConfig; dictConfig({'version': 1})",
        "from logging.config import dictConfig; dictConfig({'version': 1, 'root': {}})",
        "import logging; logging.basicConfig(level=logging.ERROR, force=True)",
        "import logging; logging.getLogger('search').setLevel(logging.ERROR)",
        "import logging; logging.disable()",
    ],
)
def test_what_the_user_s_code_does_to_logging_silences_nothing(
    code: str, tmp_path: Path, shown: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mute_net.py").write_text(f"{code}\n\ndef build(): ...\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "mute_net", raising=False)
    with RunLog(tmp_path / "s.log") as run_log:
        run_log.begin()
        load_factory("mute_net:build", "model.factory")
        log.debug("detail")
        log.info("news")
        logging.getLogger("stranger").warning("old weights")
    written = (tmp_path / "s.log").read_text(encoding="utf-8")
    assert "DEBUG search.x: detail" in written
    assert [line[9:] for line in shown.getvalue().splitlines()] == ["news", "old weights"]
