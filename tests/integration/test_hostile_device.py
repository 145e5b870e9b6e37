"""A device that lies, floods, dawdles or dies, and models that were damaged on their way to it."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from search.benchmark.plan import Plan, Side
from search.benchmark.protocol import compare
from search.config.device import SshDeviceConfig
from search.data import Split
from search.devices.agent.messages import SCHEMA
from search.devices.device import Device
from search.devices.local import LocalTransport
from search.devices.replies import LONGEST_BYTES
from search.devices.ssh import SshTransport
from search.errors import ConfigError, StageFailed
from search.records.files import File
from search.stages.evaluate import evaluate
from tests.deployables import make_deployable
from tests.integration.test_benchmark_agent import assert_empty, open_request
from tests.integration.test_ssh_device import config, home, keys, server
from tests.onnx_files import save, save_conv_net
from tests.unit.benchmark.test_replies import HONEST

__all__ = ["config", "home", "keys", "server"]  # fixtures

START_S = 30.0
SOON_S = 1.5
PATIENCE_S = 60.0  # what hangs takes longer

# Speaks as an agent does, by a table of replies; what is no text is printed for ever.
LIAR = """
import json, sys
table = json.loads(sys.argv[1])
for line in sys.stdin:
    told = table[json.loads(line)["request"]]
    print(json.dumps({"ok": True, **told}) if isinstance(told, dict) else told, flush=True)
"""


def liar(**lies: Any) -> tuple[str, ...]:
    """A command that answers honestly but for ``lies``."""
    return (sys.executable, "-c", LIAR, json.dumps({**HONEST, **lies}))


PLAN = Plan(
    candidate=Side("a.onnx", 1, ()),
    reference=Side("b.onnx", 1, ()),
    inputs="inputs.npy",
    batch_size=1,
    throughput_batch_size=4,
    memory_limit_bytes=None,
    launches=2,
    retry=True,
    budget_s=1.0,
    timeout_s=10.0,
    seed=0,
)
MEASURING = ["conditions", "start", "open", "single", "rounds"]


@pytest.mark.parametrize("kind", MEASURING)
@pytest.mark.parametrize("lie", ["", "null", "[1, 2]", '{"ok": NaN}', "\x1b[2J owned"])
def test_a_lie_in_a_measurement_fails_the_trial(kind: str, lie: str) -> None:
    with Device(LocalTransport(liar(**{kind: lie})), START_S) as device:
        with pytest.raises(StageFailed, match=f"'{kind}'") as caught:
            compare(device, PLAN)
        assert str(caught.value).isprintable()
    assert_empty(device.process_group)


FLOODS = {
    "a line without end": "while True: print('x' * 65536, end='', flush=True)",
    "errors without end": "while True: print('x' * 65536, file=sys.stderr, flush=True)",
    "a letter a moment": "while True: time.sleep(0.05); print('x', end='', flush=True)",
    "no word": "time.sleep(99)",
}


@pytest.mark.parametrize("flood", FLOODS)
def test_a_flood_ends_in_bounded_time_and_memory(flood: str) -> None:
    program = f"import sys, time\n{FLOODS[flood]}"
    before, begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    local = Device(LocalTransport((sys.executable, "-c", program)), SOON_S)
    with pytest.raises(StageFailed, match=r"'hello'") as caught, local:
        pytest.fail("must not be entered")
    assert len(str(caught.value)) < 500
    assert time.monotonic() - begun < PATIENCE_S
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    assert grown < 6 * LONGEST_BYTES
    assert_empty(local.process_group)


def write_python(home: Path, body: str) -> str:
    """Puts a program in the place of the device's Python."""
    path = home / "python"
    mortal = "import os, signal, sys, time\nsignal.alarm(5)"  # the server waits for it
    path.write_text(f"#!{sys.executable}\n{mortal}\n{body}\n")
    path.chmod(0o755)
    return str(path)


PYTHONS = {
    "it writes without end": "while True: sys.stderr.write('x' * 65536)",
    "it never ends": "time.sleep(99)",
    "it claims much": "sys.stderr.write('\\x1b[2J' + 'y' * 10**6); sys.exit(1)",
}


def opened(config: SshDeviceConfig, timeout_s: float) -> Device:
    return Device(SshTransport(config, timeout_s), timeout_s)


@pytest.mark.parametrize("what", PYTHONS)
def test_the_python_of_a_hostile_device(config: SshDeviceConfig, home: Path, what: str) -> None:
    hostile = replace(config, python=write_python(home, PYTHONS[what]))
    begun = time.monotonic()
    with pytest.raises((StageFailed, ConfigError)) as caught, opened(hostile, SOON_S):
        pytest.fail("must not be entered")
    assert len(str(caught.value)) < 800
    assert str(caught.value).isprintable()
    assert time.monotonic() - begun < PATIENCE_S


def test_an_answer_without_end_over_ssh(config: SshDeviceConfig, home: Path) -> None:
    honest = "if '-c' in sys.argv: "
    honest += f"os.execv({sys.executable!r}, [{sys.executable!r}, *sys.argv[1:]])\n"
    flood = "while True: sys.stdout.write('x' * 65536)"
    hostile = replace(config, python=write_python(home, honest + flood))
    with pytest.raises(StageFailed, match="longer than any agent's"), opened(hostile, START_S):
        pytest.fail("must not be entered")


# ---- models


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    save_conv_net(root / "sound.onnx", width=8, layers=1)
    np.save(root / "inputs.npy", np.zeros((2, 1, 28, 28), np.float32))
    return root


@pytest.fixture(scope="module")
def device() -> Iterator[Device]:
    with Device(LocalTransport(), START_S) as local:
        yield local


@settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_a_damaged_model_is_measured_or_refused(
    device: Device, folder: Path, data: st.DataObject
) -> None:
    content = bytearray((folder / "sound.onnx").read_bytes())
    places = st.integers(0, len(content) - 1)
    for place in data.draw(st.lists(places, min_size=1, max_size=4)):
        content[place] ^= 1 << data.draw(st.integers(0, 7))
    end = data.draw(st.just(len(content)) | places)
    (folder / "damaged.onnx").write_bytes(content[:end])
    device.ask({"request": "start", "roles": ["candidate"]}, START_S)
    said = ""
    try:
        device.ask(open_request(folder, "candidate", "damaged.onnx"), START_S)
    except StageFailed as error:
        said = str(error)
    assert "\n" not in said
    assert device.ask({"request": "hello"}, START_S)["schema"] == SCHEMA


def save_external(path: Path, location: str) -> Path:
    """Writes a model whose weights lie in another file."""
    save(path, [helper.make_node("Add", ["x", "w"], ["y"])], {})
    model = onnx.load(path, load_external_data=False)
    weights = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1, 1, 28, 28])
    weights.data_location = TensorProto.EXTERNAL
    weights.external_data.add(key="location", value=location)
    model.graph.initializer.append(weights)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("how", ["above", "absolute", "by a link"])
def test_a_model_reads_no_file_outside_its_folder(
    device: Device, tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = tmp_path / "models"
    inside.mkdir()
    secret = tmp_path / "secret"
    secret.write_bytes(np.ones(28 * 28, np.float32).tobytes())
    (inside / "link").symlink_to(secret)
    location = {"above": "../secret", "absolute": str(secret), "by a link": "link"}[how]
    path = save_external(inside / "model.onnx", location)
    np.save(inside / "inputs.npy", np.zeros((2, 1, 28, 28), np.float32))
    device.ask({"request": "start", "roles": ["candidate"]}, START_S)
    with pytest.raises(StageFailed, match="External data path"):
        device.ask(open_request(inside, "candidate", "model.onnx"), START_S)
    monkeypatch.chdir(inside)
    split = Split(np.zeros((2, 1, 28, 28), np.uint8), np.zeros(2, np.int64))
    deployable = make_deployable(File("0" * 64, ".onnx", 1), 32, ())
    with pytest.raises(Exception, match="External data path"):
        evaluate(path, deployable, split)
