"""Runs steps on a Ray cluster; knows nothing of trials.

Files travel by content: a step takes along what it reads, and its result what it made, so that
nodes need no folder in common. Each node keeps what it has seen in a store of its own.
"""

from __future__ import annotations

import logging
import os
import platform
import resource
import socket
import stat
import sys
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
from ray.job_config import JobConfig

from search import home
from search.benchmark.device import describe_device
from search.config import DeviceConfig, LocalDeviceConfig, RayEngineConfig, is_loopback
from search.engine.base import Done, Event, Memory, OnEvent, compute
from search.engine.store import Store
from search.errors import ConfigError, SearchError, StageFailed, hide_passwords, one_line
from search.records import DeviceProfile, File
from search.steps import Step

log = logging.getLogger(__name__)

# Contents that the cluster keeps though no step reads them now.
MOST_SENT = 64
# What a lost node or a killed worker cost is done again once. By this engine: Ray itself begins
# what was killed for memory again without end.
ATTEMPTS = 2
WATCH_S = 10.0
OBJECTS_BYTES = 2**29
ANSWER_S = 5.0
ADDRESS = "give the address that 'ray start --head' printed, or null for one on this machine"


@dataclass(frozen=True)
class Delivery:
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
        self._memory = Memory(store)
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
        _connect(self._config)
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

        def keep(attempt: int, arrived: Future[Delivery]) -> None:
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

    def _receive(self, step: Step[Any], delivery: Delivery) -> Done:
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
                    lacking = _describe_lacking(self._config)
                except Exception:  # while the head does not answer; Ray ends this process then
                    lacking = told
            if lacking is not None and lacking != told:
                log.warning("no node of the cluster has %s: steps wait until one joins", lacking)
            elif lacking is None and told is not None:
                log.info("the cluster has all again that steps need")
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


class _Job(JobConfig):
    """Has workers find this package where it is here, and not in the coordinator's folder.

    Ray puts that folder first, and the user may have a ``search`` of another kind there. Steps
    look there themselves for what else users have.
    """

    def _runtime_env_has_working_dir(self) -> bool:
        return True  # where Ray leaves it out


def _connect(config: RayEngineConfig) -> None:
    """Joins the cluster.

    Raises:
        ConfigError: When it does not answer, has no device, may be used by anybody, or would show
            a password.
    """
    job = _Job(_py_driver_sys_path=[str(home.PACKAGE.parent)])
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "job_config": job}
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # or it warns of itself
    if config.address is None:
        try:
            ray.init(
                address="local",  # or it joins whatever else runs here
                num_cpus=max(config.threads * config.workers, 1),
                resources={config.device_resource: 1},
                object_store_memory=OBJECTS_BYTES,
                include_dashboard=False,
                **quiet,
            )
        except Exception as error:  # as below
            raise ConfigError(
                f"engine=ray: no cluster can be started on this machine ({one_line(error)}); try "
                "again, or give engine=local"
            ) from error
        if _describe_lacking(config) is not None:
            ray.shutdown()
            raise ConfigError(
                f"engine.gpus={config.gpus:g}: this machine has not as many; give engine.gpus=0, "
                "or the engine.address of a cluster that has"
            )
        return
    shown = hide_passwords(config.address)
    host, port = _host_and_port(config.address)
    if not is_loopback(host) and os.environ.get("RAY_AUTH_MODE", "").lower() != "token":
        raise ConfigError(
            f"engine.address={shown!r}: who joins a cluster does what anybody asks who reaches it, "
            "unless it has a token; start its nodes and this search with the variable "
            "RAY_AUTH_MODE=token, as docs/scaling.md says"
        )
    given = " ".join(sys.orig_argv)
    if hide_passwords(given) != given:
        raise ConfigError(
            f"engine.address={shown!r}: a cluster shows its users the command lines of searches, "
            "and there is a password in this one; give it as PGPASSWORD or in ~/.pgpass, that of a "
            "tracking server as MLFLOW_TRACKING_PASSWORD"
        )
    if port is not None:
        _knock(config.address, host, port)
    try:
        ray.init(address=config.address, **quiet)
    except Exception as error:  # Ray names no class for what can go wrong here
        raise ConfigError(
            f"engine.address={shown!r}: cannot be joined ({one_line(error)}); {ADDRESS}"
        ) from error
    if ray.cluster_resources().get(config.device_resource, 0) < 1:
        name = config.device_resource
        ray.shutdown()
        raise ConfigError(
            f"engine.address={shown!r}: no node there has the resource {name!r}, which tells where "
            f"to measure; start one with: ray start --address=... --resources='{{\"{name}\": 1}}'"
        )


def _describe_lacking(config: RayEngineConfig) -> str | None:
    """Returns what steps need and no node has, which one that joins may bring; None if nothing."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(node.get(config.device_resource, 0) >= 1 for node in nodes):
        return f"the resource {config.device_resource!r}, which tells where to measure"
    if not any(
        node.get("CPU", 0) >= config.threads and node.get("GPU", 0) >= config.gpus for node in nodes
    ):
        return f"engine.threads={config.threads} cores and engine.gpus={config.gpus:g}"
    return None


def _host_and_port(address: str) -> tuple[str, int | None]:
    """Splits an address; the port is None where Ray looks for it, such as for "auto"."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        return host.strip("[]"), int(port)
    return address.removeprefix("ray://").strip("[]"), None


def _knock(address: str, host: str, port: int) -> None:
    """Tries whether somebody listens: Ray itself would try for minutes.

    Raises:
        ConfigError: When nobody does.
    """
    try:
        socket.create_connection((host, port), ANSWER_S).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"engine.address={hide_passwords(address)!r}: no cluster answers there "
            f"({one_line(error)}); {ADDRESS}"
        ) from error


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


# ---- on a node


def _describe(config: DeviceConfig) -> DeviceProfile | SearchError:
    try:
        profile = describe_device(config)
    except SearchError as error:
        return error
    is_local = isinstance(config, LocalDeviceConfig)
    return replace(profile, name=platform.node()) if is_local else profile


def _do(step: Step[Any], modules: str, files: tuple[File, ...], *contents: bytes) -> Delivery:
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
        return Delivery(None, error=error)
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return Delivery(replace(done, peak_rss_bytes=1024 * peak_kib), made)


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
