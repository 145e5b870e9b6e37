"""One search makes MLflow's database while others wait, and say for whom."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from search.config.places import TrackingConfig
from search.errors import TrackingLost
from search.tracking import server

HOLDER = """
import fcntl, os, sys
fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


def test_nobody_waits_for_a_process_that_stands_still(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "LONG_WAIT_S", 0.2)
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        holder.send_signal(signal.SIGSTOP)
        try:
            with pytest.raises(TrackingLost, match=rf"process {holder.pid} \(stopped\)"):
                server.connect(TrackingConfig(uri=None, timeout_s=1.0), tmp_path)
        finally:
            holder.send_signal(signal.SIGCONT)
        holder.communicate("")


def test_whoever_makes_the_database_for_long_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(server, "LONG_WAIT_S", 0.2)
    folder = os.open(tmp_path, os.O_RDONLY)
    waiting = threading.Thread(target=server._lock, args=(folder,))
    with (
        caplog.at_level(logging.WARNING),
        subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as holder,
    ):
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        waiting.start()
        deadline = time.monotonic() + 60
        while not caplog.messages and time.monotonic() < deadline:
            time.sleep(0.01)
        assert waiting.is_alive()
        holder.communicate("")
    waiting.join(60)
    os.close(folder)
    assert not waiting.is_alive()
    assert len(caplog.messages) == 1
    assert f"waits for process {holder.pid}" in caplog.text
