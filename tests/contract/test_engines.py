"""What every engine promises: the same answers, each computed once, whatever dies meanwhile."""

from __future__ import annotations

import errno
import itertools
import multiprocessing
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from search.config.engine import (
    EngineConfig,
    InlineEngineConfig,
    LocalEngineConfig,
    RayEngineConfig,
)
from search.devices.agent.locks import DEVICE_LOCK, QUEUE_LOCK, lock_until
from search.engine import make_engine
from search.engine.base import Done, Engine, Event, StepCache
from search.engine.local import serve, share_cores
from search.engine.store import Store
from search.errors import ConfigError, StageFailed
from search.process.machine import usable_memory_bytes
from search.records.network import Teacher
from search.records.steps.pruning import Prune
from search.records.steps.step import Step
from search.records.steps.training import Teach
from tests import extras
from tests.fakes import LOCAL as DEVICE
from tests.workbench import Workbench

PATIENCE_S = 120.0
LOCAL = LocalEngineConfig(name="local", workers=2, threads=1, memory_limit_bytes=None)
RAY = RayEngineConfig(
    name="ray", address=None, workers=2, threads=1, gpus=0.0, device_resource="device"
)
ENGINES: dict[str, EngineConfig] = {
    "inline": InlineEngineConfig(name="inline"),
    "local": LOCAL,
    "ray": RAY,
}
LONG = 500  # epochs that nobody waits for
Open = Callable[[], AbstractContextManager[Engine]]


@dataclass(frozen=True)
class Opened:
    """An engine that tests share, for starting one takes seconds."""

    engine: Engine
    store: Store
    begun: list[Step[Any]]


@pytest.fixture(params=ENGINES, scope="module")
def opened(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Opened]:
    store, begun = Store(tmp_path_factory.mktemp("store")), list[Step[Any]]()

    def note(event: Event) -> None:
        if event.state == "began":
            begun.append(event.step)

    with make_engine(ENGINES[request.param], store, note) as engine:
        yield Opened(engine, store, begun)


SEEDS = itertools.count(100)


@pytest.fixture
def teach(bench: Workbench) -> Teach:
    """A training of a second or less, which no other test asks for."""
    return replace(bench.teach_step("cnn"), epochs=1, seed=next(SEEDS))


def test_a_step_is_done_once_and_kept(opened: Opened, teach: Teach) -> None:
    engine, begun = opened.engine, len(opened.begun)
    taught = engine.submit(teach).result()
    assert not taught.reused
    step = Prune(taught.result.network, 0.5, 8)
    pruned = engine.submit(step).result()
    assert pruned.result.network.parameters < taught.result.network.parameters
    assert opened.store.path(pruned.result.network.weights).exists()
    again = engine.submit(step).result()
    assert (again.result, again.reused) == (pruned.result, True)
    assert opened.begun[begun:] == [teach, step]


def test_the_answer_does_not_depend_on_the_engine(opened: Opened, bench: Workbench) -> None:
    """Training with as many threads gives the same bytes, wherever it is done."""
    step = replace(bench.teach_step("cnn"), epochs=1)
    assert opened.engine.submit(step).result().result == bench.do(step)


def test_it_is_told_how_far_a_step_is(
    bench: Workbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("search.process.activity._told_s", 0.0)  # as if nothing was told before
    events: list[Event] = []
    step = replace(bench.teach_step("cnn"), epochs=5)
    for config in (ENGINES["inline"], ENGINES["local"]):
        with make_engine(config, Store(tmp_path / config.name), events.append) as engine:
            engine.submit(step, "trial 7").result()
        assert (events[0].state, events[-1].state) == ("began", "ended")
        assert {(event.step, event.title) for event in events} == {(step, "trial 7")}
        told = [event.activity for event in events if event.activity is not None]
        assert told, config.name
        assert any(one.unit == "step" and 0 < one.done <= one.total for one in told)
        assert any(one.loss is not None for one in told)
        events.clear()


def test_a_step_that_is_under_way_is_not_begun_again(opened: Opened, teach: Teach) -> None:
    begun = len(opened.begun)
    asked = [opened.engine.submit(teach) for _ in range(3)]
    found = [future.result() for future in asked]
    assert [done.reused for done in found] == [False, True, True]
    assert found[0].result == found[1].result == found[2].result
    assert opened.begun[begun:] == [teach]


def test_a_failure_is_the_stages_own(opened: Opened, teach: Teach) -> None:
    junk = replace(teach, checkpoint=opened.store.put(b"junk", ".pt"))
    with pytest.raises(ConfigError, match=r"model.checkpoint: cannot be read as weights"):
        opened.engine.submit(junk).result()
    assert not opened.engine.submit(teach).result().reused  # it goes on


def test_a_stage_that_cannot_be_imported_fails_its_step(opened: Opened, teach: Teach) -> None:
    asked = opened.engine.submit(extras.Polish())
    with pytest.raises(StageFailed, match=r"^polish: tests.polishing:run cannot be imported "):
        asked.result()
    assert not opened.engine.submit(teach).result().reused  # it goes on


def test_the_device_is_described_where_it_is(opened: Opened) -> None:
    profile = opened.engine.describe(DEVICE)
    assert profile.usable_cores == len(os.sched_getaffinity(0))
    assert profile.name in ("local", platform.node())


# ---- worker processes


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Engine]:
    with make_engine(replace(LOCAL, workers=1), Store(tmp_path), lambda step: None) as engine:
        yield engine


def busy_workers() -> list[int]:
    """Processes of this test that have worked for a while."""
    children = [child.pid for child in multiprocessing.active_children()]
    return [pid for pid in children if pid is not None and _cpu_s(pid) > 1]


def kill_when_busy() -> None:
    """Kills the one worker that computes."""
    (pid,) = _await(busy_workers, 60)
    os.kill(pid, signal.SIGKILL)
    _await(lambda: not Path(f"/proc/{pid}").exists(), 10)


def _cpu_s(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_a_killed_worker_costs_its_step_which_is_tried_again(local: Engine, teach: Teach) -> None:
    asked = local.submit(replace(teach, epochs=30))
    kill_when_busy()
    taught: Teacher = asked.result().result
    assert taught.val_accuracy > 0.5


def test_a_step_that_kills_its_workers_fails_and_others_go_on(local: Engine, teach: Teach) -> None:
    asked = local.submit(replace(teach, epochs=LONG))
    kill_when_busy()
    kill_when_busy()
    with pytest.raises(StageFailed, match=r"teacher: its worker process died 2 times, killed by "):
        asked.result()
    assert local.submit(teach).result().peak_rss_bytes > 50e6  # type: ignore[operator]


def test_a_worker_that_cannot_be_started_fails_its_step(
    local: Engine, teach: Teach, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    with monkeypatch.context() as patched:
        patched.setattr("multiprocessing.context.SpawnProcess._Popen", refuse)
        with pytest.raises(StageFailed, match=r"it cannot be started: .*temporarily una"):
            local.submit(teach).result()
    assert local.submit(teach).result().result.val_accuracy > 0.5


def test_who_waits_for_anothers_step_is_told_that_it_was_cancelled(
    tmp_path: Path, teach: Teach
) -> None:
    memory, begun = StepCache(Store(tmp_path)), Future[Done]()
    memory.answer(teach, lambda: begun)
    shared = memory.answer(teach, lambda: begun)
    begun.cancel()
    assert shared.cancelled()


def test_two_train_at_a_time_and_leaving_ends_them(tmp_path: Path, teach: Teach) -> None:
    with make_engine(LOCAL, Store(tmp_path), lambda step: None) as engine:
        assert engine.slots == 2
        asked = [engine.submit(replace(teach, epochs=LONG, seed=seed)) for seed in (1, 2)]
        _await(lambda: len(busy_workers()) == 2, 60)
    wait(asked, timeout=5)
    assert all(future.exception() is not None for future in asked)
    assert multiprocessing.active_children() == []


ORPHANS = """
import sys, time
from pathlib import Path
from search.engine import make_engine
from search.engine.store import Store
from search.config.engine import LocalEngineConfig
from search.records.steps.training import ChoosePlacement
from tests.workbench import Workbench
if __name__ == "__main__":
    bench = Workbench(Path(sys.argv[1]))
    config = LocalEngineConfig(name="local", workers=2, threads=1, memory_limit_bytes=None)
    with make_engine(config, bench.store, lambda event: print("begun", flush=True)) as engine:
        from dataclasses import dataclass, replace
        engine.submit(replace(bench.teach_step("cnn"), epochs=500)).result()
"""


def test_workers_do_not_outlive_a_killed_coordinator(tmp_path: Path) -> None:
    script = tmp_path / "coordinator.py"
    script.write_text(ORPHANS)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, str(script), str(tmp_path / "store")],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as coordinator:
        try:
            assert coordinator.stdout is not None
            assert coordinator.stdout.readline() == "begun\n"
            children = _await(lambda: _children(coordinator.pid), 30)
        finally:
            coordinator.kill()
    assert _await(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children), 30)


def test_a_worker_whose_coordinator_was_killed_ends_silently(
    tmp_path: Path, teach: Teach, capfd: pytest.CaptureFixture[str]
) -> None:
    context = multiprocessing.get_context("spawn")
    pipe, there = context.Pipe()
    worker = context.Process(target=serve, args=(there, tmp_path, None, None))
    worker.start()
    there.close()
    pipe.send(teach)
    assert pipe.poll(60)
    pipe.close()  # with an answer unread: the worker is told of a broken connection
    worker.join(60)
    assert worker.exitcode == 0
    assert capfd.readouterr().err == ""


def _children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]


def _await(found: Callable[[], Any], seconds: float) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := found():
            return value
        time.sleep(0.05)
    raise AssertionError("it does not come about")


def test_a_worker_that_wants_too_much_memory_fails_its_step(
    tmp_path: Path, bench: Workbench, teach: Teach
) -> None:
    config = replace(LOCAL, memory_limit_bytes=2**29)
    with make_engine(config, Store(tmp_path), lambda step: None) as engine:
        huge = replace(teach, spec=replace(teach.spec, width=200_000))
        with pytest.raises(
            StageFailed,
            match=r"a worker needs more memory: give a larger engine.memory_limit_bytes",
        ):
            engine.submit(huge).result()


def test_cores_are_shared() -> None:
    cores = sorted(os.sched_getaffinity(0))
    shares = share_cores(len(cores), None)
    assert sorted(core for share in shares for core in share) == cores
    assert share_cores(1, None) == [frozenset(cores)]
    assert [len(share) for share in share_cores(2 * len(cores), None)] == [1] * 2 * len(cores)
    assert 2**28 < usable_memory_bytes() < 2**50


def test_a_training_that_fails_leaves_the_machine_to_those_who_measure(
    opened: Opened, teach: Teach
) -> None:
    asked = opened.engine.submit(replace(teach, learning_rate=1e30))
    with pytest.raises(StageFailed, match="the loss is not finite"):
        asked.result()
    # Though the error is kept, with all that led to it. Other tests may train or measure just now.
    with QUEUE_LOCK.open() as queue, DEVICE_LOCK.open() as device:
        deadline = time.monotonic() + PATIENCE_S
        assert lock_until(queue.fileno(), deadline)
        assert lock_until(device.fileno(), deadline)
