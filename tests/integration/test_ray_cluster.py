"""A cluster of several nodes, some of which are lost."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ray.cluster_utils import Cluster

from search.config.engine import RayEngineConfig
from search.devices.agent.processor import count_usable_cores
from search.engine import cluster, connecting, make_engine
from search.engine.cluster import RayEngine
from search.engine.store import Store
from search.errors import ConfigError, StageFailed
from search.records.network import NetworkSpec, Teacher
from tests import foreign
from tests.fakes import LOCAL as DEVICE
from tests.workbench import Workbench

RAY = RayEngineConfig(
    name="ray", address=None, workers=1, threads=1, gpus=0.0, device_resource="device"
)
HEAD = {"num_cpus": 0, "include_dashboard": False}
HELD = """
import pathlib, time
from torch import nn

def build(begun, released):  # of images of 28x28 pixels
    pathlib.Path(begun).touch()
    while not pathlib.Path(released).exists():
        time.sleep(0.05)
    layers = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AvgPool2d(4)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(8 * 7 * 7, 10))
"""


@pytest.fixture
def trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets clusters of this process be joined without a token: Ray's own run on no loopback."""
    monkeypatch.setattr(connecting, "is_loopback", lambda host: True)


@pytest.mark.usefixtures("trusted")
def test_a_training_killed_for_memory_is_tried_once_more(
    tmp_path: Path, bench: Workbench, caplog: pytest.LogCaptureFixture
) -> None:
    tight = {"memory_usage_threshold": 0.0001, "memory_monitor_refresh_ms": 100}
    # Whatever works there is killed.
    head = {**HEAD, "num_cpus": 1, "resources": {"device": 1}, "_system_config": tight}
    nodes = Cluster(initialize_head=True, head_node_args=head)
    try:
        config = replace(RAY, address=nodes.address)
        with make_engine(config, Store(tmp_path), lambda step: None) as engine:
            asked = engine.submit(replace(bench.teach_step("cnn"), epochs=30))
            with pytest.raises(StageFailed, match=r"its node failed 2 times \(OutOfMemoryError: "):
                asked.result(timeout=120)
        assert caplog.text.count("a node failed in teacher (OutOfMemoryError: ") == 1
    finally:
        nodes.shutdown()


@pytest.mark.usefixtures("trusted")
def test_the_step_of_a_lost_node_is_done_elsewhere_and_a_lost_device_is_waited_for(
    tmp_path: Path,
    bench: Workbench,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cluster, "WATCH_S", 0.2)
    caplog.set_level("INFO")
    monkeypatch.chdir(tmp_path)
    Path("held.py").write_text(HELD)
    begun, released = tmp_path / "begun", tmp_path / "released"
    held = ("begun", str(begun)), ("released", str(released))
    shape, classes = bench.data.image_shape, bench.data.classes
    spec = NetworkSpec("held", None, "held:build", held, None, shape, classes)
    nodes = Cluster(initialize_head=True, head_node_args=HEAD)

    def add_device() -> Any:
        return nodes.add_node(num_cpus=0, resources={"device": 1})

    try:
        device, doomed = add_device(), nodes.add_node(num_cpus=1)
        nodes.wait_for_nodes()
        config = replace(RAY, address=nodes.address)
        with (
            make_engine(config, Store(tmp_path), lambda step: None) as engine,
            ThreadPoolExecutor(1) as beside,
        ):
            training = engine.submit(replace(bench.teach_step("cnn"), spec=spec, epochs=1))
            deadline = time.monotonic() + 60
            while not begun.exists():  # it is in the midst of it then, until it is released
                assert time.monotonic() < deadline
                time.sleep(0.1)
            nodes.add_node(num_cpus=1)
            nodes.remove_node(doomed, allow_graceful=False)
            released.touch()
            taught: Teacher = training.result(timeout=120).result
            assert taught.network.spec == spec

            caplog.clear()
            nodes.remove_node(device, allow_graceful=False)
            _await_text(caplog, "no node of the cluster has the resource 'device'")
            asked = beside.submit(engine.describe, DEVICE)
            with pytest.raises(TimeoutError):
                asked.result(timeout=1)
            add_device()
            _await_text(caplog, "all required cluster resources are available again")
            assert asked.result(timeout=60).usable_cores == count_usable_cores()
    finally:
        nodes.shutdown()


def test_nodes_find_the_user_s_modules_beside_a_search_of_the_user_s(
    tmp_path: Path, bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(foreign.fill(tmp_path / "user", search=True))
    shape, classes = bench.data.image_shape, bench.data.classes
    spec = NetworkSpec("mine", None, foreign.FACTORY, (), None, shape, classes)
    with make_engine(RAY, Store(tmp_path), lambda step: None) as engine:
        assert engine.describe(DEVICE).usable_cores == count_usable_cores()
        step = replace(bench.teach_step("cnn"), spec=spec, epochs=1)
        taught: Teacher = engine.submit(step).result(timeout=120).result
    assert taught.network.spec == spec


def _await_text(caplog: pytest.LogCaptureFixture, text: str) -> None:
    deadline = time.monotonic() + 60
    while text not in caplog.text:
        assert time.monotonic() < deadline, caplog.text
        time.sleep(0.1)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.0.0.1:99999", "ray://127.0.0.1:1"])
def test_a_cluster_that_does_not_answer_is_refused(tmp_path: Path, address: str) -> None:
    nowhere = replace(RAY, address=address)
    with (
        pytest.raises(ConfigError, match=r"engine.address='.*': no cluster answers there \("),
        make_engine(nowhere, Store(tmp_path), lambda step: None),
    ):
        pass


@pytest.mark.parametrize("address", ["192.0.2.1:6379", "ray://[2001:db8::1]:1", "auto", "cluster"])
def test_a_cluster_without_a_token_is_refused(
    tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    with (
        pytest.raises(ConfigError, match=r"engine.address='.*unless it has a token; .*=token"),
        make_engine(replace(RAY, address=address), Store(tmp_path), lambda step: None),
    ):
        pass


def own_address() -> str:
    """An address of this machine that others may reach; 127.0.0.1 if there is none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.200", 9))  # which sends nothing
        except OSError:
            return "127.0.0.1"
        return str(probe.getsockname()[0])


JOIN = """
import sys
from pathlib import Path
from search.config.engine import RayEngineConfig
from search.engine import make_engine
from search.engine.store import Store
from search.errors import ConfigError
config = RayEngineConfig(
    name="ray", address=sys.argv[1], workers=1, threads=1, gpus=0.0, device_resource="device"
)
try:
    with make_engine(config, Store(Path(sys.argv[2])), lambda step: None):
        print("joined")
except ConfigError as error:
    print(error)
"""


@contextmanager
def head_beyond_loopback(environment: Mapping[str, str]) -> Iterator[str]:
    """Runs a cluster of one node as its own command does; yields its address."""
    host = own_address()
    with socket.socket() as probe:
        probe.bind((host, 0))
        port = probe.getsockname()[1]
    # Not pytest's folder: names of sockets are short.
    with tempfile.TemporaryDirectory(prefix="ray") as folder:
        command = [
            str(Path(sys.executable).with_name("ray")), "start", "--head", "--block",
            f"--node-ip-address={host}", f"--port={port}", "--num-cpus=1",
            '--resources={"device": 1}', "--include-dashboard=false", f"--temp-dir={folder}",
        ]  # fmt: skip
        with subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as head:
            try:
                assert head.stdout is not None
                said = []
                for line in head.stdout:
                    said.append(line)
                    if "Ray runtime started" in line:
                        break
                assert head.poll() is None, "".join(said)
                yield f"{host}:{port}"
            finally:
                head.terminate()
                head.communicate(timeout=60)


def test_a_password_in_the_command_line_is_not_shown_to_a_cluster(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = RayEngineConfig("ray", "127.0.0.1:1", 1, 1, 0.0, "device")
    store = Store(tmp_path)
    with pytest.raises(ConfigError, match="no cluster answers there"):
        RayEngine(store, config, lambda step: None).__enter__()
    address = "postgresql://me:Geheim42@db/search"
    given = [sys.executable, "-m", "search.run", "storage=postgres", f"storage.url={address}"]
    monkeypatch.setattr(sys, "orig_argv", given)
    with pytest.raises(ConfigError, match="and there is a password in this one; give it as PGPAS"):
        RayEngine(store, config, lambda step: None).__enter__()


def test_a_cluster_with_a_token_is_joined_with_it_alone(tmp_path: Path) -> None:
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **token}

    def join(address: str, **changes: str) -> str:
        command = [sys.executable, "-c", JOIN, address, str(tmp_path / "store")]
        given = environment | changes
        done = subprocess.run(
            command, check=True, capture_output=True, env=given, text=True, timeout=240
        )
        return done.stdout

    with head_beyond_loopback(environment) as address:
        assert join(address) == "joined\n"
        refused = join(address, RAY_AUTH_TOKEN=secrets.token_hex(32))
    assert refused.startswith(f"engine.address='{address}': cannot be joined (")


@pytest.mark.usefixtures("trusted")
def test_what_no_node_has_is_refused_or_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        pytest.raises(ConfigError, match=r"engine.gpus=1: this machine has not as many"),
        make_engine(replace(RAY, gpus=1.0), Store(tmp_path), lambda step: None),
    ):
        pass
    nodes = Cluster(initialize_head=True, head_node_args={**HEAD, "num_cpus": 1})
    try:
        wide = replace(RAY, address=nodes.address, threads=2)
        with (
            pytest.raises(ConfigError, match=r"no node there has the resource 'device'"),
            make_engine(wide, Store(tmp_path), lambda step: None),
        ):
            pass
        nodes.add_node(num_cpus=0, resources={"device": 1})
        nodes.wait_for_nodes()
        with make_engine(wide, Store(tmp_path), lambda step: None):
            _await_text(caplog, "no node of the cluster has engine.threads=2 cores")
    finally:
        nodes.shutdown()


LISTENERS = """
import sys
from pathlib import Path
from search.config.engine import RayEngineConfig
from search.engine import make_engine
from search.engine.store import Store
config = RayEngineConfig(
    name="ray", address=None, workers=1, threads=1, gpus=0.0, device_resource="device"
)

def listeners():
    own = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A":
                own.add(fields[1])
    return own

before = listeners()
with make_engine(config, Store(Path(sys.argv[1])), lambda step: None):
    print(*sorted(listeners() - before))
"""


def test_a_cluster_of_ones_own_listens_on_loopback_alone(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LISTENERS, str(tmp_path)],
        capture_output=True,
        text=True,
        # Another cluster than one's own is joined where it is asked for, nowhere else.
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(sys.path),
            "RAY_ADDRESS": "127.0.0.1:1",
        },
        timeout=120,
        check=True,
    )
    addresses = {listener.partition(":")[0] for listener in done.stdout.split()}
    # As /proc/net writes 127.0.0.1 and, in IPv6, the same.
    assert addresses
    assert addresses <= {"0100007F", "0000000000000000FFFF00000100007F"}
