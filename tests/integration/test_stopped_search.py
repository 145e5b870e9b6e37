"""A search that Ctrl-Z stops for longer than it waits for the device behind ssh."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import asyncssh

from search.devices.device import Device
from search.devices.local import LocalTransport
from search.devices.reaching import hold
from tests.ssh_server import Server, make_config

START_S = 60.0
ANSWER_S, TIMEOUT_S, STOPPED_S = 1.0, 2.0, 4.0
ASKS = """
import json, sys
from search.devices.device import Device
from search.devices.ssh import SshTransport
from search.config.device import SshDeviceConfig
config, wait_s, timeout_s = json.loads(sys.argv[1])
with Device(SshTransport(SshDeviceConfig(**config), 60.0), 60.0) as device:
    print("asks", flush=True)
    request = {"request": "lock", "wait_s": wait_s, "hold_s": 60.0}
    print(device.ask(request, timeout_s)["held"], flush=True)
"""


def test_an_answer_that_came_meanwhile_is_taken_when_it_goes_on(tmp_path: Path) -> None:
    host, user = (asyncssh.generate_private_key("ssh-ed25519") for _ in range(2))
    user.write_private_key(tmp_path / "key")
    (tmp_path / "home").mkdir()
    with (
        Server(tmp_path / "home", host, user) as server,
        Device(LocalTransport(), START_S) as local,
    ):
        hold(local, 60.0)  # so that whoever wants it too is told no, after a while
        config = asdict(make_config(tmp_path, server.port, host, "somebody"))
        words = json.dumps([config, ANSWER_S, TIMEOUT_S])
        with subprocess.Popen([sys.executable, "-c", ASKS, words], stdout=subprocess.PIPE) as asks:
            assert asks.stdout is not None
            assert asks.stdout.readline() == b"asks\n"
            time.sleep(0.3)
            os.kill(asks.pid, signal.SIGSTOP)
            time.sleep(STOPPED_S)
            os.kill(asks.pid, signal.SIGCONT)
            assert asks.stdout.readline() == b"False\n"
        assert asks.returncode == 0
