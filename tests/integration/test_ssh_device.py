"""The device behind ssh, over a real ssh server on loopback that runs real processes."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import asyncssh
import numpy as np
import pytest

from search.benchmark.plan import Plan, Side
from search.benchmark.protocol import compare
from search.config.data import DigitsConfig
from search.config.device import SshDeviceConfig
from search.data import describe
from search.devices import login, reaching
from search.devices.agent.processor import count_usable_cores
from search.devices.archive import NAME, archive
from search.devices.device import Device
from search.devices.reaching import describe_device, hold, open_device
from search.devices.ssh import CHECK, THREAD, SshTransport
from search.engine.store import Store
from search.errors import ConfigError, DeviceLost, StageFailed
from search.records.steps.measuring import Measure
from search.stages import measure
from tests.deployables import make_deployable
from tests.fakes import measure_step
from tests.integration.test_benchmark_agent import assert_empty, living, open_request
from tests.onnx_files import save_conv_net, save_endless
from tests.ssh_server import Server, list_key, make_config

START_S = 60.0
USER = "somebody"
T = TypeVar("T")


# ---- what a test needs


@pytest.fixture(scope="module")
def keys() -> dict[str, asyncssh.SSHKey]:
    return {name: asyncssh.generate_private_key("ssh-ed25519") for name in ("host", "user", "new")}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


@pytest.fixture
def server(home: Path, keys: dict[str, asyncssh.SSHKey]) -> Iterator[Server]:
    with Server(home, keys["host"], keys["user"]) as running:
        yield running


@pytest.fixture
def config(server: Server, tmp_path: Path, keys: dict[str, asyncssh.SSHKey]) -> SshDeviceConfig:
    keys["user"].write_private_key(tmp_path / "key")
    return make_config(tmp_path, server.port, keys["host"], USER)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    save_conv_net(root / "light.onnx", width=16, layers=2)
    save_endless(root / "endless.onnx")
    np.save(root / "inputs.npy", np.random.default_rng(1).random((8, 1, 28, 28), np.float32))
    return root


def make_plan(device: Device, models: Path, candidate: str, timeout_s: float) -> Plan:
    paths = [device.deliver(models / name) for name in (candidate, "light.onnx", "inputs.npy")]
    return Plan(
        candidate=Side(paths[0], 1, ()),
        reference=Side(paths[1], 1, ()),
        inputs=paths[2],
        batch_size=1,
        throughput_batch_size=4,
        memory_limit_bytes=None,
        launches=2,
        retry=True,
        budget_s=2.0,
        timeout_s=timeout_s,
        seed=3,
    )


def group_of(device: Device) -> int:
    group = device.process_group
    assert group is not None
    assert living(group)[0] == group  # leads it
    return group


def opened(config: SshDeviceConfig) -> Device:
    return Device(SshTransport(config, START_S), START_S)


def refuse(config: SshDeviceConfig) -> str:
    """Returns the one line that says why the device cannot be entered."""
    with pytest.raises((ConfigError, DeviceLost)) as caught, opened(config):
        pytest.fail("must not be entered")
    text = str(caught.value)
    assert "\n" not in text
    assert THREAD not in {thread.name for thread in threading.enumerate()}
    return text


# ---- a device that works


def test_models_are_compared_there(config: SshDeviceConfig, home: Path, models: Path) -> None:
    with opened(config) as device:
        group = group_of(device)
        found = compare(device, make_plan(device, models, "light.onnx", 60.0))
    assert_empty(group)
    assert 0.5 < found.ratio < 2.0
    assert found.operators["Conv"] == 2
    folder = home / "models" / "kept here"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    files = [path for path in folder.iterdir() if path.is_file()]  # beside the unpacked agent
    digests = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    assert len(digests) == 3
    assert all(name.startswith(f"{digest}.") for name, digest in digests.items())


def test_nothing_is_sent_twice(config: SshDeviceConfig, server: Server, models: Path) -> None:
    with opened(config) as device:
        first = device.deliver(models / "light.onnx")
    assert len(server.uploads) == 2
    with opened(config) as device:
        assert device.deliver(models / "light.onnx") == first
    assert len(server.uploads) == 2


def test_damaged_files_are_replaced(
    config: SshDeviceConfig, server: Server, home: Path, models: Path
) -> None:
    folder = home / config.folder
    folder.mkdir(parents=True)
    agent = folder / f"{hashlib.sha256(archive()).hexdigest()}{Path(NAME).suffix}"
    agent.write_bytes(b"raise SystemExit('this is another program')")
    torn = folder / name_of(models / "light.onnx")
    torn.write_bytes((models / "light.onnx").read_bytes()[:100])
    with opened(config) as device:
        assert device.deliver(models / "light.onnx") == str(torn)
    assert torn.read_bytes() == (models / "light.onnx").read_bytes()
    assert agent.read_bytes() == archive()
    # And what the agent took out of its archive.
    assert set(folder.iterdir()) == {agent, agent.with_suffix(""), torn}


def name_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() + path.suffix


def test_refusal_is_no_end(config: SshDeviceConfig) -> None:
    with opened(config) as device:
        with pytest.raises(StageFailed, match="knows no request 'dance'"):
            device.ask({"request": "dance"}, START_S)
        assert device.ask({"request": "hello"}, START_S)["pid"] == device.process_group
    with pytest.raises(StageFailed, match="has ended"):
        device.ask({"request": "hello"}, START_S)


# ---- a login that is refused


@pytest.mark.parametrize("listed", ["", "other.example", None])
def test_unknown_host_key_is_refused(
    config: SshDeviceConfig,
    server: Server,
    tmp_path: Path,
    keys: dict[str, Any],
    listed: str | None,
) -> None:
    public = keys["host"].export_public_key("openssh").decode()
    if listed is None:
        (tmp_path / "known_hosts").unlink()
    else:
        (tmp_path / "known_hosts").write_text(listed and f"{listed} {public}")
    text = refuse(config)
    for part in (
        f"127.0.0.1:{server.port}",
        keys["host"].get_fingerprint(),
        f"ssh-keyscan -p {server.port} 127.0.0.1 >> {config.known_hosts}",
    ):
        assert part in text
    assert server.uploads == []


def test_changed_host_key_is_refused(
    config: SshDeviceConfig, server: Server, tmp_path: Path, keys: dict[str, Any]
) -> None:
    list_key(tmp_path, server.port, keys["new"])
    text = refuse(config)
    assert "not the one in" in text
    assert keys["host"].get_fingerprint() in text
    assert f"ssh-keygen -R '[127.0.0.1]:{server.port}' -f {config.known_hosts}" in text


def test_other_kind_of_host_key_is_refused(
    config: SshDeviceConfig, server: Server, tmp_path: Path
) -> None:
    list_key(tmp_path, server.port, asyncssh.generate_private_key("ecdsa-sha2-nistp256"))
    # Both sides find out at once, and the server may hang up before the reason is told.
    assert any("host key is of a new kind" in refuse(config) for _ in range(10))


def test_stranger_is_refused(config: SshDeviceConfig, keys: dict[str, Any]) -> None:
    assert config.key is not None
    keys["new"].write_private_key(config.key)
    text = refuse(config)
    for part in (USER, f"127.0.0.1:{config.port}", config.key):
        assert part in text


def test_missing_key_is_reported(config: SshDeviceConfig) -> None:
    assert "device.key=/nowhere/key cannot be read" in refuse(replace(config, key="/nowhere/key"))


def test_encrypted_key_needs_an_agent(
    config: SshDeviceConfig, keys: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    assert config.key is not None
    keys["user"].write_private_key(config.key, "pkcs8-pem", passphrase="secret")
    assert f"ssh-add {config.key}" in refuse(config)
    Path(config.key).write_text("this is no key")
    assert "is no private key" in refuse(config)


@pytest.mark.skipif(shutil.which("ssh-agent") is None, reason="needs ssh-agent")
def test_encrypted_key_is_taken_from_the_agent(
    config: SshDeviceConfig, keys: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert config.key is not None
    keys["user"].write_private_key(config.key, "pkcs8-pem", passphrase="secret")
    address = str(tmp_path / "agent")
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", address], stdout=subprocess.DEVNULL)
    try:
        monkeypatch.setenv("SSH_AUTH_SOCK", address)
        deadline = time.monotonic() + 10.0
        while not Path(address).exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        asyncio.run(add_to_agent(address, keys["user"]))
        with opened(config) as device:
            assert device.process_group
    finally:
        agent.kill()
        agent.wait()


async def add_to_agent(address: str, key: asyncssh.SSHKey) -> None:
    async with asyncssh.connect_agent(address) as agent:
        await agent.add_keys([key])


def test_missing_asyncssh_is_reported(
    config: SshDeviceConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("search.devices.ssh", "search.devices.login"):
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "asyncssh", None)
    with pytest.raises(ConfigError, match=r"pip install 'cnn-search\[ssh\]'"):
        open_device(config, START_S)


def test_nobody_listens(config: SshDeviceConfig) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        assert f"127.0.0.1:{port}" in refuse(replace(config, port=port))


def test_silent_host_is_given_up(config: SshDeviceConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(login, "CONNECT_S", 0.5)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        port = silent.getsockname()[1]
        assert f"127.0.0.1:{port} (no answer in time)" in refuse(replace(config, port=port))


def test_missing_packages_are_named_with_their_installation(
    config: SshDeviceConfig, tmp_path: Path
) -> None:
    bare = tmp_path / "bare python"
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "$@"\n')
    bare.chmod(0o755)
    text = refuse(replace(config, python=str(bare)))
    assert "No module named 'numpy'" in text
    assert f"ssh -p {config.port} -i {config.key} {USER}@127.0.0.1" in text
    assert "-m pip install numpy onnxruntime (where pip refuses: in a virtual environment" in text


def test_looking_for_packages_reports_nothing_home(tmp_path: Path) -> None:
    environment = {**os.environ, "HOME": str(tmp_path)}
    environment.pop("XDG_CACHE_HOME", None)
    environment.pop("ORT_DISABLE_TELEMETRY", None)
    subprocess.run([sys.executable, "-c", CHECK], env=environment, check=True, timeout=START_S)
    assert list(tmp_path.rglob("*")) == []


def test_missing_python_is_reported(config: SshDeviceConfig) -> None:
    text = refuse(replace(config, python="no-such-python"))
    assert "not found" in text
    assert "set device.python" in text


def test_folder_that_cannot_be_made_is_reported(config: SshDeviceConfig, home: Path) -> None:
    (home / "models").write_text("a file, not a folder")
    assert "correct device.folder" in refuse(config)


# ---- what goes wrong later


@pytest.fixture
def device(config: SshDeviceConfig) -> Iterator[Device]:
    with opened(config) as entered:
        group = group_of(entered)
        yield entered
    assert_empty(group)


@pytest.mark.parametrize("how", ["abort", "close"])
def test_broken_connection_leaves_no_process(
    device: Device, server: Server, models: Path, how: str
) -> None:
    plan = make_plan(device, models, "endless.onnx", 60.0)
    group = group_of(device)

    def cut_when_busy() -> None:
        deadline = time.monotonic() + 20.0
        while len(living(group)) < 3 and time.monotonic() < deadline:
            time.sleep(0.02)
        server.cut(how)

    cutter = threading.Thread(target=cut_when_busy)
    cutter.start()
    with pytest.raises(DeviceLost, match=rf"{USER}@127\.0\.0\.1:{server.port}"):
        compare(device, plan)
    cutter.join()
    assert_empty(group)
    with pytest.raises(DeviceLost):
        device.deliver(Path(__file__))


def test_killed_agent_is_noticed(device: Device, models: Path) -> None:
    plan = make_plan(device, models, "light.onnx", 60.0)
    device.ask({"request": "start", "roles": ["candidate"]}, START_S)
    os.kill(group_of(device), signal.SIGKILL)
    with pytest.raises(StageFailed, match="agent died with status -9"):
        compare(device, plan)


def test_hung_model_is_given_up(device: Device, models: Path) -> None:
    plan = make_plan(device, models, "endless.onnx", 2.5)
    with pytest.raises(StageFailed, match=r"no answer to 'open'.*device\.timeout_s"):
        compare(device, plan)
    assert_empty(group_of_ended(device))


def test_stopped_agent_is_killed(device: Device, models: Path) -> None:
    """It cannot end itself, as one that swaps or whose libraries hang."""
    inputs = device.deliver(models / "inputs.npy")
    model = device.deliver(models / "light.onnx")
    device.ask(open_request(models, "candidate", model, inputs=inputs), START_S)
    group = group_of(device)
    os.killpg(group, signal.SIGSTOP)
    with pytest.raises(StageFailed, match="no answer to 'hello' in time"):
        device.ask({"request": "hello"}, 0.3)
    assert_empty(group)


def group_of_ended(device: Device) -> int:
    assert device.process_group is not None
    return device.process_group


# ---- sharing


def test_two_studies_queue(config: SshDeviceConfig) -> None:
    with opened(config) as first, opened(config) as second:
        hold(first, 60.0)
        request = {"request": "lock", "wait_s": 0.1, "hold_s": 60.0}
        reply = second.ask(request, START_S)
        assert (reply["held"], reply["holder"]) == (False, f"process {group_of(first)}")
        first.close()
        hold(second, 60.0)


def test_device_describes_itself(config: SshDeviceConfig) -> None:
    profile = describe_device(config)
    assert profile.name == f"127.0.0.1:{config.port}"
    assert profile.usable_cores == count_usable_cores()


def test_device_that_cannot_be_reached_is_a_fault_of_the_configuration(
    config: SshDeviceConfig,
) -> None:
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))
        nowhere = replace(config, port=unheard.getsockname()[1])
        with pytest.raises(ConfigError, match="no ssh server can be reached"):
            describe_device(nowhere)


# ---- trials


@pytest.fixture
def step(config: SshDeviceConfig, models: Path, tmp_path: Path) -> tuple[Measure, Store]:
    store = Store(tmp_path / "store")
    model = make_deployable(store.put((models / "light.onnx").read_bytes(), ".onnx"), 32, ())
    digits = describe(DigitsConfig(0.2, None, None, 1 << 30, "digits"))
    step = measure_step(model, data=digits, connection=config, throughput_batch_size=2)
    return replace(step, budget_s=0.3), store


def test_a_lost_connection_is_made_anew_and_the_trial_measured(
    step: tuple[Measure, Store], server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured, store = step
    assert isinstance(measured.connection, SshDeviceConfig)
    patient = replace(measured, connection=replace(measured.connection, retry_s=60.0))
    cut: list[int] = []

    def cut_once(device: Any, timeout_s: float) -> None:
        hold(device, timeout_s)
        if not cut:
            cut.append(group_of(device))
            threading.Timer(0.5, server.cut, ("abort",)).start()

    monkeypatch.setattr(reaching, "hold", cut_once)
    found = measure.run(patient, store)
    assert 0.3 < found.ratio < 3.0
    assert_empty(cut[0])


def test_a_device_that_restarts_is_waited_for_and_the_trial_measured(
    step: tuple[Measure, Store], server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured, store = step
    assert isinstance(measured.connection, SshDeviceConfig)
    patient = replace(measured, connection=replace(measured.connection, retry_s=60.0))
    restarts = [1.5]

    def restart(device: Any, timeout_s: float) -> None:
        hold(device, timeout_s)
        if restarts:
            server.restart(restarts.pop())

    monkeypatch.setattr(reaching, "hold", restart)
    assert 0.3 < measure.run(patient, store).ratio < 3.0
    assert not restarts


def test_a_killed_agent_is_started_anew_and_the_trial_measured(
    step: tuple[Measure, Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    killed: list[int] = []

    def kill_once(device: Any, timeout_s: float) -> None:
        hold(device, timeout_s)
        if not killed:
            killed.append(group_of(device))
            os.kill(killed[0], signal.SIGKILL)

    monkeypatch.setattr(reaching, "hold", kill_once)
    found = measure.run(*step)
    assert 0.3 < found.ratio < 3.0
    assert_empty(killed[0])


def test_a_device_that_stays_away_ends_the_search_but_no_trial(
    step: tuple[Measure, Store],
) -> None:
    measured, store = step
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))
        assert isinstance(measured.connection, SshDeviceConfig)
        port = unheard.getsockname()[1]
        nowhere = replace(measured.connection, port=port, retry_s=2.5)
        begun = time.monotonic()
        with pytest.raises(DeviceLost, match="no ssh server can be reached"):
            measure.run(replace(measured, connection=nowhere), store)
        assert time.monotonic() - begun >= 2.5
