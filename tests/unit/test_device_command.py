"""How ``python -m search.device`` ends where the device cannot be probed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from search import device
from search.devices import reaching
from search.devices.device import AgentKilled
from search.engine.inline import InlineEngine
from search.errors import SearchError, StageFailed
from tests.fakes import PROFILE


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (AgentKilled("measure", "the agent died with status -9"), 1),
        (StageFailed("measure", "no such operator"), 2),
    ],
)
def test_a_killed_agent_is_no_fault_of_the_configuration(
    error: SearchError,
    status: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: Any) -> Any:
        raise error

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(reaching, "describe_device", lambda config: PROFILE)
    monkeypatch.setattr(InlineEngine, "run", fail)
    assert device.main([]) == status
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert ("the same command goes on from here" in said) is (status == 1)
