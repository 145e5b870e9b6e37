"""Runs steps in worker processes of this machine.

Training and light steps go to as many workers as configured, each on its own share of the cores;
steps on the device go one at a time to a worker of their own, beside which training stands still.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import queue
import re
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from logging import LogRecord
from logging.handlers import QueueHandler
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from search.config.device import DeviceConfig
from search.config.engine import LEAST_WORKER_BYTES, LocalEngineConfig
from search.devices.reaching import describe_device
from search.engine.base import Done, OnEvent, StepCache, announced, compute
from search.engine.store import Store
from search.errors import ConfigError, SearchError, StageFailed
from search.process import home, terminal
from search.process.activity import Activity, Listener
from search.process.leaving import leave_worker
from search.process.logs import PROJECT
from search.process.machine import usable_memory_bytes
from search.records.device import DeviceProfile
from search.records.steps.step import Step

log = logging.getLogger(__name__)

# A worker that dies may have been the victim of another process: a second one tries again.
ATTEMPTS = 2
JOIN_S = 5.0
# How Python, torch and onnxruntime say it.
NO_MEMORY = re.compile(r"MemoryError|[Cc]annot allocate memory|can't allocate memory|bad_alloc")
MORE_MEMORY = (
    "a worker needs more memory: give a larger engine.memory_limit_bytes, or fewer workers"
)


class LocalEngine(AbstractContextManager["LocalEngine"]):
    """Answers steps from the store, or has them computed by worker processes.

    Args:
        store: Remembers finished steps; the workers write into it.
        config: Number of workers, and what each may use.
        on_event: Told of every step that is computed.

    Raises:
        ConfigError: When the machine has too little memory for so many workers.
    """

    def __init__(self, store: Store, config: LocalEngineConfig, on_event: OnEvent) -> None:
        self.slots = config.workers
        self._store = store
        self._on_event = on_event
        self._memory = StepCache(store)
        self._closed = threading.Event()
        memory_limit_bytes = config.memory_limit_bytes or _share_memory(config.workers)
        self._idle: queue.SimpleQueue[Worker] = queue.SimpleQueue()
        self._workers = [
            Worker(store.root, f"worker {number}", cores, memory_limit_bytes)
            for number, cores in enumerate(share_cores(config.workers, config.threads), 1)
        ]
        for worker in self._workers:
            self._idle.put(worker)
        self._device_worker = Worker(store.root, "the device's worker", None, None)
        self._trainers = ThreadPoolExecutor(config.workers, "trainer")
        self._device = ThreadPoolExecutor(1, "device")

    def describe(self, config: DeviceConfig) -> DeviceProfile:
        """Asks the device what it is.

        Raises:
            ConfigError: If it cannot be reached as configured.
        """
        return describe_device(config)

    def submit(self, step: Step[Any], title: str = "") -> Future[Done]:
        """Begins ``step`` as soon as a worker for it is free, unless its result is known."""
        pool, do = (
            (self._device, self._measure)
            if step.resource == "device"
            else (self._trainers, self._train)
        )
        return self._memory.answer(step, lambda: pool.submit(do, step, title))

    def _measure(self, step: Step[Any], title: str) -> Done:
        with announced(step, title, self._on_event) as listener:
            return self._compute(step, self._device_worker, listener)

    def _train(self, step: Step[Any], title: str) -> Done:
        worker = self._idle.get()
        try:
            with announced(step, title, self._on_event) as listener:
                return self._compute(step, worker, listener)
        finally:
            self._idle.put(worker)

    def _compute(self, step: Step[Any], worker: Worker, listener: Listener) -> Done:
        """Has a worker do a step, and once more if it dies.

        Raises:
            StageFailed: When it dies again; says how.
        """
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return worker.compute(step, listener)
            except WorkerDied as death:
                if self._closed.is_set():
                    raise
                log.warning("%s died in %s (%s)", worker.name, step.kind, death)
                if attempt == ATTEMPTS:
                    raise StageFailed(
                        step.kind, f"its worker process died {ATTEMPTS} times, {death}"
                    ) from death
        raise AssertionError("unreachable")

    def __exit__(self, *_: object) -> None:
        """Ends the workers; what they had not finished is done again when it is asked for."""
        self._closed.set()
        workers = (*self._workers, self._device_worker)
        for worker in workers:
            worker.end()
        deadline_s = time.monotonic() + JOIN_S
        for worker in workers:
            worker.await_end(deadline_s)
        for pool in (self._trainers, self._device):
            pool.shutdown(cancel_futures=True)


class WorkerDied(Exception):  # noqa: N818 - named by what happened
    """A worker process ended before its step did; the text says how."""


class Worker:
    """A process that computes one step at a time; it is started when it is first needed.

    Args:
        root: Of the store.
        name: For the log.
        cores: It may use; None for all.
        memory_limit_bytes: It may hold for data; None for no limit.
    """

    def __init__(
        self, root: Path, name: str, cores: frozenset[int] | None, memory_limit_bytes: int | None
    ) -> None:
        self.name = name
        self._arguments = root, cores, memory_limit_bytes
        self._process: multiprocessing.process.BaseProcess | None = None
        self._pipe: Connection | None = None
        self._ended = False
        self._starting = threading.Lock()

    def compute(self, step: Step[Any], listener: Listener) -> Done:
        """Returns what the step answers, and has the listener told how far it is.

        Raises:
            WorkerDied: When the process ended before.
            SearchError: As the stage raised it; OSError too.
        """
        process, pipe = self._start()
        try:
            pipe.send(step)
            while isinstance(answer := pipe.recv(), Activity | LogRecord):
                if isinstance(answer, Activity):
                    listener(answer)
                else:
                    _log_here(answer)
        except (EOFError, OSError) as error:
            process.join(JOIN_S)
            self._process = None
            raise WorkerDied(_describe_exit(process.exitcode)) from error
        if isinstance(answer, StageFailed) and NO_MEMORY.search(answer.reason):
            raise StageFailed(answer.stage, f"{answer.reason}; {MORE_MEMORY}") from answer
        if isinstance(answer, BaseException):
            raise answer
        done: Done = answer
        return done

    def end(self) -> None:
        """Asks the process to end, whatever it is doing; no other is started."""
        with self._starting:
            self._ended = True
            if self._process is not None:
                self._process.terminate()

    def await_end(self, deadline_s: float) -> None:
        """Waits for the process to end, and kills it if it does not.

        Args:
            deadline_s: Until when to wait, of the monotonic clock.
        """
        process = self._process
        if process is not None:
            process.join(max(0.0, deadline_s - time.monotonic()))
            process.kill()
            process.join(JOIN_S)

    def _start(self) -> tuple[multiprocessing.process.BaseProcess, Connection]:
        with self._starting:
            if self._ended:
                raise WorkerDied("the search ended")
            if self._process is None or self._pipe is None:
                try:
                    self._process, self._pipe = self._spawn()
                except OSError as error:  # such as too many processes, or no memory for one more
                    raise WorkerDied(f"it cannot be started: {error}") from error
            return self._process, self._pipe

    def _spawn(self) -> tuple[multiprocessing.process.BaseProcess, Connection]:
        # Fresh: torch's threads do not live through a fork.
        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe()
        process = context.Process(target=serve, args=(there, *self._arguments))
        # Ctrl-C at a terminal reaches all processes: not before this one can ignore it.
        # The tracker would let it through again when it starts.
        resource_tracker.ensure_running()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            process.start()
        except OSError:
            here.close()
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            there.close()
        return process, here


def _log_here(record: LogRecord) -> None:
    """Logs what a worker logged, as if this process had."""
    logger = logging.getLogger(record.name)
    if logger.isEnabledFor(record.levelno):
        logger.handle(record)


class _ToCoordinator(QueueHandler):
    """Hands over what a worker logs.

    Args:
        send: Takes a record that can be pickled.
    """

    def __init__(self, send: Callable[[Any], None]) -> None:
        super().__init__(queue.SimpleQueue[LogRecord]())
        self.setFormatter(logging.Formatter())  # or basicConfig gives it one with names in front
        self._send = send

    def enqueue(self, record: LogRecord) -> None:
        """Sends a record, unless the coordinator was killed, who is the only one to tell."""
        with suppress(ConnectionError):
            self._send(record)


def serve(
    pipe: Connection, root: Path, cores: frozenset[int] | None, memory_limit_bytes: int | None
) -> None:
    """Computes what comes through the pipe, in a process of its own."""
    terminal.write_anything()
    home.find_modules_first_in()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the coordinator is told, and ends its workers
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # as an exception, which clears up
    threading.Thread(target=_follow_parent, daemon=True).start()
    if cores is not None:
        os.sched_setaffinity(0, cores)  # torch and onnxruntime take as many threads
    if memory_limit_bytes is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (memory_limit_bytes, resource.RLIM_INFINITY))
    sending = threading.Lock()  # threads of a stage log too

    def send(message: Any) -> None:
        with sending:
            pipe.send(message)

    teller = _ToCoordinator(send)
    logging.basicConfig(handlers=[teller], level=logging.WARNING, force=True)
    logging.getLogger(PROJECT).setLevel(logging.DEBUG)  # the coordinator knows what is wanted
    store = Store(root)
    try:
        # The pipe breaks when the coordinator is killed, who is the only one to tell.
        with suppress(EOFError, ConnectionError):
            while True:
                send(_answer(pipe.recv(), store, send))
    except SystemExit:
        logging.getLogger().removeHandler(teller)  # half a message may have been sent
        leave_worker(1)
    leave_worker(0)  # or threads of the user's code would keep it


def _answer(step: Step[Any], store: Store, listener: Listener) -> Done | Exception:
    try:
        done = compute(step, store, listener)
    except (SearchError, OSError) as error:
        return error
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return replace(done, peak_rss_bytes=1024 * peak_kib)


def _follow_parent() -> None:
    """Ends this process when the coordinator was killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _describe_exit(exitcode: int | None) -> str:
    if exitcode is None:
        return "it does not answer"
    if exitcode >= 0:
        return f"exit status {exitcode}"
    name = signal.Signals(-exitcode).name
    memory = "; the machine may have run out of memory" if name == "SIGKILL" else ""
    return f"killed by {name}{memory}"


def share_cores(workers: int, threads: int | None) -> list[frozenset[int]]:
    """Returns the cores of each worker: disjoint sets, while there are enough.

    Args:
        workers: Number of them.
        threads: Cores of each; None divides all of them.
    """
    cores = sorted(os.sched_getaffinity(0))
    each = threads or max(1, len(cores) // workers)
    return [
        frozenset(cores[(worker * each + i) % len(cores)] for i in range(each))
        for worker in range(workers)
    ]


def _share_memory(workers: int) -> int:
    """Returns what each worker may hold of the memory there is.

    Raises:
        ConfigError: When that is less than any of them needs.
    """
    most = usable_memory_bytes() // LEAST_WORKER_BYTES
    if workers > most:
        raise ConfigError(
            f"engine.workers={workers}: this machine has memory for {most}, "
            f"{LEAST_WORKER_BYTES} bytes each; give at most so many"
        )
    return usable_memory_bytes() // workers
