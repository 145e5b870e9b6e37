"""The program that runs on the device: times models in fresh processes, told by JSON lines.

It knows how to start, run and time a model; it does not know what a comparison means, and never
imports from ``search``: this one file goes to the device, where Python, numpy and onnxruntime are
all it finds.

``python agent.py`` is the coordinator. It reads one request a line and answers each with one line,
``{"ok": true, ...}`` or ``{"ok": false, "error": "one line", "kind": "name"}``, until its input
ends. Its children, which hold one model each, begin with ``BEGIN_SESSION``. With ``--own-group``
the coordinator leads a process group, whose number is its ``pid``.

=========== ============================================== =======================================
request     fields                                         reply
=========== ============================================== =======================================
hello                                                      schema pid
describe                                                   arch cpu flags cpus usable_cores python
                                                           numpy onnxruntime
conditions                                                 cpu arch flags cpus stolen_ticks
                                                           throttled_us (both since the start)
lock        wait_s hold_s                                  held holder
start       roles                                          starts fresh processes; does not wait
open        role model inputs batch_size threads           cold_start_ms run_ms warm clock
            session_entries memory_limit_bytes seed        options onnxruntime model_sha256
                                                           baseline_rss_bytes
single      role count limit_ms                            times_ms cpu_ms energy peak_rss_bytes
throughput  role batch_size limit_ms most_ms               images_per_s
rounds      count limit_ms block_ms seed                   rounds [[candidate_ms, reference_ms]]
                                                           disturbed [whether the round was]
                                                           clock pieces runs [of a piece] order
operators   role                                           operators {type: executed kernels}
profile     role runs                                      kernels [of one run: name operator
                                                           provider microseconds inputs outputs]
close                                                      ends the children
=========== ============================================== =======================================
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import hashlib
import itertools
import json
import math
import os
import platform
import queue
import random
import re
import resource
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
from typing import Any, NamedTuple, TextIO

SCHEMA = 3
# How a child begins: it imports this file, because Python compiles a program anew at every start,
# but a module once.
BEGIN_SESSION = """
import importlib, os, sys
folder, name = os.path.split(sys.argv[1])
sys.path[0] = folder
agent = importlib.import_module(name.removesuffix(".py"))
agent.run_session(agent.claim_stdout())
"""
CANDIDATE, REFERENCE = "candidate", "reference"
FLAGS_X86 = {"avx2", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "amx_int8"}
FLAGS_ARM = {"asimd", "asimddp", "asimdhp", "i8mm", "bf16", "sve", "sve2"}
# Warming up: blocks of at least this long, a window of so many, and the time after which a model
# that will not settle is measured nevertheless.
WARM_BLOCK_MS, WARM_WINDOW, WARM_LIMIT_MS = 0.5, 20, 500.0
# A model too slow for a window in that time: so many blocks must agree within that, of at most so
# many.
SLOW_WINDOW, SLOW_AGREEMENT, MOST_SLOW = 3, 1.05, 6
# Blocks are made of pieces of at least this long, in which the models' times differ by at most
# this factor, if a few more runs and no longer piece make that possible.
PIECE_MS, EVEN, MORE_RUNS, LONGEST_PIECE_MS = 0.25, 1.1, 5, 20.0
# Runs so long refill the caches themselves, within a share that does not matter.
REFILL_MS = 100.0
PROCESSOR, WALL = "processor", "wall"
FINE_NS, TICKS = 20_000, 5  # a clock of processor time that is read off ticks is no use
# A batch that takes so many times the limit is the measurement.
LONG_BATCH = 10
HASHED_BYTES = 1 << 20
# One for all users, because they share the processor. Whoever measures queues for the first file
# and holds both; whoever trains shares the second, and lets go of it while somebody queues.
# Containers that share a machine see each other's locks only in a folder that they share.
LOCKS = Path(os.environ.get("CNN_SEARCH_LOCKS", "/tmp"))
QUEUE_LOCK, DEVICE_LOCK = LOCKS / "cnn-search-queue.lock", LOCKS / "cnn-search-device.lock"
LOCK_POLL_S, LOOK_AROUND_S = 0.02, 1.0
# How this program ends itself, and after how many looks in a row at a host that stands still.
EXPIRED, STOPPED_LOOKS = 3, 5
OUT_OF_MEMORY = re.compile("bad.?alloc|MemoryError|failed to allocate", re.IGNORECASE)
POWERCAP = Path("/sys/class/powercap")
STEAL_COLUMN = 8  # of a processor's line in /proc/stat
LAST_CPU_COLUMN = 36  # of a process's /proc/.../stat behind its name, counted from 0
KERNEL_EVENT = "_kernel_time"  # ends the names of such events in onnxruntime's profile
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
        self._images: Any = None

    def versions(self, _: Message) -> Message:
        """Tells the versions that figures depend on."""
        return {
            "python": platform.python_version(),
            "numpy": self._numpy.__version__,
            "onnxruntime": self._runtime.__version__,
        }

    def open(self, request: Message) -> Message:
        """Loads a model, runs it once for the cold start, and warms it up within bounds."""
        usable = count_usable_cores()
        if request["threads"] > usable:
            raise Refused("Threads", f"{request['threads']} threads, but {usable} usable cores")
        self._request = request
        self._images = self._numpy.load(request["inputs"], allow_pickle=False)
        batches = self._cut(request["batch_size"], len(self._images))
        digest = hash_file(Path(request["model"]))
        baseline = peak_rss_bytes()
        if request["memory_limit_bytes"] is not None:
            limit_memory(request["memory_limit_bytes"], request["threads"])
        begin = time.perf_counter()
        try:
            session = self._create(profile_prefix=None)
            name = session.get_inputs()[0].name
            session.run(None, {name: batches[0]})
        except Exception as error:
            allowed = request["memory_limit_bytes"]
            if allowed is not None and OUT_OF_MEMORY.search(f"{type(error).__name__} {error}"):
                reason = f"needs more memory than device.memory_limit_bytes={allowed} allows"
                raise Refused("OutOfMemory", reason) from error
            raise
        cold_start_s = time.perf_counter() - begin
        self._session = session
        self._feeds = [{name: batch} for batch in batches]
        gc.collect()
        gc.disable()  # a collection in the middle of a block would be timed as the model's
        # Threads wait for one another in no processor time: several need the wall clock.
        self._clock = PROCESSOR if request["threads"] == 1 and is_fine() else WALL
        self._run_ms, warm = self._warm_up()
        return {
            "cold_start_ms": cold_start_s * 1e3,
            "run_ms": self._run_ms,
            "warm": warm,
            "clock": self._clock,
            "options": self._options(),
            "onnxruntime": self._runtime.__version__,
            "model_sha256": digest,
            "baseline_rss_bytes": baseline,
        }

    def block(self, request: Message) -> Message:
        """Times ``pieces`` times ``runs`` runs, after ``warm`` untimed ones.

        Returns:
            Milliseconds of a run in the middle piece: what disturbs reaches few of them, and the
            fastest of few is luck.
        """
        feeds, runs, clock = self._opened(), request["runs"], CLOCKS[request["clock"]]
        for feed in itertools.islice(itertools.cycle(feeds), request["warm"]):
            self._session.run(None, feed)
        cycle = itertools.islice(itertools.cycle(feeds), request["first"] % len(feeds), None)
        pieces = [list(itertools.islice(cycle, runs)) for _ in range(request["pieces"])]
        return {"ms": statistics.median(self._time_piece(piece, clock) for piece in pieces)}

    def single(self, request: Message) -> Message:
        """Times runs one by one, a single stream, with the processor time and energy of a run."""
        self._opened()
        energy_before = read_energy(POWERCAP)
        begin = time.process_time_ns()
        times_ms = self._time_runs(request["count"], request["limit_ms"])
        cpu_ms = (time.process_time_ns() - begin) / 1e6 / len(times_ms)
        return {
            "times_ms": times_ms,
            "cpu_ms": cpu_ms,
            "energy": energy_of_run(energy_before, read_energy(POWERCAP), len(times_ms)),
            "peak_rss_bytes": peak_rss_bytes(),
        }

    def throughput(self, request: Message) -> Message:
        """Runs batches back to back: images a second; None where a batch would take too long."""
        (name,) = self._opened()[0]
        size = request["batch_size"]
        if self._run_ms * size / self._request["batch_size"] > request["most_ms"]:
            return {"images_per_s": None}
        lift_memory_limit()
        feed = {name: self._cut(size, 1)[0]}
        begin = time.perf_counter()
        self._session.run(None, feed)
        took_s = time.perf_counter() - begin
        if took_s > LONG_BATCH * request["limit_ms"] / 1e3:
            return {"images_per_s": size / took_s}
        begin = time.perf_counter()
        deadline = begin + request["limit_ms"] / 1e3
        runs, now = 0, begin
        while runs == 0 or now < deadline:
            self._session.run(None, feed)
            runs, now = runs + 1, time.perf_counter()
        return {"images_per_s": runs * size / (now - begin)}

    def operators(self, _: Message) -> Message:
        """Counts the kernels that one run executes, from onnxruntime's own profile."""
        return {"operators": count_kernels(self._profile(1))}

    def profile(self, request: Message) -> Message:
        """Tells the kernels of a run and what time each takes while it is looked at."""
        return {"kernels": typical_kernels(self._profile(request["runs"]), request["runs"])}

    def _profile(self, runs: int) -> list[Message]:
        """Runs in a session of its own that writes down what it does; returns these events."""
        feeds = self._opened()
        lift_memory_limit()
        with tempfile.TemporaryDirectory() as folder:
            session = self._create(profile_prefix=str(Path(folder) / "profile"))
            for feed in itertools.islice(itertools.cycle(feeds), runs):
                session.run(None, feed)
            written = Path(session.end_profiling()).read_text(encoding="utf-8")
        try:
            events: list[Message] = json.loads(written)
        except ValueError as error:
            reason = f"its profile was cut off: make room in {tempfile.gettempdir()} there"
            raise Refused("NoSpace", reason) from error
        return events

    def _create(self, profile_prefix: str | None) -> Any:
        request = self._request
        options = self._runtime.SessionOptions()
        options.intra_op_num_threads = request["threads"]
        options.inter_op_num_threads = 1
        options.execution_mode = self._runtime.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = self._runtime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = 3
        for key, value in self._options()["session_entries"].items():
            options.add_session_config_entry(key, value)
        if profile_prefix is not None:
            options.enable_profiling = True
            options.profile_file_prefix = profile_prefix
        return self._runtime.InferenceSession(
            request["model"], options, providers=["CPUExecutionProvider"]
        )

    def _options(self) -> Message:
        return session_options(self._request["threads"], self._request["session_entries"])

    def _warm_up(self) -> tuple[float, bool]:
        """Runs until times settle, within bounds; returns milliseconds of a run, and whether."""
        clock = CLOCKS[self._clock]
        first_ms = self._time_piece(self._feeds[:1], clock)
        runs = max(1, math.ceil(WARM_BLOCK_MS / first_ms))
        block = list(itertools.islice(itertools.cycle(self._feeds), runs))
        deadline = time.perf_counter() + WARM_LIMIT_MS / 1e3
        samples: list[float] = []
        while True:
            samples.append(self._time_piece(block, clock))
            if len(samples) >= WARM_WINDOW and is_settled(samples[-WARM_WINDOW:]):
                return min(samples), True
            if time.perf_counter() < deadline:
                continue
            if len(samples) >= WARM_WINDOW:
                return min(samples), False
            if is_settled(samples) or is_steady(samples):
                return min(samples), True
            if len(samples) >= MOST_SLOW:
                return min(samples), False

    def _cut(self, size: int, count: int) -> list[Any]:
        """Cuts the images ``[k, C, H, W]`` into ``count`` batches that begin at each in turn."""
        images = self._images
        order = self._numpy.random.default_rng(self._request["seed"]).permutation(len(images))
        picks = [[order[(i + j) % len(order)] for j in range(size)] for i in range(count)]
        return [self._numpy.ascontiguousarray(images[pick]) for pick in picks]

    def _opened(self) -> list[dict[str, Any]]:
        if self._session is None:
            raise Refused("NotOpen", "holds no model; open one first")
        return self._feeds

    def _time_piece(self, piece: Sequence[dict[str, Any]], clock: Callable[[], int]) -> float:
        """Runs all of ``piece`` and returns milliseconds of a run by a clock of nanoseconds."""
        run = self._session.run
        begin = clock()
        for feed in piece:
            run(None, feed)
        return max(clock() - begin, 1) / 1e6 / len(piece)

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


def session_options(threads: int, session_entries: dict[str, str]) -> Message:
    """Tells what a session is made with, in measurements and wherever else the model is to run.

    Args:
        threads: That one run may use.
        session_entries: Of the model's own, before which those of every session stand back.
    """
    # Two sessions take turns: threads that spin would steal the other's processor.
    entries = {SPINNING: "0", "session.set_denormal_as_zero": "1"}
    return {
        "intra_op_num_threads": threads,
        "inter_op_num_threads": 1,
        "execution_mode": "sequential",
        "graph_optimization_level": "all",
        "session_entries": {**entries, **session_entries},
    }


def is_settled(samples: Sequence[float]) -> bool:
    """Tells whether a window of times no longer drifts.

    Its first value must not be an outlier to the slow side, the quartiles of its halves must agree
    within 5 %, and the mean of the first half must lie -50 to +10 % from that of the second.

    Args:
        samples: In order, any unit; fewer than eight say nothing.

    Source: pyperf 2.9, the test with which its calibration ends warming up.
    """
    if len(samples) < 8:
        return False
    low, _, high = statistics.quantiles(samples[1:], n=4, method="inclusive")
    if samples[0] > high + 1.5 * (high - low):
        return False
    halves = samples[: len(samples) // 2], samples[len(samples) // 2 :]
    first, second = (statistics.quantiles(half, n=4, method="inclusive") for half in halves)
    quartiles = all(abs(first[i] / second[i] - 1) <= 0.05 for i in (0, 2))
    drift = statistics.fmean(halves[0]) / statistics.fmean(halves[1]) - 1
    return quartiles and -0.5 <= drift <= 0.10


def is_steady(samples: Sequence[float]) -> bool:
    """Tells whether the last few times of a slow model agree."""
    last = samples[-SLOW_WINDOW:]
    return len(last) == SLOW_WINDOW and max(last) <= SLOW_AGREEMENT * min(last)


# Of this process alone, which has one thread at work where this one is used: what others take of
# the processor does not count.
CLOCKS: dict[str, Callable[[], int]] = {
    PROCESSOR: time.process_time_ns,
    WALL: time.perf_counter_ns,
}


def is_fine(clock: Callable[[], int] = time.process_time_ns) -> bool:
    """Tells whether a clock of nanoseconds shows times as short as a piece.

    Where processor time is counted in ticks, as some containers do, it stands still in between.
    """
    steps: list[int] = []
    last = clock()
    while len(steps) < TICKS:
        now = clock()
        if now > last:
            steps.append(now - last)
            last = now
    return min(steps) <= FINE_NS


def hash_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file that need not fit into memory."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(HASHED_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def limit_memory(limit_bytes: int, threads: int) -> None:
    """Lets this process take ``limit_bytes`` beyond what it has, stacks of its threads apart.

    Raises:
        Refused: Where the system has no such limit.

    Source: setrlimit(2), RLIMIT_DATA since Linux 4.7.
    """
    if sys.platform != "linux":
        raise Refused("Unsupported", "device.memory_limit_bytes needs Linux on the device")
    status = Path("/proc/self/status").read_text().splitlines()
    data = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmData:"))
    stack = resource.getrlimit(resource.RLIMIT_STACK)[0]
    stacks = threads * (8 << 20 if stack == resource.RLIM_INFINITY else stack)
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    soft = data + limit_bytes + stacks
    if hard != resource.RLIM_INFINITY:
        soft = min(soft, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def lift_memory_limit() -> None:
    """Ends the limit, for what no deployed model does: other batches, a second session."""
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))


def read_energy(root: Path) -> Message:
    """Reads the energy counters of the processor packages.

    Returns:
        ``{"source": ..., "zones": {name: [microjoules, where it starts anew]}}``, or
        ``{"reason": ...}`` where there are none.

    Source: Linux documentation, powercap; never estimated from a rated power.
    """
    zones = {}
    for zone in sorted(root.glob("intel-rapl:[0-9]*")):
        try:
            # Others are parts of a package, or the whole platform with the packages in it.
            if not (zone / "name").read_text().startswith("package"):
                continue
            values = [int((zone / n).read_text()) for n in ("energy_uj", "max_energy_range_uj")]
        except OSError as error:
            return {"reason": f"the RAPL counter cannot be read ({error.strerror})"}
        zones[zone.name] = values
    if not zones:
        return {"reason": "no RAPL counters here, as in virtual machines and on other processors"}
    return {"source": "RAPL, all packages", "zones": zones}


def energy_of_run(before: Message, after: Message, runs: int) -> Message:
    """Returns ``{"mj": millijoules of one run, "source": ...}`` or ``{"mj": None, "reason": ...}``.

    The whole package's energy, idle parts and neighbours included.
    """
    for reading in (before, after):
        if "reason" in reading:
            return {"mj": None, "reason": reading["reason"]}
    spent = 0
    for zone, (end, wrap) in after["zones"].items():
        begin = before["zones"][zone][0]
        spent += end - begin if end >= begin else end + wrap - begin
    if spent == 0:
        return {"mj": None, "reason": "the RAPL counters stand still"}
    return {"mj": spent / 1e3 / runs, "source": after["source"]}


def count_kernels(events: Iterable[Message]) -> dict[str, int]:
    """Counts operator types among a profile's kernel events."""
    kernels = (event["args"]["op_name"] for event in kernel_events(events))
    return dict(sorted(Counter(kernels).items()))


def typical_kernels(events: Iterable[Message], runs: int) -> list[Message]:
    """Gathers the kernel events of ``runs`` runs, in the order of execution.

    Returns:
        For every kernel what onnxruntime says of it, and the microseconds of one run. A kernel of
        a loop's body may be executed several times in a run.
    """
    found: dict[str, list[Message]] = {}
    for event in kernel_events(events):
        found.setdefault(event["name"], []).append(event)
    return [
        {
            "name": name.removesuffix(KERNEL_EVENT),
            "operator": same[0]["args"]["op_name"],
            "provider": same[0]["args"]["provider"],
            "microseconds": middle_mean([e["dur"] for e in same]) * len(same) / runs,
            "inputs": same[0]["args"].get("input_type_shape", []),
            "outputs": same[0]["args"].get("output_type_shape", []),
        }
        for name, same in found.items()
    ]


def kernel_events(events: Iterable[Message]) -> Iterator[Message]:
    """Yields the events of a profile that stand for executed kernels."""
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(KERNEL_EVENT):
            yield event


def middle_mean(values: Sequence[float]) -> float:
    """Mean of the middle half: as deaf to outliers as the median, finer for whole numbers."""
    cut = len(values) // 4
    return statistics.fmean(sorted(values)[cut : len(values) - cut])


def run_session(out: TextIO) -> None:
    """Serves one model until the coordinator closes the pipe."""
    die_with_parent()
    bench = Bench()
    handlers = {
        "versions": bench.versions,
        "open": bench.open,
        "block": bench.block,
        "single": bench.single,
        "throughput": bench.throughput,
        "operators": bench.operators,
        "profile": bench.profile,
    }
    serve(sys.stdin, out, handlers)


# ---- the coordinator


class Child:
    """A fresh process that holds at most one model in its life."""

    def __init__(self, role: str) -> None:
        # numpy's linear algebra would start threads of its own, and count as the model's memory.
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        # onnxruntime's own reports of what it runs would leave the device, from a thread beside
        # the model's. Its function for that comes too late: the import starts them.
        environment["ORT_DISABLE_TELEMETRY"] = "1"
        self.role = role
        self.run_ms, self.clock = 0.0, WALL
        self.settle_s = SETTLE_S
        self.process = subprocess.Popen(
            [sys.executable, "-c", BEGIN_SESSION, str(Path(__file__).resolve())],
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
            raise Refused("Killed" if status == -signal.SIGKILL else "Died", reason)
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
        self._locks: list[int] = []
        self._ends = math.inf
        self._hold_s = math.inf
        self._last: Child | None = None

    def hello(self, _: Message) -> Message:
        """Tells the version of the messages, and who answers."""
        return {"schema": SCHEMA, "pid": os.getpid()}

    def conditions(self, _: Message) -> Message:
        """Tells under what conditions is measured."""
        stolen_ticks, throttled_us = read_disturbances()
        return {
            **describe_processor(), "stolen_ticks": stolen_ticks, "throttled_us": throttled_us
        }  # fmt: skip

    def lock(self, request: Message) -> Message:
        """Waits up to ``wait_s`` for the device, then keeps it until this program ends.

        It ends itself ``hold_s`` after the last request, and when the process that started it
        stands still: whoever asked may have gone without a word, and the next one waits.
        """
        if not self._locks:
            self._locks = [open_lock(QUEUE_LOCK), open_lock(DEVICE_LOCK)]
            threading.Thread(target=self._watch, args=(os.getppid(),), daemon=True).start()
        queue_lock, device_lock = self._locks
        # While waiting too: half of the device is held as soon as this is the first in the queue.
        self._hold_s = request["hold_s"]
        self._ends = time.monotonic() + request["wait_s"] + self._hold_s
        deadline = time.monotonic() + request["wait_s"]
        if not lock_until(queue_lock, deadline):
            written = os.pread(queue_lock, 200, 0).decode()
            return {"held": False, "holder": describe_holders(queue_lock) or written}
        with contextlib.suppress(OSError):  # another user's file is only readable
            os.ftruncate(queue_lock, 0)
            os.pwrite(queue_lock, f"process {os.getpid()}".encode(), 0)
        # Training that was stopped disturbs nobody, and what continues it has to pass the queue.
        if not lock_until(device_lock, deadline, do_without=is_stopped):
            who = describe_holders(device_lock)
            return {"held": False, "holder": f"training, {who}" if who else "training"}
        self.renew()
        return {"held": True, "holder": ""}

    def renew(self) -> None:
        """Notes that somebody still asks."""
        self._ends = time.monotonic() + self._hold_s

    def _watch(self, host: int) -> None:
        """Gives the device back where nobody will; runs in a thread."""
        looks = 0
        while looks < STOPPED_LOOKS and time.monotonic() < self._ends:
            time.sleep(LOOK_AROUND_S)
            looks = looks + 1 if is_stopped(host) else 0
        for child in tuple(self._children.values()):
            child.process.kill()
        os._exit(EXPIRED)

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
        for started in self._children.values():
            started.ask({"request": "versions"})  # answers when it has imported all
        child = self._children[role]
        reply = child.ask(request)
        child.run_ms, child.clock = reply["run_ms"], reply["clock"]
        spins = request["threads"] > 1 and request["session_entries"].get(SPINNING, "0") != "0"
        child.settle_s = SETTLE_SPINNING_S if spins else SETTLE_S
        return reply

    def pass_on(self, request: Message) -> Message:
        """Hands a request to the role's process, when the other's threads have settled."""
        child = self._child(request["role"])
        if child is not self._last:
            time.sleep(max(other.settle_s for other in self._children.values()))
            self._last = child
        return child.ask(request)

    def rounds(self, request: Message) -> Message:
        """Times blocks of both models in turns, whole ABBA quadruples at a time, at least one."""
        children = (self._child(CANDIDATE), self._child(REFERENCE))
        order = turns(request["count"], request["seed"])
        shares = share_time([child.run_ms for child in children], request["block_ms"])
        clock = PROCESSOR if all(child.clock == PROCESSOR for child in children) else WALL
        self._last = None
        pids = [child.process.pid for child in children]
        if clock == PROCESSOR:
            share_cpu(pids)
        settle_s = max(child.settle_s for child in children)
        deadline = time.perf_counter() + request["limit_ms"] / 1e3
        times: tuple[list[float], list[float]] = ([], [])
        disturbances, disturbed = read_disturbances(), []
        last = None
        for turn, side in enumerate(order):
            if turn % 4 == 0 and turn > 0:
                before, disturbances = disturbances, read_disturbances()
                disturbed += 2 * [disturbances != before]
                if time.perf_counter() >= deadline:
                    break
            if side != last:
                time.sleep(settle_s)
            block = {
                "request": "block",
                "runs": shares.runs[side],
                "pieces": shares.pieces,
                "first": turn // 2 * shares.runs[side] * shares.pieces,
                "warm": shares.warm[side] if side != last else 0,
                "clock": clock,
            }
            times[side].append(children[side].ask(block)["ms"])
            last = side
        if len(disturbed) < len(times[0]):
            disturbed += 2 * [read_disturbances() != disturbances]
        if clock == PROCESSOR:
            place(pids, usable_cpus())
        return {
            "rounds": list(zip(*times, strict=True)),
            "disturbed": disturbed,
            "clock": clock,
            "pieces": shares.pieces,
            "runs": shares.runs,
            "order": "".join("AB"[side] for side in order[: 2 * len(times[0])]),
        }

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


def share_cpu(pids: Sequence[int]) -> None:
    """Keeps processes of one thread each on the processor that the first of them ran on last.

    Processors of one machine differ in speed for seconds at a time, by what others do on the same
    core: 1.4 times on a rented one. What takes turns on one of them sees the same.
    """
    fields = " ".join(read_lines(Path(f"/proc/{pids[0]}/stat"))).rpartition(")")[2].split()
    if fields:
        place(pids, [int(fields[LAST_CPU_COLUMN])])


def place(pids: Sequence[int], cpus: Sequence[int]) -> None:
    """Lets processes run on these processors, where the system can be told so."""
    if hasattr(os, "sched_setaffinity"):
        with contextlib.suppress(OSError):  # one has died, as the next request to it tells
            for pid in pids:
                os.sched_setaffinity(pid, cpus)


def open_lock(path: Path) -> int:
    """Opens the file that stands for the device, whoever made it."""
    flags = os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags | os.O_RDWR, 0o644)
    except PermissionError:
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with contextlib.suppress(PermissionError):  # somebody else's, who has done it
        os.fchmod(descriptor, 0o644)  # whatever the mask: other users must be able to queue
    return descriptor


def lock_until(
    descriptor: int, deadline: float, do_without: Callable[[int], bool] = lambda holder: False
) -> bool:
    """Takes the lock, unless somebody has it until the monotonic clock says ``deadline``.

    Args:
        descriptor: Of the lock's file.
        deadline: When to give up.
        do_without: Tells of a holder's process whether nobody need wait for it; where all are
            such, what the lock stands for is had without it.
    """
    look = time.monotonic()
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            now = time.monotonic()
            if now >= look:
                look = now + LOOK_AROUND_S
                holders = find_holders(descriptor)
                if holders and all(map(do_without, holders)):
                    return True
            if now >= deadline:
                return False
            time.sleep(LOCK_POLL_S)
        else:
            return True


def find_holders(descriptor: int, locks: Path = Path("/proc/locks")) -> list[int]:
    """Identifiers of the processes that hold the lock of a file, as far as they can be seen.

    Source: proc(5), /proc/locks.
    """
    status = os.fstat(descriptor)
    device = [os.major(status.st_dev), os.minor(status.st_dev)]
    rows = (line.split() for line in read_lines(locks))
    # Such as "1: FLOCK ADVISORY WRITE 708 00:13:10 0 EOF"; who waits has an arrow before FLOCK.
    held = [(row[5].split(":"), int(row[4])) for row in rows if row[1] == "FLOCK"]
    alike = [(place, who) for place, who in held if int(place[2]) == status.st_ino]
    here = {who for place, who in alike if [int(part, 16) for part in place[:2]] == device}
    # Some file systems, as those in layers, have another device there than programs are told.
    found = here or {who for _, who in alike}
    return sorted(found - {os.getpid(), 0, -1})


def is_stopped(process: int) -> bool:
    """Tells whether a process stands still because of a signal, such as Ctrl-Z sends.

    Source: proc(5), /proc/pid/stat.
    """
    try:
        stat = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] == "T"


def describe_holders(descriptor: int) -> str:
    """Names who holds the lock of a file; empty where that cannot be seen."""
    holders = find_holders(descriptor)
    return ", ".join(f"process {n}{' (stopped)' if is_stopped(n) else ''}" for n in holders)


def read_disturbances(
    stat: Path = Path("/proc/stat"),
    groups: Path = Path("/sys/fs/cgroup"),
    memberships: Path = Path("/proc/self/cgroup"),
) -> tuple[int, int]:
    """Reads what others took of the processors in use: steal time, and time throttled.

    Returns:
        Ticks that the hypervisor gave to others, and microseconds that the control group's quota
        held processes back, both since their start; only whether they rise matters.

    Source: proc(5), /proc/stat; Linux documentation, cgroup-v2 ``cpu.stat``.
    """
    wanted = {f"cpu{number}" for number in usable_cpus()}
    throttled = 0
    rows = (line.split() for line in read_lines(stat) if line.startswith("cpu"))
    stolen = sum(int(row[STEAL_COLUMN]) for row in rows if row[0] in wanted)
    for group in control_groups(groups, read_lines(memberships)):
        fields = dict(line.split() for line in read_lines(group / "cpu.stat"))
        nanoseconds = int(fields.get("throttled_time", 0))  # of the first version
        throttled += int(fields.get("throttled_usec", nanoseconds // 1000))
    return stolen, throttled


def usable_cpus() -> list[int]:
    """Numbers of the processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


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


class Shares(NamedTuple):
    """How two models share a round's time.

    Attributes:
        runs: Of each in a piece.
        pieces: Of a block.
        warm: Untimed runs of each before a block.
    """

    runs: list[int]
    pieces: int
    warm: list[int]


def share_time(run_ms: Sequence[float], block_ms: float) -> Shares:
    """Divides a round so that both models have the same number of pieces of the same time.

    With as many runs for each, the slower one's pieces would be longer, and others would take the
    processor in more of them: its share of the round's ratio would grow with the load. In the
    same time both meet the same, and whatever is read off their pieces compares.

    Args:
        run_ms: Milliseconds of a run of each model.
        block_ms: Of a block, as far as whole runs of the slower one make that possible.
    """
    slow_ms = max(run_ms)
    least = max(1, math.ceil(PIECE_MS / slow_ms))
    lengths = [n * slow_ms for n in range(least, least + MORE_RUNS)]
    allowed = [lengths[0], *(ms for ms in lengths[1:] if ms <= LONGEST_PIECE_MS)]

    def unevenness(piece_ms: float) -> float:
        took = [runs * ms for runs, ms in zip(fill(piece_ms), run_ms, strict=True)]
        return max(max(took) / min(took), EVEN)  # the shortest of those that are even enough

    def fill(time_ms: float) -> list[int]:
        return [max(1, round(time_ms / ms)) for ms in run_ms]

    piece_ms = min(allowed, key=unevenness)
    return Shares(
        runs=fill(piece_ms),
        pieces=max(1, round(block_ms / piece_ms)),
        warm=fill(slow_ms) if slow_ms <= REFILL_MS else [0] * len(run_ms),
    )


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
    known = sorted((FLAGS_X86 | FLAGS_ARM) & flags)
    return {"arch": arch, "cpu": cpu, "flags": known, "cpus": usable_cpus()}


def count_usable_cores() -> int:
    """Whole cores that affinity and control-group quota leave, at least one."""
    cores = len(usable_cpus())
    lines = read_lines(Path("/proc/self/cgroup"))
    return max(1, math.floor(min([cores, *read_quotas(Path("/sys/fs/cgroup"), lines)])))


def read_quotas(root: Path, memberships: Sequence[str]) -> list[float]:
    """Reads every processor quota that binds a process, in cores.

    Args:
        root: Where control groups are mounted.
        memberships: Lines ``id:controllers:path`` of ``/proc/self/cgroup``.

    Source: Linux documentation, cgroup-v2 ``cpu.max`` and scheduler/sched-bwc.
    """
    return [quota for group in control_groups(root, memberships) for quota in read_quota(group)]


def control_groups(root: Path, memberships: Sequence[str]) -> list[Path]:
    """Returns the folders of a process's groups that govern processors, and of all above them.

    Some of them may not exist, as inside most containers.
    """
    groups = []
    for line in memberships:
        number, controllers, path = line.split(":", 2)
        if number == "0":
            tops = [root, root / "unified"]
        elif "cpu" in controllers.split(","):
            tops = [root / controllers, root / "cpu"]
        else:
            continue
        parts = Path(path.lstrip("/")).parts
        # What is set for any ancestor binds too.
        depths = range(len(parts) + 1)
        groups += [top.joinpath(*parts[:n]) for top, n in itertools.product(tops, depths)]
    return groups


def read_lines(path: Path) -> list[str]:
    """Reads a file of the kernel's; empty where there is none."""
    return path.read_text().splitlines() if path.exists() else []


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


def lead_group() -> None:
    """Makes this process the leader of its group, so that one kill ends it with its children."""
    if os.getpgrp() != os.getpid():
        os.setsid()


def run_coordinator(out: TextIO) -> None:
    """Serves the host until it closes the pipe; no child outlives it."""
    coordinator = Coordinator()
    handlers = {
        "hello": coordinator.hello,
        "describe": coordinator.describe,
        "conditions": coordinator.conditions,
        "lock": coordinator.lock,
        "start": coordinator.start,
        "open": coordinator.open,
        "single": coordinator.pass_on,
        "throughput": coordinator.pass_on,
        "operators": coordinator.pass_on,
        "profile": coordinator.pass_on,
        "rounds": coordinator.rounds,
        "close": coordinator.close,
    }

    def lines() -> Iterator[str]:
        for line in follow(sys.stdin, coordinator.kill_until_exit):
            coordinator.renew()
            yield line

    serve(lines(), out, handlers)
    coordinator.close({})


if __name__ == "__main__":
    if "--own-group" in sys.argv[1:]:
        lead_group()
    run_coordinator(claim_stdout())
