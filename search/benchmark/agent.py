"""The program that runs on the device: times models in fresh processes, told by JSON lines.

It knows how to start, run and time a model; it does not know what a comparison means, and never
imports from ``search``: this one file goes to the device, where Python, numpy and onnxruntime are
all it finds.

``python agent.py`` is the coordinator. It reads one request a line and answers each with one line,
``{"ok": true, ...}`` or ``{"ok": false, "error": "one line", "kind": "name"}``, until its input
ends. ``python agent.py session`` is a child of it that holds one model.

=========== ============================================== =======================================
request     fields                                         reply
=========== ============================================== =======================================
hello                                                      schema
describe                                                   arch cpu flags usable_cores python numpy
                                                           onnxruntime
start       roles                                          starts fresh processes; does not wait
open        role model inputs batch_size threads           cold_start_ms run_ms peak_rss_bytes
            session_entries seed
single      role count limit_ms                            p50_ms cpu_ms runs peak_rss_bytes
rounds      count minimum limit_ms block_ms seed           rounds [[candidate_ms, reference_ms]]
                                                           runs order
operators   role                                           operators {type: executed kernels}
close                                                      ends the children
=========== ============================================== =======================================
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import json
import math
import os
import platform
import queue
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

SCHEMA = 1
CANDIDATE, REFERENCE = "candidate", "reference"
FLAGS_X86 = {"avx2", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "amx_int8"}
FLAGS_ARM = {"asimd", "asimddp", "asimdhp", "i8mm", "bf16", "sve", "sve2"}
WARM_RUNS, WARM_MS = 20, 100.0
SPINNING = "session.intra_op.allow_spinning"
# Threads that may spin keep burning processor time for about 40 ms after a run; others stop at
# once, and a longer pause would only let the processor's clock and caches go cold.
SETTLE_S, SETTLE_SPINNING_S = 0.003, 0.040

Message = dict[str, Any]
Handler = Callable[[Message], Message]


class Refused(Exception):  # noqa: N818 - the answer to a request, not a fault of this program
    """A request that cannot be answered; ``kind`` names the reason for the reader's code."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


# ---- both roles


def serve(lines: Iterable[str], out: TextIO, handlers: dict[str, Handler]) -> None:
    """Answers each line of JSON with one, whatever goes wrong, until the lines end."""
    for line in lines:
        try:
            message = json.loads(line)
            handler = handlers.get(message["request"])
            if handler is None:
                raise Refused("Unknown", f"knows no request {message['request']!r}")
            reply = {"ok": True, **handler(message)}
        except Exception as error:  # the other side decides what a fault means
            text = " ".join(str(error).split())
            if isinstance(error, KeyError):
                text = f"the request lacks {text}"
            kind = getattr(error, "kind", type(error).__name__)
            reply = {"ok": False, "error": text or kind, "kind": kind}
        out.write(json.dumps(reply) + "\n")
        out.flush()


def claim_stdout() -> TextIO:
    """Keeps standard output for replies; what libraries print goes to standard error."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return out


# ---- the child that holds one model


def die_with_parent() -> None:
    """Has Linux kill this process when its parent ends, even inside a run that never returns.

    Elsewhere the end of its input stops it between two requests. Source: prctl(2).
    """
    if sys.platform == "linux":
        import ctypes

        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, int(signal.SIGKILL))


def peak_rss_bytes() -> int:
    """Peak resident memory of this process, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    # Only second choice: on Linux it starts from the memory of the process that forked this one.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class Bench:
    """One model in its session, with its inputs prepared.

    Every method is the handler of one request; ``open`` comes first.
    """

    def __init__(self) -> None:
        # Imported when the process starts, so that two children import at the same time.
        import numpy
        import onnxruntime

        self._numpy = numpy
        self._runtime: Any = onnxruntime
        self._request: Message = {}
        self._session: Any = None
        self._feeds: list[dict[str, Any]] = []

    def versions(self, _: Message) -> Message:
        """Tells the versions that figures depend on."""
        return {
            "python": platform.python_version(),
            "numpy": self._numpy.__version__,
            "onnxruntime": self._runtime.__version__,
        }

    def open(self, request: Message) -> Message:
        """Loads a model, runs it once for the cold start, and warms it up within bounds."""
        self._request = request
        batches = self._cut(self._numpy.load(request["inputs"]))
        begin = time.perf_counter()
        session = self._create(profile_prefix=None)
        name = session.get_inputs()[0].name
        session.run(None, {name: batches[0]})
        cold_start_s = time.perf_counter() - begin
        self._session = session
        self._feeds = [{name: batch} for batch in batches]
        gc.collect()
        gc.disable()  # a collection in the middle of a block would be timed as the model's
        return {
            "cold_start_ms": cold_start_s * 1e3,
            "run_ms": min(self._time_runs(WARM_RUNS, WARM_MS)),
            "peak_rss_bytes": peak_rss_bytes(),
        }

    def block(self, request: Message) -> Message:
        """Times ``runs`` runs as a whole; an untimed one goes before when ``warm``."""
        feeds = self._opened()
        cycle = [feeds[i % len(feeds)] for i in range(request["runs"])]
        run = self._session.run
        if request["warm"]:
            run(None, feeds[0])
        begin = time.perf_counter_ns()
        for feed in cycle:
            run(None, feed)
        return {"ms": (time.perf_counter_ns() - begin) / 1e6 / len(cycle)}

    def single(self, request: Message) -> Message:
        """Times runs one by one, for the median and the processor time of a run."""
        self._opened()
        begin = time.process_time_ns()
        times_ms = self._time_runs(request["count"], request["limit_ms"])
        cpu_ms = (time.process_time_ns() - begin) / 1e6 / len(times_ms)
        return {
            "p50_ms": statistics.median(times_ms),
            "cpu_ms": cpu_ms,
            "runs": len(times_ms),
            "peak_rss_bytes": peak_rss_bytes(),
        }

    def operators(self, _: Message) -> Message:
        """Counts the kernels that one run executes, from onnxruntime's own profile."""
        feeds = self._opened()
        with tempfile.TemporaryDirectory() as folder:
            session = self._create(profile_prefix=str(Path(folder) / "profile"))
            session.run(None, feeds[0])
            events = json.loads(Path(session.end_profiling()).read_text())
        return {"operators": count_kernels(events)}

    def _create(self, profile_prefix: str | None) -> Any:
        request = self._request
        options = self._runtime.SessionOptions()
        options.intra_op_num_threads = request["threads"]
        options.inter_op_num_threads = 1
        options.execution_mode = self._runtime.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = self._runtime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = 3
        # Two sessions take turns: threads that spin would steal the other's processor.
        entries = {SPINNING: "0", "session.set_denormal_as_zero": "1"}
        for key, value in {**entries, **request["session_entries"]}.items():
            options.add_session_config_entry(key, value)
        if profile_prefix is not None:
            options.enable_profiling = True
            options.profile_file_prefix = profile_prefix
        return self._runtime.InferenceSession(
            request["model"], options, providers=["CPUExecutionProvider"]
        )

    def _cut(self, images: Any) -> list[Any]:
        """Cuts ``images`` ``[k, C, H, W]`` into ``k`` batches that begin at each image in turn."""
        order = self._numpy.random.default_rng(self._request["seed"]).permutation(len(images))
        size = self._request["batch_size"]
        picks = [[order[(i + j) % len(order)] for j in range(size)] for i in range(len(order))]
        return [self._numpy.ascontiguousarray(images[pick]) for pick in picks]

    def _opened(self) -> list[dict[str, Any]]:
        if self._session is None:
            raise Refused("NotOpen", "holds no model; open one first")
        return self._feeds

    def _time_runs(self, count: int, limit_ms: float) -> list[float]:
        """Runs one by one up to ``count`` times, at least once, and returns milliseconds."""
        times_ms: list[float] = []
        deadline = time.perf_counter_ns() + limit_ms * 1e6
        for feed in itertools.islice(itertools.cycle(self._feeds), count):
            begin = time.perf_counter_ns()
            self._session.run(None, feed)
            end = time.perf_counter_ns()
            times_ms.append((end - begin) / 1e6)
            if end >= deadline:
                break
        return times_ms


def count_kernels(events: Iterable[Message]) -> dict[str, int]:
    """Counts operator types among a profile's kernel events."""
    kernels = (
        event["args"]["op_name"]
        for event in events
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")
    )
    return dict(sorted(Counter(kernels).items()))


def run_session(out: TextIO) -> None:
    """Serves one model until the coordinator closes the pipe."""
    die_with_parent()
    bench = Bench()
    handlers = {
        "versions": bench.versions,
        "open": bench.open,
        "block": bench.block,
        "single": bench.single,
        "operators": bench.operators,
    }
    serve(sys.stdin, out, handlers)


# ---- the coordinator


class Child:
    """A fresh process that holds at most one model in its life."""

    def __init__(self, role: str) -> None:
        # numpy's linear algebra would start threads of its own, and count as the model's memory.
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        self.role = role
        self.run_ms = 0.0
        self.settle_s = SETTLE_S
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve()), "session"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
            bufsize=1,
        )

    def ask(self, message: Message) -> Message:
        """Hands on a request; waits as long as it takes, for only the host can judge that."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(message) + "\n")
            line = self.process.stdout.readline()
        except OSError:
            line = ""
        if not line:
            status = self.process.wait()
            how = f"signal {-status}" if status < 0 else f"status {status}"
            reason = f"{self.role} process died with {how} in {message['request']!r}"
            raise Refused("Died", reason)
        reply: Message = json.loads(line)
        if not reply.pop("ok"):
            raise Refused(reply["kind"], f"{self.role} model: {reply['error']}")
        return reply

    def stop(self) -> None:
        """Ends the process and waits for it."""
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            # Closing flushes what a dead process can no longer read.
            with contextlib.suppress(OSError):
                if stream is not None:
                    stream.close()


class Coordinator:
    """Lets two children take turns; every method is the handler of one request."""

    def __init__(self) -> None:
        self._children: dict[str, Child] = {}

    def hello(self, _: Message) -> Message:
        """Tells the version of the messages."""
        return {"schema": SCHEMA}

    def describe(self, _: Message) -> Message:
        """Tells what the device is."""
        child = Child("describe")
        try:
            versions = child.ask({"request": "versions"})
        finally:
            child.stop()
        return {**versions, **describe_processor(), "usable_cores": count_usable_cores()}

    def start(self, request: Message) -> Message:
        """Starts a fresh process for every role, replacing what was there; does not wait."""
        for role in request["roles"]:
            self._stop(role)
            self._children[role] = Child(role)
        return {}

    def open(self, request: Message) -> Message:
        """Opens a model in the role's process, started now if it was not."""
        role = request["role"]
        if role not in self._children:
            self._children[role] = Child(role)
        child = self._children[role]
        reply = child.ask(request)
        child.run_ms = reply["run_ms"]
        spins = request["threads"] > 1 and request["session_entries"].get(SPINNING, "0") != "0"
        child.settle_s = SETTLE_SPINNING_S if spins else SETTLE_S
        return reply

    def pass_on(self, request: Message) -> Message:
        """Hands a request to the role's process."""
        return self._child(request["role"]).ask(request)

    def rounds(self, request: Message) -> Message:
        """Times blocks of both models in turns, whole ABBA quadruples at a time."""
        children = (self._child(CANDIDATE), self._child(REFERENCE))
        order = turns(request["count"], request["seed"])
        runs = math.ceil(request["block_ms"] / min(child.run_ms for child in children))
        settle_s = max(child.settle_s for child in children)
        deadline = time.perf_counter() + request["limit_ms"] / 1e3
        times: tuple[list[float], list[float]] = ([], [])
        last = None
        for turn, side in enumerate(order):
            enough = turn % 4 == 0 and turn >= 2 * request["minimum"]
            if enough and time.perf_counter() >= deadline:
                break
            if side != last:
                time.sleep(settle_s)
            block = {"request": "block", "runs": max(1, runs), "warm": side != last}
            times[side].append(children[side].ask(block)["ms"])
            last = side
        done = "".join("AB"[side] for side in order[: 2 * len(times[0])])
        return {"rounds": list(zip(*times, strict=True)), "runs": max(1, runs), "order": done}

    def close(self, _: Message) -> Message:
        """Ends all children."""
        for role in tuple(self._children):
            self._stop(role)
        return {}

    def kill_until_exit(self) -> None:
        """Frees the main thread from a child that never answers, so that the program can end."""
        while True:
            for child in tuple(self._children.values()):
                child.process.kill()
            time.sleep(0.05)

    def _child(self, role: str) -> Child:
        if role not in self._children:
            raise Refused("NotOpen", f"no {role} is open; open one first")
        return self._children[role]

    def _stop(self, role: str) -> None:
        if role in self._children:
            self._children.pop(role).stop()


def turns(count: int, seed: int) -> list[int]:
    """Orders the turns of ``count`` rounds, ABBA or BAAB by the toss of a coin for every two.

    Args:
        count: Even number of rounds; a round is one turn of each side.
        seed: Seed of the tosses.

    Returns:
        ``[2 * count]`` of 0, the candidate, and 1, the reference.

    Raises:
        Refused: If ``count`` is odd, for half a quadruple would favour one side under drift.
    """
    if count % 2:
        raise Refused("ValueError", f"count {count} must be even")
    coin = random.Random(seed)
    quads = ((0, 1, 1, 0) if coin.random() < 0.5 else (1, 0, 0, 1) for _ in range(count // 2))
    return list(itertools.chain.from_iterable(quads))


def describe_processor() -> Message:
    """Reads architecture, model and instruction sets of the processor."""
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.exists() else ""
    facts: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        facts.setdefault(key.strip().lower(), value.strip())
    flags = set((facts.get("flags") or facts.get("features") or "").split())
    arch = platform.machine()
    cpu = facts.get("model name") or facts.get("hardware") or platform.processor() or arch
    return {"arch": arch, "cpu": cpu, "flags": sorted((FLAGS_X86 | FLAGS_ARM) & flags)}


def count_usable_cores() -> int:
    """Whole cores that affinity and control-group quota leave, at least one."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    memberships = Path("/proc/self/cgroup")
    lines = memberships.read_text().splitlines() if memberships.exists() else []
    return max(1, math.floor(min([cores, *read_quotas(Path("/sys/fs/cgroup"), lines)])))


def read_quotas(root: Path, memberships: Sequence[str]) -> list[float]:
    """Reads every processor quota that binds a process, in cores.

    Args:
        root: Where control groups are mounted.
        memberships: Lines ``id:controllers:path`` of ``/proc/self/cgroup``.

    Source: Linux documentation, cgroup-v2 ``cpu.max`` and scheduler/sched-bwc.
    """
    quotas = []
    for line in memberships:
        number, controllers, path = line.split(":", 2)
        if number == "0":
            tops = [root, root / "unified"]
        elif "cpu" in controllers.split(","):
            tops = [root / controllers, root / "cpu"]
        else:
            continue
        parts = Path(path.lstrip("/")).parts
        # A quota on any ancestor binds too.
        for top, depth in itertools.product(tops, range(len(parts) + 1)):
            quotas += read_quota(top.joinpath(*parts[:depth]))
    return quotas


def read_quota(group: Path) -> list[float]:
    """Reads one control group's quota in cores; empty when it sets none."""
    try:
        if (group / "cpu.max").exists():
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota = (group / "cpu.cfs_quota_us").read_text().strip()
            period = (group / "cpu.cfs_period_us").read_text().strip()
    except OSError:
        return []  # no such group here, as inside most containers
    return [] if quota in ("max", "-1") else [int(quota) / int(period)]


def follow(stream: TextIO, at_end: Callable[[], None]) -> Iterator[str]:
    """Yields lines; calls ``at_end`` in its own thread when they end, whatever the reader does."""
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def read() -> None:
        for line in stream:
            lines.put(line)
        lines.put(None)
        at_end()

    threading.Thread(target=read, daemon=True).start()
    yield from iter(lines.get, None)


def run_coordinator(out: TextIO) -> None:
    """Serves the host until it closes the pipe; no child outlives it."""
    coordinator = Coordinator()
    handlers = {
        "hello": coordinator.hello,
        "describe": coordinator.describe,
        "start": coordinator.start,
        "open": coordinator.open,
        "single": coordinator.pass_on,
        "operators": coordinator.pass_on,
        "rounds": coordinator.rounds,
        "close": coordinator.close,
    }
    serve(follow(sys.stdin, coordinator.kill_until_exit), out, handlers)
    coordinator.close({})


if __name__ == "__main__":
    (run_session if sys.argv[1:] == ["session"] else run_coordinator)(claim_stdout())
