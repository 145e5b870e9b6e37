"""Times a model with onnxruntime and nothing of ``search``, in a process of its own.

It knows how people time models by hand and how MLPerf LoadGen does; it does not know what its
figures are compared with.

``python plain_timing.py naive MODEL INPUTS`` prints the mean milliseconds of a few runs.
``python plain_timing.py median MODEL INPUTS [THREADS]`` prints the median of many runs, after a
warm-up.
``python plain_timing.py ratio MODEL OTHER INPUTS THREADS`` prints how many times as long a run of
the one takes as one of the other, in turns on one processor where they have one thread.
``python plain_timing.py loadgen MODEL INPUTS FOLDER`` leaves LoadGen's logs in ``FOLDER``. Inputs
are a float32 ``.npy`` file ``[k, C, H, W]``, of which one run takes one image.
"""

from __future__ import annotations

import gc
import math
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime

THREADS = 1
NAIVE_WARM_RUNS, NAIVE_RUNS = 1, 20
# What the protocol's sessions are made with, which LoadGen's must share.
SESSION_ENTRIES = {"session.intra_op.allow_spinning": "0", "session.set_denormal_as_zero": "1"}
WARM_UP_S, TIMING_S, LEAST_TIMED = 0.5, 0.5, 11
TURNS, TURN_S = 40, 0.02
# Early stopping needs 64 queries for a 90th percentile, and more to come close to it.
LEAST_QUERIES, LEAST_DURATION_MS, PERCENTILE = 1024, 3000, 0.9


def open_model(model: str, session_entries: dict[str, str], threads: int = THREADS) -> Any:
    """Opens a model with default options but for its threads and ``session_entries``."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    for key, value in session_entries.items():
        options.add_session_config_entry(key, value)
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def read_feeds(session: Any, inputs: str) -> list[dict[str, Any]]:
    """Cuts the inputs ``[k, C, H, W]`` into ``k`` feeds of one image."""
    name = session.get_inputs()[0].name
    return [{name: image[np.newaxis]} for image in np.load(inputs)]


def time_naively(model: str, inputs: str) -> float:
    """Mean milliseconds of 20 runs after one, with all default settings."""
    session = open_model(model, {})
    feed = read_feeds(session, inputs)[0]
    for _ in range(NAIVE_WARM_RUNS):
        session.run(None, feed)
    begin = time.perf_counter()
    for _ in range(NAIVE_RUNS):
        session.run(None, feed)
    return (time.perf_counter() - begin) * 1e3 / NAIVE_RUNS


def time_patiently(model: str, inputs: str, threads: str = str(THREADS)) -> float:
    """Median milliseconds of the runs of half a second, at least 11, in a protocol's session."""
    session = open_model(model, SESSION_ENTRIES, int(threads))
    feeds = read_feeds(session, inputs)
    gc.disable()
    warm_up(session, feeds)
    times_s: list[float] = []
    deadline = time.perf_counter() + TIMING_S
    while len(times_s) < LEAST_TIMED or time.perf_counter() < deadline:
        feed = feeds[len(times_s) % len(feeds)]
        begin = time.perf_counter()
        session.run(None, feed)
        times_s.append(time.perf_counter() - begin)
    return statistics.median(times_s) * 1e3


def time_in_turns(model: str, other: str, inputs: str, threads: str) -> float:
    """Ratio of the medians of many runs of both, which take turns."""
    if int(threads) == 1:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    sessions = [open_model(path, SESSION_ENTRIES, int(threads)) for path in (model, other)]
    feeds = read_feeds(sessions[0], inputs)
    gc.disable()
    for session in sessions:
        warm_up(session, feeds)
    times_s: tuple[list[float], list[float]] = ([], [])
    for turn in range(2 * TURNS):
        side = (0, 1, 1, 0)[turn % 4]
        run, feed = sessions[side].run, feeds[turn % len(feeds)]
        run(None, feed)  # fills the caches again
        deadline = time.perf_counter() + TURN_S
        while True:
            begin = time.perf_counter()
            run(None, feed)
            end = time.perf_counter()
            times_s[side].append(end - begin)
            if end >= deadline:
                break
    return statistics.median(times_s[0]) / statistics.median(times_s[1])


def warm_up(session: Any, feeds: list[dict[str, Any]]) -> float:
    """Runs for a while; returns the seconds of the shortest run."""
    shortest = math.inf
    deadline = time.perf_counter() + WARM_UP_S
    while time.perf_counter() < deadline:
        begin = time.perf_counter()
        session.run(None, feeds[0])
        shortest = min(shortest, time.perf_counter() - begin)
    return shortest


def run_loadgen(model: str, inputs: str, folder: str) -> None:
    """Lets LoadGen time single runs, one after another, and write its logs to ``folder``.

    Source: MLPerf Inference, LoadGen 6.0, scenario SingleStream in mode PerformanceOnly.
    """
    import mlperf_loadgen as loadgen  # type: ignore[import-not-found, unused-ignore]

    session = open_model(model, SESSION_ENTRIES)
    feeds = read_feeds(session, inputs)
    gc.disable()  # as in the protocol's processes
    shortest_s = warm_up(session, feeds)

    def issue(samples: list[Any]) -> None:
        for sample in samples:
            session.run(None, feeds[sample.index])
            loadgen.QuerySamplesComplete([loadgen.QuerySampleResponse(sample.id, 0, 0)])

    settings = loadgen.TestSettings()
    settings.scenario = loadgen.TestScenario.SingleStream
    settings.mode = loadgen.TestMode.PerformanceOnly
    settings.single_stream_target_latency_percentile = PERCENTILE
    # LoadGen prepares as many queries as this makes it expect; too few would end the test early.
    settings.single_stream_expected_latency_ns = int(shortest_s * 1e9 / 2)
    settings.min_query_count = LEAST_QUERIES
    settings.min_duration_ms = LEAST_DURATION_MS
    logs = loadgen.LogSettings()
    logs.log_output.outdir = folder
    logs.enable_trace = False
    system = loadgen.ConstructSUT(issue, lambda: None)
    library = loadgen.ConstructQSL(len(feeds), len(feeds), lambda _: None, lambda _: None)
    loadgen.StartTestWithLogSettings(system, library, settings, logs)
    loadgen.DestroyQSL(library)
    loadgen.DestroySUT(system)


if __name__ == "__main__":
    how, *arguments = sys.argv[1:]
    if how == "loadgen":
        run_loadgen(*arguments)
    else:
        ways: dict[str, Callable[..., float]] = {
            "naive": time_naively,
            "median": time_patiently,
            "ratio": time_in_turns,
        }
        print(ways[how](*arguments))
