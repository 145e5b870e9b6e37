"""How far the latency protocol errs where the truth is known, and beside MLPerf's own program."""

from __future__ import annotations

import importlib.util
import math
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import pytest
import torch

from search.benchmark.plan import Plan, Side
from search.benchmark.protocol import compare
from search.devices.device import Device
from search.devices.local import LocalTransport
from search.devices.reaching import hold
from search.networks import networks
from search.records.measurement import Measurement, Quality
from search.records.network import NetworkSpec
from tests.bench import plain_timing
from tests.bench.test_ratios import loaded
from tests.workbench import Workbench

COMPARISONS = 20
TURNS = 5
TIMEOUT_S = 3600
BUDGET_S, COMPARISON_TIMEOUT_S = 8.0, 120.0
SPEC = NetworkSpec("resnet8", 16, None, (), None, (1, 28, 28), 10)
SAMPLES = 8
QUALITIES: tuple[Quality, ...] = ("resolved", "unresolved", "poor")
LOADGEN_SUMMARY = "mlperf_log_summary.txt"


@dataclass(frozen=True)
class Trial:
    """A model compared with itself, so that every deviation from 1 is an error.

    Attributes:
        measurement: What the protocol says.
        seconds: What that took.
        naive_error: Ratio of two plain means, each of a fresh process, minus 1.
    """

    measurement: Measurement
    seconds: float
    naive_error: float

    @property
    def error(self) -> float:
        return self.measurement.ratio - 1

    @property
    def half_width(self) -> float:
        return math.log(self.measurement.ratio_high / self.measurement.ratio_low) / 2

    @property
    def covers(self) -> bool:
        return self.measurement.ratio_low <= 1 <= self.measurement.ratio_high


@dataclass(frozen=True)
class Subject:
    """The model that is timed, with its inputs, as files."""

    model: Path
    inputs: Path

    def plan(self, seed: int) -> Plan:
        side = Side(str(self.model), plain_timing.THREADS, ())
        return Plan(
            candidate=side,
            reference=side,
            inputs=str(self.inputs),
            batch_size=1,
            throughput_batch_size=4,
            memory_limit_bytes=None,
            launches=2,
            retry=True,
            budget_s=BUDGET_S,
            timeout_s=COMPARISON_TIMEOUT_S,
            seed=seed,
        )


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    folder = tmp_path_factory.mktemp("latency")
    bench = Workbench(folder / "store")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = networks.save(networks.build(SPEC), SPEC, bench.store)
    inputs = folder / "inputs.npy"
    images = np.random.default_rng(0).random((SAMPLES, *SPEC.image_shape), dtype=np.float32)
    np.save(inputs, images)
    return Subject(bench.store.path(bench.export(network).model), inputs)


@pytest.mark.bench
@pytest.mark.timeout(TIMEOUT_S)
def test_a_a_comparisons(subject: Subject) -> None:
    print(f"\n{SPEC.name}-w{SPEC.width} against itself, one thread, {os.cpu_count()} cores:")
    print_trials("alone", [try_once(subject, seed) for seed in range(COMPARISONS)])
    with loaded("one core busy"):
        trials = [try_once(subject, seed) for seed in range(COMPARISONS, 2 * COMPARISONS)]
    print_trials("beside a process that keeps one core busy", trials)


@pytest.mark.bench
@pytest.mark.timeout(TIMEOUT_S)
def test_loadgen_agrees(subject: Subject, tmp_path: Path) -> None:
    if importlib.util.find_spec("mlperf_loadgen") is None:
        pytest.skip("LoadGen is not installed: .venv/bin/pip install -e '.[bench]'")
    ours: list[float] = []
    theirs: list[float] = []
    estimates: list[float] = []
    for turn in range(TURNS):
        with Device(LocalTransport(), COMPARISON_TIMEOUT_S) as device:
            hold(device, COMPARISON_TIMEOUT_S)
            if turn % 2 == 0:
                ours.append(p90_ms(device, subject, turn))
            p90, estimate = loadgen_p90_ms(subject, tmp_path / str(turn))
            if turn % 2 == 1:
                ours.append(p90_ms(device, subject, turn))
        theirs.append(p90)
        estimates.append(estimate)
    print(f"\n{SPEC.name}-w{SPEC.width}, one thread, medians (and extremes) of {TURNS} turns:")
    for name, values in (
        ("p90, this protocol", ours),
        ("p90, LoadGen", theirs),
        ("its early stopping says", estimates),
    ):
        print(f"  {name:<24}{median(values):.4f} ms ({min(values):.4f} to {max(values):.4f})")
    print(f"  ours to LoadGen's       {median(ours) / median(theirs):.4f}")


def try_once(subject: Subject, seed: int) -> Trial:
    """Compares the model with itself by the protocol and naively; they go first in turns."""
    naive_first = seed % 2 == 0
    with Device(LocalTransport(), COMPARISON_TIMEOUT_S) as device:
        hold(device, COMPARISON_TIMEOUT_S)
        naive_error = compare_naively(subject) if naive_first else math.nan
        begin = time.monotonic()
        measurement = compare(device, subject.plan(seed))
        seconds = time.monotonic() - begin
        if not naive_first:
            naive_error = compare_naively(subject)
    return Trial(measurement, seconds, naive_error)


def compare_naively(subject: Subject) -> float:
    """Ratio of the means of two fresh processes that time the same model, minus 1."""
    first, second = (float(run_plainly("naive", subject)) for _ in range(2))
    return first / second - 1


def run_plainly(how: str, subject: Subject, *more: str) -> str:
    """Runs ``plain_timing.py`` in a fresh process and returns what it prints."""
    command = [sys.executable, plain_timing.__file__, how, str(subject.model), str(subject.inputs)]
    result = subprocess.run(
        [*command, *more], capture_output=True, text=True, timeout=COMPARISON_TIMEOUT_S, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def p90_ms(device: Device, subject: Subject, seed: int) -> float:
    """90th percentile of the protocol's single-stream pass, in milliseconds."""
    measurement = compare(device, subject.plan(seed))
    options = measurement.conditions["candidate"]["options"]
    assert options["session_entries"] == plain_timing.SESSION_ENTRIES
    assert options["intra_op_num_threads"] == plain_timing.THREADS
    assert measurement.p90_ms is not None
    return measurement.p90_ms


def loadgen_p90_ms(subject: Subject, folder: Path) -> tuple[float, float]:
    """LoadGen's 90th percentile and its early-stopping estimate of it, in milliseconds."""
    folder.mkdir()
    run_plainly("loadgen", subject, str(folder))
    summary = (folder / LOADGEN_SUMMARY).read_text()
    assert re.search(r"^Result is\s*: VALID$", summary, re.MULTILINE), summary
    names = (
        r"^90(?:\.0+)?th percentile latency \(ns\)",
        r"Early stopping 90(?:\.0+)?th percentile estimate",
    )
    found = [re.search(rf"{name}\s*: (\d+)$", summary, re.MULTILINE) for name in names]
    p90, estimate = (int(match[1]) / 1e6 if match else math.nan for match in found)
    assert not math.isnan(p90 + estimate), summary
    return p90, estimate


def print_trials(case: str, trials: Sequence[Trial]) -> None:
    covering = sum(trial.covers for trial in trials)
    qualities = Counter(trial.measurement.quality for trial in trials)
    print(f" {case}, {len(trials)} comparisons:")
    for trial in trials:
        answer = trial.measurement
        print(
            f"  {answer.ratio:.4f} ({answer.ratio_low:.4f} to {answer.ratio_high:.4f}) "
            f"{answer.quality:<10} {answer.launches} launches {trial.seconds:5.1f} s, "
            f"naive {1 + trial.naive_error:.4f}"
        )
    print(f"  intervals with 1 inside    {covering} of {len(trials)}, {covering / len(trials):.0%}")
    print(f"  |ratio - 1|                {spread([trial.error for trial in trials])}")
    print(f"  half-width                 median {median(t.half_width for t in trials):.2%}")
    print("  quality                   ", ", ".join(f"{qualities[q]} {q}" for q in QUALITIES))
    print(f"  duration                   median {median(t.seconds for t in trials):.2f} s")
    runs = plain_timing.NAIVE_RUNS
    print(f"  |error|, naive {runs}-run mean {spread([trial.naive_error for trial in trials])}")


def spread(errors: Sequence[float]) -> str:
    sizes = [abs(error) for error in errors]
    return f"largest {max(sizes):.2%}, median {median(sizes):.2%}"
