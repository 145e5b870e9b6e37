"""Single lines of a search: where its pages are, how much memory it held, what is left to do."""

from __future__ import annotations

import logging
import shlex
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from search.cli.showing import server_address, tell_time, telling_memory
from search.config.study import FinalistsConfig, StudyConfig
from tests.fakes import POLICY, FakeEngine, lab
from tests.plants import plant


def test_the_command_that_shows_a_study_can_be_pasted_whatever_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "my work; rm x"
    folder.mkdir()
    monkeypatch.chdir(folder)
    shown = server_address(None).partition("  # ")[0]
    assert shlex.split(shown)[-2:] == ["--state", str(folder / "mlruns")]
    uri = f"sqlite:///{folder}/mlflow.db"
    assert shlex.split(server_address(uri).partition("  # ")[0])[-2:] == [
        "--backend-store-uri",
        uri,
    ]


@pytest.mark.parametrize("error", [None, KeyboardInterrupt, ValueError])
def test_the_most_memory_is_told_however_a_search_ends(
    error: type[BaseException] | None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    records = [replace(plant(0), worker_rss_bytes=100 * 2**20)]
    try:
        with telling_memory(records):
            records.append(replace(plant(1), worker_rss_bytes=512 * 2**20))
            if error is not None:
                raise error
    except (KeyboardInterrupt, ValueError):
        assert error is not None
    (line,) = caplog.messages
    assert line.startswith("most memory held: this process ")
    assert line.endswith(", a worker 512 MiB")


def test_without_workers_none_is_named(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with telling_memory([]):
        pass
    assert "a worker" not in caplog.text


@pytest.mark.parametrize(("n_trials", "tells"), [(1, False), (2, False), (3, True)])
def test_what_trials_take_is_told_only_where_some_are_left(
    n_trials: int, tells: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    config: Any = SimpleNamespace(
        study=StudyConfig(name="s", n_trials=n_trials, timeout_s=None, warm_start=(), seed=0),
        policy=POLICY,
        finalists=FinalistsConfig(count=0, epochs=1.0, budget_s=1.0),
    )
    tell_time(config, lab(), {"measure": 4.0}, [plant(0), plant(1)], FakeEngine().slots)
    assert ("the trial that is left" in caplog.text) is tells
    assert bool(caplog.messages) is tells
