"""The child that holds one model."""

from __future__ import annotations

import gc
import hashlib
import itertools
import math
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy

from .clocks import CLOCKS, PROCESSOR, WALL, is_fine
from .drivers import onnxruntime as driver
from .energy import POWERCAP, energy_of_run, read_energy
from .memory import (
    OUT_OF_MEMORY,
    lift_memory_limit,
    limit_memory,
    peak_rss_bytes,
)
from .messages import Message, Refused
from .options import session_options
from .processor import count_usable_cores
from .warming import (
    MOST_SLOW,
    WARM_BLOCK_MS,
    WARM_LIMIT_MS,
    WARM_WINDOW,
    is_settled,
    is_steady,
)

# A batch that takes so many times the limit is the measurement.
LONG_BATCH = 10
HASHED_BYTES = 1 << 20


class Session:
    """One model in its session, with its inputs prepared.

    Every method is the handler of one request; ``open`` comes first.
    """

    def __init__(self) -> None:
        self._request: Message = {}
        self._model: driver.Model | None = None
        self._batches: list[Any] = []
        self._feeds: list[Any] = []
        self._images: Any = None

    def versions(self, _: Message) -> Message:
        """Tells the versions that figures depend on."""
        return {
            "python": platform.python_version(),
            "numpy": numpy.__version__,
            "onnxruntime": driver.version(),
        }

    def open(self, request: Message) -> Message:
        """Loads a model, runs it once for the cold start, and warms it up within bounds."""
        usable = count_usable_cores()
        if request["threads"] > usable:
            raise Refused("Threads", f"{request['threads']} threads, but {usable} usable cores")
        self._request = request
        self._images = numpy.load(request["inputs"], allow_pickle=False)
        batches = self._cut(request["batch_size"], len(self._images))
        digest = hash_file(Path(request["model"]))
        baseline = peak_rss_bytes()
        if request["memory_limit_bytes"] is not None:
            limit_memory(request["memory_limit_bytes"], request["threads"])
        begin = time.perf_counter()
        try:
            model = driver.Model(request["model"], self._options())
            model.run(model.feed(batches[0]))
        except Exception as error:
            allowed = request["memory_limit_bytes"]
            if allowed is not None and OUT_OF_MEMORY.search(f"{type(error).__name__} {error}"):
                reason = f"needs more memory than device.memory_limit_bytes={allowed} allows"
                raise Refused("OutOfMemory", reason) from error
            raise
        cold_start_s = time.perf_counter() - begin
        self._model = model
        self._batches = batches
        self._feeds = [model.feed(batch) for batch in batches]
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
            "onnxruntime": driver.version(),
            "model_sha256": digest,
            "baseline_rss_bytes": baseline,
        }

    def block(self, request: Message) -> Message:
        """Times ``pieces`` times ``runs`` runs, after ``warm`` untimed ones.

        Returns:
            Milliseconds of a run in the middle piece: what disturbs reaches few of them, and the
            fastest of few is luck.
        """
        model, feeds = self._opened(), self._feeds
        runs, clock = request["runs"], CLOCKS[request["clock"]]
        for feed in itertools.islice(itertools.cycle(feeds), request["warm"]):
            model.run(feed)
        cycle = itertools.islice(itertools.cycle(feeds), request["first"] % len(feeds), None)
        pieces = [list(itertools.islice(cycle, runs)) for _ in range(request["pieces"])]
        return {"ms": statistics.median(self._time_piece(piece, clock) for piece in pieces)}

    def single(self, request: Message) -> Message:
        """Times runs one by one, a single stream, with the processor time and energy of a run."""
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

    def predict(self, request: Message) -> Message:
        """Classifies images ``[k, C, H, W]`` of bytes: ``count`` of them from ``first`` on."""
        if self._request.get("model") != request["model"]:
            self._request = request
            self._model = driver.Model(request["model"], self._options())
        images = numpy.load(request["inputs"], mmap_mode="r", allow_pickle=False)
        size, end = request["batch_size"], request["first"] + request["count"]
        classes: list[int] = []
        for first in range(request["first"], end, size):
            batch = images[first : min(first + size, end)]
            pixels = batch.astype(numpy.float32) / numpy.float32(255)
            classes += self._opened().predict(pixels).argmax(1).tolist()
        return {"classes": classes, "onnxruntime": driver.version()}

    def throughput(self, request: Message) -> Message:
        """Runs batches back to back: images a second; None where a batch would take too long."""
        model, size = self._opened(), request["batch_size"]
        if self._run_ms * size / self._request["batch_size"] > request["most_ms"]:
            return {"images_per_s": None}
        lift_memory_limit()
        feed = model.feed(self._cut(size, 1)[0])
        begin = time.perf_counter()
        model.run(feed)
        took_s = time.perf_counter() - begin
        if took_s > LONG_BATCH * request["limit_ms"] / 1e3:
            return {"images_per_s": size / took_s}
        begin = time.perf_counter()
        deadline = begin + request["limit_ms"] / 1e3
        runs, now = 0, begin
        while runs == 0 or now < deadline:
            model.run(feed)
            runs, now = runs + 1, time.perf_counter()
        return {"images_per_s": runs * size / (now - begin)}

    def operators(self, _: Message) -> Message:
        """Counts the kernels that one run executes, from onnxruntime's own profile."""
        return {"operators": driver.count_kernels(self._profile(1))}

    def profile(self, request: Message) -> Message:
        """Tells the kernels of a run and what time each takes while it is looked at."""
        return {"kernels": driver.typical_kernels(self._profile(request["runs"]), request["runs"])}

    def _profile(self, runs: int) -> list[Message]:
        self._opened()
        lift_memory_limit()
        batches = itertools.islice(itertools.cycle(self._batches), runs)
        return driver.profile(self._request["model"], self._options(), batches)

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
        order = numpy.random.default_rng(self._request["seed"]).permutation(len(images))
        picks = [[order[(i + j) % len(order)] for j in range(size)] for i in range(count)]
        return [numpy.ascontiguousarray(images[pick]) for pick in picks]

    def _opened(self) -> driver.Model:
        if self._model is None:
            raise Refused("NotOpen", "holds no model; open one first")
        return self._model

    def _time_piece(self, piece: Sequence[Any], clock: Callable[[], int]) -> float:
        """Runs all of ``piece`` and returns milliseconds of a run by a clock of nanoseconds."""
        run = self._opened().run
        begin = clock()
        for feed in piece:
            run(feed)
        return max(clock() - begin, 1) / 1e6 / len(piece)

    def _time_runs(self, count: int, limit_ms: float) -> list[float]:
        """Runs one by one up to ``count`` times, at least once, and returns milliseconds."""
        run, times_ms = self._opened().run, list[float]()
        deadline = time.perf_counter_ns() + limit_ms * 1e6
        for feed in itertools.islice(itertools.cycle(self._feeds), count):
            begin = time.perf_counter_ns()
            run(feed)
            end = time.perf_counter_ns()
            times_ms.append((end - begin) / 1e6)
            if end >= deadline:
                break
        return times_ms


def hash_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file that need not fit into memory."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(HASHED_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
