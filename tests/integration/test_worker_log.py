"""What worker processes log comes to the coordinator, and not to the terminal."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from pathlib import Path

import pytest

from search.config.engine import LocalEngineConfig
from search.engine import make_engine
from search.engine.store import Store
from search.errors import ConfigError
from search.records.network import NetworkSpec
from search.records.steps.exporting import Trace
from tests.fakes import DATA
from tests.workbench import Workbench

LOCAL = LocalEngineConfig(name="local", workers=1, threads=1, memory_limit_bytes=None)
FACTORY = """
import logging
from torch import nn

def build():
    print("loading weights")
    logging.getLogger("my_nets").warning("they are old")
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 2))
"""


def test_a_failure_is_logged_with_its_traceback(
    bench: Workbench, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "search")
    store = Store(tmp_path)
    junk = replace(bench.teach_step("cnn"), checkpoint=store.put(b"junk", ".pt"))
    with make_engine(LOCAL, store, lambda event: None) as engine, pytest.raises(ConfigError):
        engine.submit(junk).result()
    (record,) = (one for one in caplog.records if one.name == "search.engine.base")
    assert record.getMessage().startswith("stage teacher failed\nTraceback")
    assert record.process != os.getpid()


def test_what_a_factory_prints_and_warns_of_is_logged(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "old_nets.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.DEBUG, "search")
    spec = NetworkSpec("custom", None, "old_nets:build", (), "0", DATA.image_shape, DATA.classes)
    with make_engine(LOCAL, Store(tmp_path / "store"), lambda event: None) as engine:
        engine.submit(Trace(spec, None, DATA.mean, DATA.std)).result()
    assert "model.factory='old_nets:build': loading weights" in caplog.messages
    assert "they are old" in caplog.messages
    assert capfd.readouterr() == ("", "")
