"""Runs steps on a Ray cluster.

Files travel by content: a step takes along what it reads, and its result what it made, so that
nodes need no folder in common. Each node keeps what it has seen in a store of its own.
"""

from __future__ import annotations

import logging
import os
import platform
import resource
import stat
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

import ray
from ray.exceptions import RayError, RayTaskError

from search.config.device import DeviceConfig, LocalDeviceConfig
from search.config.engine import RayEngineConfig
from search.devices.reaching import describe_device
from search.engine.base import Done, Event, OnEvent, StepCache, compute
from search.engine.connecting import ANSWER_S, connect, describe_lacking
from search.engine.store import Store
from search.errors import ConfigError, SearchError, StageFailed, one_line
from search.process import home
from search.records.device import DeviceProfile
from search.records.files import File
from search.records.steps.step import Step

log = logging.getLogger(__name__)

# Contents that the cluster keeps though no step reads them now.
MOST_SENT = 64
# What a lost node or a killed worker cost is done again once. By this engine: Ray itself begins
# what was killed for memory again without end.
ATTEMPTS = 2
WATCH_S = 10.0


@dataclass(frozen=True)
class NodeAnswer:
    """What comes back from a node.

    Attributes:
        done: The step's result; None when it failed.
        contents: Of the files that the result names, in their order.
        error: Why it failed.
    """

    done: Done | None
    contents: tuple[bytes, ...] = ()
    error: SearchError | OSError | None = None


class RayEngine(AbstractContextManager["RayEngine"]):
    """Answers steps from the store, or has them computed by the nodes of a cluster.

    Args:
        store: Remembers finished steps, here.
        config: Which cluster, and what a step may use of it.
        on_event: Told of every step that is computed, but not how far it is.

    Raises:
        ConfigError: When the cluster does not answer or has no device.
    """

    def __init__(self, store: Store, config: RayEngineConfig, on_event: OnEvent) -> None:
        self.slots = config.workers
        self._store = store
        self._config = config
        self._on_event = on_event
        self._memory = StepCache(store)
        self._modules = str(Path.cwd())
        # A content is sent once for all steps that soon read it.
        self._sent: OrderedDict[File, ray.ObjectRef[bytes]] = OrderedDict()
        # Ray's own thread, which tells of an end, must not wait for Ray.
        self._again = ThreadPoolExecutor(1, "again")
        # After the end Ray would start a cluster for whoever asks it for something.
        self._using = threading.Lock()
        self._closed = threading.Event()
        self._watch = threading.Thread(target=self._watch_nodes, name="nodes", daemon=True)

    def __enter__(self) -> Self:
        """Connects to the cluster, or starts one on this machine."""
        connect(self._config)
        self._watch.start()
        return self

    def describe(self, config: DeviceConfig) -> DeviceProfile:
        """Asks the device what it is, on the node that measures.

        Raises:
            ConfigError: If it cannot be reached as configured.
        """
        told = ray.remote(_describe).options(**self._needs("device")).remote(config)
        try:
            profile: DeviceProfile | SearchError = ray.get(told)
        except RayError as error:
            raise ConfigError(
                f"engine=ray: the device's node failed ({one_line(error)})"
            ) from error
        if isinstance(profile, SearchError):
            raise profile
        return profile

    def submit(self, step: Step[Any], title: str = "") -> Future[Done]:
        """Sends ``step`` to a node that has what it needs, unless its result is known."""
        return self._memory.answer(step, lambda: self._send(step, title))

    def _send(self, step: Step[Any], title: str) -> Future[Done]:
        self._on_event(Event("began", step, title))
        own: Future[Done] = Future()
        own.add_done_callback(lambda _: self._on_event(Event("ended", step, title)))
        own.set_running_or_notify_cancel()
        files = tuple(dict.fromkeys(files_in(step)))
        sent = ray.remote(_do).options(**self._needs(step.resource))
        try:
            contents = [self._content(file) for file in files]
        except RayError as error:  # such as no room for what the step reads
            own.set_exception(StageFailed(step.kind, f"cannot be sent ({one_line(error)})"))
            return own

        def begin(attempt: int) -> None:
            try:
                with self._using:
                    if self._closed.is_set():
                        raise StageFailed(step.kind, "the search ended")
                    arrival = sent.remote(step, self._modules, files, *contents).future()
            except RayError as error:
                own.set_exception(StageFailed(step.kind, f"cannot be sent ({one_line(error)})"))
            except Exception as error:
                own.set_exception(error)
            else:
                arrival.add_done_callback(partial(keep, attempt))

        def keep(attempt: int, arrived: Future[NodeAnswer]) -> None:
            try:
                own.set_result(self._receive(step, arrived.result()))
            except RayError as error:
                # What the task itself raised it would raise again.
                is_lost = not isinstance(error, RayTaskError) and not self._closed.is_set()
                if is_lost and attempt < ATTEMPTS:
                    log.warning("a node failed in %s (%s)", step.kind, one_line(error))
                    self._again.submit(begin, attempt + 1)
                    return
                times = f" {attempt} times" if attempt > 1 else ""
                reason = f"its node failed{times} ({one_line(error)})"
                own.set_exception(StageFailed(step.kind, reason))
            except Exception as error:
                own.set_exception(error)

        begin(1)
        return own

    def _needs(self, kind: str) -> dict[str, Any]:
        if kind == "device":  # as many measure at a time as there are devices
            needs: dict[str, Any] = {"num_cpus": 0, "resources": {self._config.device_resource: 1}}
        else:
            needs = {"num_cpus": self._config.threads, "num_gpus": self._config.gpus}
        return {**needs, "max_retries": 0}

    def _content(self, file: File) -> ray.ObjectRef[bytes]:
        if file not in self._sent:
            self._sent[file] = ray.put(self._store.path(file).read_bytes())
        self._sent.move_to_end(file)
        sent = self._sent[file]
        while len(self._sent) > MOST_SENT:  # steps under way keep what they read
            self._sent.popitem(last=False)
        return sent

    def _receive(self, step: Step[Any], delivery: NodeAnswer) -> Done:
        """Keeps what a node made.

        Raises:
            SearchError: As the stage raised it; OSError too.
        """
        if delivery.error is not None:
            raise delivery.error
        done = delivery.done
        if done is None:
            raise StageFailed(step.kind, "its node sent no answer")
        for file, content in zip(files_in(done.result), delivery.contents, strict=True):
            if self._store.put(content, file.suffix) != file:
                raise StageFailed(step.kind, "a file was changed on its way from the node")
        self._store.save(step, done.result, done.seconds)
        return done

    def _watch_nodes(self) -> None:
        """Tells when no node has what a step needs, which waits then, and when one has it again."""
        told: str | None = None
        while True:
            with self._using:
                if self._closed.is_set():
                    return
                try:
                    lacking = describe_lacking(self._config)
                except Exception as error:  # the head does not answer; Ray ends this process then
                    log.debug("the head of the cluster does not answer: %s", error)
                    lacking = told
            if lacking is not None and lacking != told:
                log.warning("no node of the cluster has %s: steps wait until one joins", lacking)
            elif lacking is None and told is not None:
                log.info("all required cluster resources are available again")
            told = lacking
            self._closed.wait(WATCH_S)

    def __exit__(self, *_: object) -> None:
        """Leaves the cluster, which ends what is under way; ends it if it was started here."""
        self._closed.set()
        is_free = self._using.acquire(timeout=ANSWER_S)  # not while the head does not answer
        ray.shutdown()
        if is_free:
            self._using.release()
        self._again.shutdown()


def files_in(value: Any) -> Iterator[File]:
    """Yields every file that a step or a result names."""
    if isinstance(value, File):
        yield value
    elif is_dataclass(value):
        for field in fields(value):
            yield from files_in(getattr(value, field.name))
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from files_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from files_in(item)


def _describe(config: DeviceConfig) -> DeviceProfile | SearchError:
    try:
        profile = describe_device(config)
    except SearchError as error:
        return error
    is_local = isinstance(config, LocalDeviceConfig)
    return replace(profile, name=platform.node()) if is_local else profile


def _do(step: Step[Any], modules: str, files: tuple[File, ...], *contents: bytes) -> NodeAnswer:
    """Does a step with the files that it reads.

    Args:
        step: To be done.
        modules: Folder that the coordinator finds the user's modules in.
        files: What the step reads.
        contents: Of these, in their order.
    """
    home.find_modules_first_in(modules)
    try:
        store = Store(_own_folder())
        for file, content in zip(files, contents, strict=True):
            if store.put(content, file.suffix) != file:
                raise StageFailed(step.kind, "a file was changed on its way to the node")
        # Who forgets a measurement wants another one.
        known = None if step.resource == "device" else store.load(step)
        done = (
            compute(step, store, lambda activity: None)
            if known is None
            else Done(known.result, known.seconds, False)
        )
        made = tuple(store.path(file).read_bytes() for file in files_in(done.result))
    except (SearchError, OSError) as error:
        return NodeAnswer(None, error=error)
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return NodeAnswer(replace(done, peak_rss_bytes=1024 * peak_kib), made)


def _own_folder() -> Path:
    """Returns where this node keeps files, which nobody else may write to.

    Raises:
        OSError: When somebody else made it.
    """
    folder = Path(tempfile.gettempdir()) / f"cnn-search-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise PermissionError(f"{folder} belongs to somebody else")
    return folder
