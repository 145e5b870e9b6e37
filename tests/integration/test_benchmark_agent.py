"""The real agent over real ONNX models, and what becomes of it when things go wrong."""

from __future__ import annotations

import ast
import hashlib
import json
import math
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from search.benchmark.plan import Plan, Side
from search.benchmark.protocol import compare
from search.benchmark.summary import quality_of
from search.config.data import DigitsConfig
from search.data import describe, read_samples
from search.devices import reaching, stillness
from search.devices.agent.drivers.onnxruntime import count_kernels, typical_kernels
from search.devices.agent.energy import energy_of_run, read_energy
from search.devices.agent.locks import find_holders, open_lock
from search.devices.agent.messages import SCHEMA
from search.devices.agent.processor import (
    count_usable_cores,
    read_disturbances,
    read_quotas,
    usable_cpus,
)
from search.devices.archive import FOLDER, NAME, archive
from search.devices.device import AgentKilled, Device
from search.devices.local import LocalTransport
from search.devices.reaching import describe_device, hold, make_profile, on_device
from search.devices.stillness import give_way, working
from search.errors import StageFailed
from search.process import activity
from search.process.activity import Activity
from search.records.data import Dataset
from search.records.device import DeviceProfile
from search.records.files import File
from search.records.steps.measuring import Confirm, Measure
from search.stages import confirm, measure
from tests.deployables import make_deployable
from tests.fakes import LOCAL, measure_step
from tests.onnx_files import (
    save_conv_net,
    save_conv_stack,
    save_endless,
    save_huge,
    save_quantised,
    save_unknown,
)

START_S = 60.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    save_conv_net(root / "light.onnx", width=16, layers=2)
    save_conv_net(root / "heavy.onnx", width=64, layers=3)
    save_quantised(root / "quantised.onnx")
    save_endless(root / "endless.onnx")
    save_huge(root / "huge.onnx")
    save_unknown(root / "unknown.onnx")
    (root / "corrupt.onnx").write_bytes(b"this is no protocol buffer")
    np.save(root / "inputs.npy", np.random.default_rng(1).random((8, 1, 28, 28), np.float32))
    return root


# ---- processes


def living(group: int) -> list[int]:
    """Process identifiers of a group, leader first; the dead that wait for burial do not count."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # ended while the list was read
        if int(fields[2]) == group and fields[0] not in "ZX":
            found.append(int(stat.parent.name))
    return sorted(found, key=lambda pid: pid != group)


def assert_empty(group: int) -> None:
    deadline = time.monotonic() + 10.0
    while living(group) and time.monotonic() < deadline:
        time.sleep(0.02)  # a signal takes a moment
    assert living(group) == []


@pytest.fixture
def device() -> Iterator[Device]:
    with Device(LocalTransport(), START_S) as local:
        yield local
    assert_empty(local.process_group)


def open_request(folder: Path, role: str, model: str, **changes: Any) -> dict[str, Any]:
    return {
        "request": "open",
        "role": role,
        "model": str(folder / model),
        "inputs": str(folder / "inputs.npy"),
        "batch_size": 1,
        "threads": 1,
        "session_entries": {},
        "memory_limit_bytes": None,
        "seed": 0,
        **changes,
    }


def open_model(device: Device, folder: Path, role: str, model: str, **changes: Any) -> Any:
    return device.ask(open_request(folder, role, model, **changes), START_S)


def make_plan(folder: Path, candidate: str, reference: str, threads: int = 1) -> Plan:
    return Plan(
        candidate=Side(str(folder / candidate), threads, ()),
        reference=Side(str(folder / reference), 1, ()),
        inputs=str(folder / "inputs.npy"),
        batch_size=1,
        throughput_batch_size=4,
        memory_limit_bytes=None,
        launches=2,
        retry=False,
        budget_s=1.0,
        timeout_s=120.0,
        seed=3,
    )


# ---- comparisons


def test_same_model_compares_as_equal(device: Device, folder: Path) -> None:
    found = compare(device, make_plan(folder, "light.onnx", "light.onnx"))
    assert 0.5 < found.ratio < 2.0
    assert found.ratio_low <= found.ratio <= found.ratio_high
    assert found.rounds >= 16
    assert found.peak_rss_bytes > 1 << 20
    assert found.p50_ms is not None
    assert min(found.p50_ms, found.reference_p50_ms, found.cpu_ms, found.cold_start_ms) > 0
    assert found.images_per_s is not None
    assert found.images_per_s > 0
    assert 0 < found.model_rss_bytes < found.peak_rss_bytes
    assert (found.energy_mj is None) == ("RAPL, " not in found.energy_note)


@pytest.mark.parametrize("threads", [1, 2])
def test_heavier_model_is_slower(device: Device, folder: Path, threads: int) -> None:
    found = compare(device, make_plan(folder, "heavy.onnx", "light.onnx", threads))
    assert found.ratio > 3.0
    assert found.operators["Conv"] == 3


def test_rounds_are_paired_and_balanced(device: Device, folder: Path) -> None:
    for role in ("candidate", "reference"):
        open_model(device, folder, role, "light.onnx", batch_size=3, threads=2)
    request = {"request": "rounds", "block_ms": 2.0, "seed": 5}
    full = device.ask({**request, "count": 10, "limit_ms": 1e6}, START_S)
    assert len(full["rounds"]) == 10
    assert full["order"].count("A") == full["order"].count("B") == 10
    assert all(min(pair) > 0 for pair in full["rounds"])
    ended = device.ask({**request, "count": 10, "limit_ms": 0.0}, START_S)
    assert len(ended["rounds"]) == 2
    assert ended["order"] == full["order"][:4]
    assert ended["clock"] == "wall"  # for two threads wait for each other


def test_census_finds_integer_operators(device: Device, folder: Path) -> None:
    open_model(device, folder, "candidate", "quantised.onnx")
    found = device.ask({"request": "operators", "role": "candidate"}, START_S)["operators"]
    assert found["QLinearConv"] == 1
    assert "Conv" not in found


def test_profile_tells_every_kernel_of_a_run(device: Device, folder: Path) -> None:
    open_model(device, folder, "candidate", "quantised.onnx")
    census = device.ask({"request": "operators", "role": "candidate"}, START_S)["operators"]
    request = {"request": "profile", "role": "candidate", "runs": 9}
    kernels = device.ask(request, START_S)["kernels"]
    assert Counter(kernel["operator"] for kernel in kernels) == census
    (conv,) = (kernel for kernel in kernels if kernel["operator"] == "QLinearConv")
    assert conv["inputs"][0] == {"uint8": [1, 28, 28, 1]}  # channels last
    assert conv["outputs"] == [{"uint8": [1, 28, 28, 16]}]
    assert all(kernel["provider"] == "CPUExecutionProvider" for kernel in kernels)
    assert all(0 <= kernel["microseconds"] < 1e6 for kernel in kernels)
    # What has been opened is still there.
    single = {"request": "single", "role": "candidate", "count": 3, "limit_ms": 1e3}
    assert len(device.ask(single, START_S)["times_ms"]) == 3


def test_kernels_take_what_they_take_in_the_middle() -> None:
    def event(name: str, microseconds: int) -> dict[str, Any]:
        details = {"op_name": "Conv", "provider": "CPU", "input_type_shape": [{"float": [1]}]}
        name = f"{name}_kernel_time"
        return {"cat": "Node", "name": name, "dur": microseconds, "args": details}

    # Four runs; b is the body of a loop and executed twice in each.
    took = [("a", 90), ("a", 2), ("a", 3), ("a", 1), *[("b", 10)] * 8]
    a, b = typical_kernels([event(*one) for one in took], runs=4)
    assert (a["name"], a["microseconds"], a["inputs"]) == ("a", 2.5, [{"float": [1]}])
    assert (b["name"], b["microseconds"], b["outputs"]) == ("b", 20.0, [])


def test_census_counts_kernels_only() -> None:
    kernel = {"cat": "Node", "name": "a_kernel_time", "args": {"op_name": "Conv"}}
    fence = {"cat": "Node", "name": "a_fence_before", "args": {"op_name": "Conv"}}
    session = {"cat": "Session", "name": "model_run"}
    assert count_kernels([kernel, fence, session, kernel]) == {"Conv": 2}


# ---- limits and counters


def test_more_threads_than_cores_are_refused(device: Device, folder: Path) -> None:
    threads = count_usable_cores() + 1
    with pytest.raises(StageFailed, match=f"{threads} threads, but {threads - 1} usable core"):
        open_model(device, folder, "candidate", "light.onnx", threads=threads)


def test_a_model_that_needs_too_much_memory_fails_with_the_reason(
    device: Device, folder: Path
) -> None:
    allowed = 64 << 20
    limits = {"memory_limit_bytes": allowed}
    with pytest.raises(
        StageFailed, match=rf"more memory than device\.memory_limit_bytes={allowed}"
    ):
        open_model(device, folder, "candidate", "huge.onnx", **limits)
    assert open_model(device, folder, "candidate", "light.onnx", **limits)["run_ms"] > 0


def test_session_is_as_it_is_said_to_be(device: Device, folder: Path) -> None:
    entries = {"session.disable_quant_qdq": "1"}
    reply = open_model(device, folder, "candidate", "light.onnx", session_entries=entries)
    content = (folder / "light.onnx").read_bytes()
    assert reply["model_sha256"] == hashlib.sha256(content).hexdigest()
    assert reply["options"] == {
        "intra_op_num_threads": 1,
        "inter_op_num_threads": 1,
        "execution_mode": "sequential",
        "graph_optimization_level": "all",
        "session_entries": {
            "session.intra_op.allow_spinning": "0",
            "session.set_denormal_as_zero": "1",
            "session.disable_quant_qdq": "1",
        },
    }


def test_single_stream_makes_exactly_the_runs_asked_for(device: Device, folder: Path) -> None:
    open_model(device, folder, "candidate", "light.onnx")
    for count in (11, 64, 130, 662):
        request = {"request": "single", "role": "candidate", "count": count, "limit_ms": 1e5}
        assert len(device.ask(request, START_S)["times_ms"]) == count


def counters(root: Path, energy_uj: int, package: int = 0) -> None:
    zone = root / f"intel-rapl:{package}"
    (zone / f"intel-rapl:{package}:0").mkdir(parents=True, exist_ok=True)
    (zone / "name").write_text(f"package-{package}\n")
    (zone / "energy_uj").write_text(f"{energy_uj}\n")
    (zone / "max_energy_range_uj").write_text("1000000\n")


def test_energy_is_what_the_counters_rise_by(tmp_path: Path) -> None:
    counters(tmp_path, 1000, 0)
    counters(tmp_path, 999_000, 1)
    before = read_energy(tmp_path)
    counters(tmp_path, 5000, 0)
    counters(tmp_path, 1000, 1)  # began anew: 2000 later
    psys = tmp_path / "intel-rapl:2"
    psys.mkdir()
    (psys / "name").write_text("psys\n")  # the whole platform: the packages again
    after = read_energy(tmp_path)
    assert energy_of_run(before, after, 3) == {"mj": 2.0, "source": "RAPL, all packages"}
    still = energy_of_run(after, after, 3)
    assert still == {"mj": None, "reason": "the RAPL counters stand still"}


def test_without_counters_there_is_a_reason(tmp_path: Path) -> None:
    nothing = read_energy(tmp_path)
    assert energy_of_run(nothing, nothing, 3)["mj"] is None
    assert "no RAPL counters here" in energy_of_run(nothing, nothing, 3)["reason"]


def test_disturbances_are_read_from_the_kernel(tmp_path: Path) -> None:
    core = usable_cpus()[0]
    stat = tmp_path / "stat"
    stat.write_text(
        f"cpu  1 2 3 4 5 6 7 99\ncpu{core} 1 2 3 4 5 6 7 8 0 0\ncpu4095 1 2 3 4 5 6 7 9\n"
    )
    groups = tmp_path / "memberships"
    groups.write_text("0::/slice/job\n4:cpu,cpuacct:/box\n5:memory:/box\n")
    for group, throttled in {
        "slice": "throttled_usec 40",
        "cpu,cpuacct/box": "throttled_time 2999",
        "memory": "throttled_usec 1000",
    }.items():
        (tmp_path / group).mkdir(parents=True)
        (tmp_path / group / "cpu.stat").write_text(f"nr_throttled 3\n{throttled}\n")
    assert read_disturbances(stat, tmp_path, groups) == (8, 42)
    nowhere = tmp_path / "none"
    assert read_disturbances(nowhere, nowhere, nowhere) == (0, 0)


def test_a_slow_model_is_measured(device: Device, tmp_path: Path) -> None:
    """Of which no window of runs fits into the time that fast ones warm up in."""
    for name, layers in (("whole.onnx", 12), ("half.onnx", 6)):
        save_conv_stack(tmp_path / name, channels=32, layers=layers, pixels=112)
    images = np.random.default_rng(1).random((2, 32, 112, 112), np.float32)
    np.save(tmp_path / "inputs.npy", images)
    found = compare(device, make_plan(tmp_path, "half.onnx", "whole.onnx"))
    assert 0.3 < found.ratio < 0.8
    assert math.isfinite(found.ratio_low + found.ratio_high)
    assert found.quality == quality_of(math.log(found.ratio_low), math.log(found.ratio_high))
    assert found.reference_p50_ms > 0
    assert found.p99_ms is None
    assert found.operators["Conv"] == 6


def test_what_runs_is_reported_nowhere(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The runtime's own telemetry begins with its import, and keeps files below the home."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    with Device(LocalTransport(), START_S) as local:
        open_model(local, folder, "candidate", "light.onnx")
    assert list(tmp_path.rglob("*")) == []


# ---- sharing the device


def lock(device: Device, wait_s: float, hold_s: float = 60.0) -> Any:
    return device.ask({"request": "lock", "wait_s": wait_s, "hold_s": hold_s}, START_S)


def test_two_studies_queue(device: Device) -> None:
    assert lock(device, 30.0)["held"]
    with Device(LocalTransport(), START_S) as second:
        reply = lock(second, 0.1)
        assert (reply["held"], reply["holder"]) == (False, f"process {device.process_group}")
        device.close()
        hold(second, 60.0)


def test_a_device_frees_itself_of_a_host_that_went_away(device: Device, folder: Path) -> None:
    open_model(device, folder, "candidate", "light.onnx")
    assert lock(device, 30.0, hold_s=0.5)["held"]
    with Device(LocalTransport(), START_S) as second:
        assert lock(second, 30.0)["held"]
    with pytest.raises(StageFailed, match="the agent died"):
        lock(device, 0.1)
    assert_empty(device.process_group)


def test_training_stands_still_while_somebody_measures(device: Device) -> None:
    batches: list[float] = []
    stop = threading.Event()

    def train() -> None:
        with working():
            while not stop.is_set():
                give_way()
                batches.append(time.monotonic())
                with working():  # as a validation in the middle of a training
                    give_way()
                time.sleep(0.001)

    trainers = [threading.Thread(target=train) for _ in range(2)]
    for trainer in trainers:
        trainer.start()
    try:
        wait_until(lambda: len(batches) > 20)
        assert lock(device, 30.0)["held"]  # in spite of two that train all the time
        time.sleep(0.05)
        held = len(batches)
        time.sleep(0.3)
        assert len(batches) == held
        device.close()
        wait_until(lambda: len(batches) > held + 20)
    finally:
        stop.set()
        for trainer in trainers:
            trainer.join()


STANDS_STILL = """
import sys, time
from search.devices.stillness import working
with working():
    print("begun", flush=True)
    time.sleep(600)
"""
MEASURES = """
import time
from search.devices.device import Device
from search.devices.local import LocalTransport
from search.devices.reaching import hold
with Device(LocalTransport(), 60.0) as device:
    hold(device, 600.0)
    print(device.process_group, flush=True)
    time.sleep(600)
"""


@contextmanager
def beside(program: str) -> Iterator[tuple[int, str]]:
    """Runs a program beside; yields its number and its first word."""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            yield process.pid, process.stdout.readline().decode().strip()
        finally:
            process.kill()


def test_stopped_training_is_not_waited_for(device: Device) -> None:
    with beside(STANDS_STILL) as (trainer, _):
        reply = lock(device, 2.0)
        assert not reply["held"]
        assert f"process {trainer}" in reply["holder"]
        os.kill(trainer, signal.SIGSTOP)
        assert lock(device, 30.0)["held"]


def test_holders_of_a_lock_are_those_of_its_own_file_system(tmp_path: Path) -> None:
    descriptor = open_lock(tmp_path / "lock")
    status = os.fstat(descriptor)
    here = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    elsewhere = f"ff:ff:{status.st_ino}"  # a file of the same number on another one
    others = [f"1: FLOCK  ADVISORY  WRITE 71 {elsewhere} 0 EOF"]
    own = [
        f"2: FLOCK  ADVISORY  WRITE 72 {here} 0 EOF",
        f"2: -> FLOCK  ADVISORY  WRITE 73 {here} 0 EOF",
        f"3: POSIX  ADVISORY  WRITE 74 {here} 0 EOF",
    ]
    locks = tmp_path / "locks"
    for lines, holders in (([*others, *own], [72]), (others, [71]), ([], [])):
        locks.write_text("".join(f"{line}\n" for line in lines))
        assert find_holders(descriptor, locks) == holders
    os.close(descriptor)


def test_training_does_not_wait_for_a_stopped_measurement(device: Device) -> None:
    assert lock(device, 30.0)["held"]
    os.killpg(device.process_group, signal.SIGSTOP)
    try:
        with working():
            give_way()
    finally:
        os.killpg(device.process_group, signal.SIGCONT)


def test_the_agent_of_a_stopped_search_frees_the_device(device: Device) -> None:
    with beside(MEASURES) as (search, agent):
        os.kill(search, signal.SIGSTOP)
        assert lock(device, 60.0)["held"]
        assert_empty(int(agent))


def test_after_a_minute_whoever_is_waited_for_is_named(
    device: Device, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert lock(device, 30.0)["held"]
    name = f"process {device.process_group}"
    monkeypatch.setattr(stillness, "LONG_WAIT_S", 0.2)
    monkeypatch.setattr(reaching, "LONG_WAIT_S", 0.2)
    monkeypatch.setattr(reaching, "QUEUE_POLL_S", 0.1)

    def train() -> None:
        with working():
            pass

    def measure_too() -> None:
        with Device(LocalTransport(), START_S) as second:
            hold(second, 60.0)

    waiting = [threading.Thread(target=wait, daemon=True) for wait in (train, measure_too)]
    for thread in waiting:
        thread.start()
    wait_until(lambda: sum(r.levelname == "WARNING" for r in caplog.records) == len(waiting))
    assert all(name in r.getMessage() for r in caplog.records if r.levelname == "WARNING")
    device.close()
    for thread in waiting:
        thread.join()


def wait_until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30.0
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.005)


# ---- the device


def test_describes_this_machine() -> None:
    profile = describe_device(LOCAL)
    assert profile.name == "local"
    assert profile.runtime.startswith("onnxruntime 1.")
    assert 1 <= profile.usable_cores <= (os.cpu_count() or 1)


@pytest.mark.parametrize(
    ("arch", "flags", "round_to", "int8_format"),
    [
        ("x86_64", ["avx2", "avx512f", "avx512_vnni"], 16, "u8s8"),
        ("x86_64", ["avx2", "avx_vnni"], 8, "u8s8"),
        ("AMD64", ["avx2", "avx512f"], 16, "u8s8_reduced"),
        ("aarch64", ["asimd", "asimddp"], 8, "s8s8"),
    ],
)
def test_profile_follows_the_processor(
    arch: str, flags: list[str], round_to: int, int8_format: str
) -> None:
    facts = {"arch": arch, "cpu": "a", "flags": flags, "usable_cores": 2, "onnxruntime": "1.0"}
    profile = make_profile("name", facts)
    assert (profile.round_to, profile.int8_format) == (round_to, int8_format)


def test_quotas_of_both_control_group_versions(tmp_path: Path) -> None:
    for group, files in {
        "": {"cpu.max": "max 100000"},
        "slice": {"cpu.max": "150000 100000"},
        "cpu,cpuacct/box": {"cpu.cfs_quota_us": "200000", "cpu.cfs_period_us": "100000"},
        "cpu,cpuacct": {"cpu.cfs_quota_us": "-1", "cpu.cfs_period_us": "100000"},
    }.items():
        (tmp_path / group).mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (tmp_path / group / name).write_text(text + "\n")
    assert read_quotas(tmp_path, ["0::/slice/job", "5:memory:/box"]) == [1.5]
    assert read_quotas(tmp_path, ["4:cpu,cpuacct:/box"]) == [2.0]
    assert read_quotas(tmp_path / "nowhere", ["0::/slice"]) == []
    assert 1 <= count_usable_cores() <= len(usable_cpus())


# ---- faults


@pytest.mark.parametrize("model", ["corrupt.onnx", "unknown.onnx", "missing.onnx"])
def test_model_that_does_not_load_is_refused_in_one_line(
    device: Device, folder: Path, model: str
) -> None:
    with pytest.raises(StageFailed, match="candidate model: ") as caught:
        open_model(device, folder, "candidate", model)
    assert "\n" not in caught.value.reason
    assert open_model(device, folder, "reference", "light.onnx")["run_ms"] > 0


def test_nonsense_is_refused_and_forgotten(device: Device) -> None:
    for request, match in (
        ({"request": "dance"}, "knows no request 'dance'"),
        ({"request": "single", "role": "candidate"}, "open one first"),
        ({"request": "open"}, "lacks 'role'"),
    ):
        with pytest.raises(StageFailed, match=match):
            device.ask(request, START_S)
    assert device.ask({"request": "hello"}, START_S)["schema"] == SCHEMA


def test_killed_agent_is_noticed(device: Device, folder: Path) -> None:
    open_model(device, folder, "candidate", "light.onnx")
    os.kill(device.process_group, signal.SIGKILL)
    with pytest.raises(StageFailed, match="agent died with status -9"):
        device.ask({"request": "hello"}, START_S)
    assert_empty(device.process_group)


def test_a_full_temporary_folder_is_named(folder: Path) -> None:
    with Device(LocalTransport(), START_S) as device:
        # Of every process that it starts from now on.
        resource.prlimit(device.process_group, resource.RLIMIT_FSIZE, (500, 500))
        open_model(device, folder, "candidate", "light.onnx")
        with pytest.raises(StageFailed, match=r"its profile was cut off: make room in /") as caught:
            device.ask({"request": "operators", "role": "candidate"}, START_S)
    assert caught.value.reason.endswith(" there (NoSpace)")


@pytest.mark.parametrize("kills", [1, 2])
def test_work_is_begun_anew_once_where_the_agent_is_killed(kills: int) -> None:
    killed: list[int] = []

    def work(device: Device) -> Any:
        assert isinstance(device, Device)
        if len(killed) < kills:
            killed.append(device.process_group)
            os.kill(device.process_group, signal.SIGKILL)
        return device.ask({"request": "hello"}, START_S)["schema"]

    if kills == 1:
        assert on_device(LOCAL, work) == SCHEMA
    else:
        with pytest.raises(StageFailed, match="agent died with status -9"):
            on_device(LOCAL, work)
    assert len(killed) == kills
    for group in killed:
        assert_empty(group)


def test_work_is_begun_anew_whenever_the_agent_has_freed_the_device() -> None:
    """As it does each time that a search is stopped; being killed once is another matter."""
    ends = ["frees", "is killed", "frees"]

    def work(device: Device) -> Any:
        assert isinstance(device, Device)
        end = ends.pop() if ends else "none"
        if end == "frees":
            device.ask({"request": "lock", "wait_s": 0.0, "hold_s": 0.0}, START_S)
            assert_empty(device.process_group)
        elif end == "is killed":
            os.kill(device.process_group, signal.SIGKILL)
        return device.ask({"request": "hello"}, START_S)["schema"]

    assert on_device(LOCAL, work) == SCHEMA
    assert ends == []


def test_killed_model_process_is_noticed(device: Device, folder: Path) -> None:
    open_model(device, folder, "candidate", "light.onnx")
    for child in living(device.process_group)[1:]:
        os.kill(child, signal.SIGKILL)
    # Whoever asks for a measurement asks once more.
    with pytest.raises(AgentKilled, match="candidate process died with signal 9 in 'single'"):
        device.ask({"request": "single", "role": "candidate", "count": 1, "limit_ms": 1}, START_S)


def test_hung_model_is_given_up(device: Device, folder: Path) -> None:
    with pytest.raises(StageFailed, match=r"no answer to 'open'.*device\.timeout_s"):
        compare(
            device,
            Plan(
                candidate=Side(str(folder / "endless.onnx"), 1, ()),
                reference=Side(str(folder / "light.onnx"), 1, ()),
                inputs=str(folder / "inputs.npy"),
                batch_size=1,
                throughput_batch_size=4,
                memory_limit_bytes=None,
                launches=2,
                retry=False,
                budget_s=1.0,
                timeout_s=3.0,
                seed=0,
            ),
        )
    assert_empty(device.process_group)


def test_agent_ends_with_its_input_even_beside_a_hung_model(folder: Path, tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(archive())
    request = json.dumps(open_request(folder, "candidate", "endless.onnx"))
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / NAME)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    assert process.stdin is not None
    process.stdin.write(request.encode() + b"\n")
    process.stdin.flush()
    deadline = time.monotonic() + 30.0
    while len(living(process.pid)) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(1.5)  # let the run begin
    assert len(living(process.pid)) == 2
    process.stdin.close()
    assert process.wait(timeout=30.0) == 0
    assert_empty(process.pid)


def test_prints_do_not_disturb_the_answers() -> None:
    noise = (
        "import sys, os; sys.path.insert(0, sys.argv[1]); from agent import messages, supervisor\n"
        "out = messages.claim_stdout()\n"
        "print('from python', flush=True); os.write(1, b'from C'); os.system('echo from a child')\n"
        "supervisor.serve_host(supervisor.Supervisor(sys.argv[1]), out)\n"
    )
    command = (sys.executable, "-c", noise)  # the archive follows
    with Device(LocalTransport(command), START_S) as device:
        assert device.ask({"request": "hello"}, START_S)["schema"] == SCHEMA


@pytest.mark.parametrize(
    ("program", "match"),
    [
        ('print(\'{"ok": true, "schema": 99}\', flush=True); input(); input()', "version 99"),
        ("print('hello there', flush=True); input(); input()", "no JSON"),
        ("raise SystemExit('no numpy here')", "died with status 1 .*no numpy here"),
        ("import time; time.sleep(99)", "no answer to 'hello'"),
    ],
)
def test_agent_that_does_not_start_is_reported(program: str, match: str) -> None:
    timeout_s = 1.0 if "sleep" in program else START_S
    local = Device(LocalTransport((sys.executable, "-c", program)), timeout_s)
    with pytest.raises(StageFailed, match=match), local:
        pytest.fail("must not be entered")
    assert_empty(local.process_group)


# ---- the stage


class Folder:
    """A artifacts of files by their names."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.images = root / "images"

    def path(self, file: File) -> Path:
        return next(path for path in self._root.iterdir() if named(path.name) == file)

    def put(self, content: bytes, suffix: str) -> File:
        raise AssertionError("a measurement leaves no files")

    def put_parts(self, parts: Iterable[bytes], suffix: str) -> File:
        raise AssertionError("a measurement leaves no files")


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return describe(DigitsConfig(0.2, None, None, 1 << 30, "digits"))


@pytest.fixture(scope="module")
def profile() -> DeviceProfile:
    return DeviceProfile("local", "cpu", "x86_64", (), 2, "onnxruntime", 8, "u8s8")


def named(model: str) -> File:
    """Stands for a model by its name instead of its content."""
    return File(hashlib.sha256(model.encode()).hexdigest(), ".onnx", 1)


def make_step(model: str, data: Dataset, profile: DeviceProfile, timeout_s: float) -> Measure:
    return measure_step(
        make_deployable(named(model), 32, ()),
        threads=2,
        reference=make_deployable(named("light.onnx"), 32, ()),
        data=data,
        device=profile,
        connection=replace(LOCAL, timeout_s=timeout_s),
    )


def test_stage_measures_on_real_images(
    folder: Path, digits: Dataset, profile: DeviceProfile
) -> None:
    samples = read_samples(digits)
    assert samples.shape == (8, *digits.image_shape)
    assert samples.dtype == np.float32
    assert 0.0 <= samples.min() < 0.5 < samples.max() <= 1.0
    found = measure.run(make_step("light.onnx", digits, profile, 120.0), Folder(folder))
    assert 0.3 < found.ratio < 3.0
    assert found.operators["Conv"] == 2


def test_the_closing_round_tells_how_far_it_is(
    folder: Path, digits: Dataset, profile: DeviceProfile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(activity, "LEAST_S", 0.0)
    step = make_step("light.onnx", digits, profile, 120.0)
    told: list[Activity] = []
    with activity.listening(told.append):
        confirm.run(Confirm((step,), launches=2), Folder(folder))
    assert [(one.unit, one.done, one.total) for one in told] == [("launch", 0, 2), ("launch", 1, 2)]


@pytest.mark.parametrize(
    ("model", "timeout_s", "match"),
    [("endless.onnx", 3.0, "device.timeout_s"), ("corrupt.onnx", 120.0, "candidate model")],
)
def test_stage_fails_with_a_reason(
    folder: Path, digits: Dataset, profile: DeviceProfile, model: str, timeout_s: float, match: str
) -> None:
    with pytest.raises(StageFailed, match=match) as caught:
        measure.run(make_step(model, digits, profile, timeout_s), Folder(folder))
    assert caught.value.stage == "measure"


# ---- what may be imported


def test_agent_imports_the_standard_library_numpy_and_onnxruntime_only() -> None:
    allowed = sys.stdlib_module_names | {"numpy", "onnxruntime"}
    for path in FOLDER.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                assert {alias.name.split(".")[0] for alias in node.names} <= allowed
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                assert (node.module or "").split(".")[0] in allowed


def test_stage_does_not_import_torch() -> None:
    check = "import sys, search.stages.measure; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True, timeout=120)
