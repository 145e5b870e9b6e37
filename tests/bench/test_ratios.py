"""How far measured ratios are from true ones, by load and by rule; and what slow models take.

The truth of a pair comes from plain wall clocks on an idle machine, in many fresh processes. Run
this alone on the machine, with nothing else: ``pytest tests/bench/test_ratios.py -m bench -s``.
``RATIO_RULES``, ``RATIO_SIZES``, ``RATIO_LOADS``, ``RATIO_SLOW_MS`` (names with commas between)
and ``RATIO_COMPARISONS`` (of each pair under each load) choose a part of it.
"""

from __future__ import annotations

import contextlib
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import pytest

from search.benchmark.estimates import signed_rank_interval
from search.benchmark.plan import Plan, Side
from search.benchmark.protocol import compare
from search.devices.device import Device
from search.devices.local import LocalTransport
from search.devices.reaching import hold
from search.records.measurement import Measurement
from tests.bench import equal_runs, plain_timing
from tests.onnx_files import save_conv_stack

TIMEOUT_S = 6 * 3600
BUDGET_S, COMPARISON_TIMEOUT_S = 3.0, 120.0
SLOW_BUDGET_S = 8.0
CORES = os.cpu_count() or 1
COMPARISONS = int(os.environ.get("RATIO_COMPARISONS", "3"))
TRUTH_PROCESSES, TRUTH_LEVEL = 12, 0.95
# Layers of candidate and reference, whose times are nearly proportional to them.
LAYERS = {"0.2": (2, 10), "0.5": (4, 8), "1": (6, 6), "3": (12, 4)}
ONE = plain_timing.THREADS
# Channels and pixels of a layer, about 0.02, 0.2 and 3 ms with one thread, and threads. Several are
# timed by the wall clock.
SIZES = {
    "small": (16, 16, ONE),
    "medium": (32, 32, ONE),
    "large": (32, 128, ONE),
    "large with 2 threads": (32, 128, 2),
}
SLOW_MS = ("60", "200", "1000", "2000")
SLOW_CHANNELS, SLOW_PIXELS = 32, 224
COMMANDS = {
    "equal runs": (sys.executable, equal_runs.__file__),
    "equal time": (sys.executable,),  # the agent as it is
}
# Its parent's end is its own, even if nobody is left to stop it.
BURN = """
import os, sys
print("begun", flush=True)
while os.getppid() == int(sys.argv[1]):
    sum(range(10_000))
"""
TRAIN = """
import os, sys, torch
network = torch.nn.Sequential(
    torch.nn.Conv2d(3, 32, 3, padding=1), torch.nn.ReLU(),
    torch.nn.Conv2d(32, 32, 3, padding=1), torch.nn.ReLU(),
    torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(32, 10),
)
optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
images, labels = torch.rand(64, 3, 32, 32), torch.randint(10, (64,))
print("begun", flush=True)
while os.getppid() == int(sys.argv[1]):
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(network(images), labels).backward()
    optimizer.step()
"""
LOADS: dict[str, tuple[str, int]] = {
    "idle": (BURN, 0),
    "one core busy": (BURN, 1),
    "all cores busy": (BURN, CORES),
    "twice as many busy": (BURN, 2 * CORES),
    "beside a training": (TRAIN, 1),
}


@dataclass(frozen=True)
class Pair:
    """Two models of known ratio, as files with their inputs."""

    candidate: Path
    reference: Path
    inputs: Path
    threads: int = ONE

    def plan(self, seed: int, budget_s: float) -> Plan:
        return Plan(
            candidate=Side(str(self.candidate), self.threads, ()),
            reference=Side(str(self.reference), self.threads, ()),
            inputs=str(self.inputs),
            batch_size=1,
            throughput_batch_size=4,
            memory_limit_bytes=None,
            launches=2,
            retry=True,
            budget_s=budget_s,
            timeout_s=COMPARISON_TIMEOUT_S,
            seed=seed,
        )


@dataclass(frozen=True)
class Truth:
    """A ratio by plain clocks of an idle machine, with the interval of the middle process."""

    ratio: float
    low: float
    high: float


def chosen(name: str, known: Sequence[str]) -> list[str]:
    """Returns what a variable of the environment names, or all."""
    names = os.environ.get(name, ",".join(known)).split(",")
    assert set(names) <= set(known), f"{name} knows {', '.join(known)}"
    return names


@pytest.mark.bench
@pytest.mark.timeout(TIMEOUT_S)
def test_ratios_under_load(tmp_path: Path) -> None:
    sizes, rules = chosen("RATIO_SIZES", list(SIZES)), chosen("RATIO_RULES", list(COMMANDS))
    pairs = {
        (size, ratio): make_pair(tmp_path, *SIZES[size], *LAYERS[ratio])
        for size in sizes
        for ratio in LAYERS
    }
    truths = {which: find_truth(pair) for which, pair in pairs.items()}
    print(f"\n{CORES} cores, {COMPARISONS} comparisons of {BUDGET_S:g} s of each pair\n")
    print("| size | ratio | true, by plain clocks |\n|---|---|---|")
    for (size, ratio), truth in truths.items():
        print(f"| {size} | {ratio} | {truth.ratio:.4f} ({truth.low:.4f} to {truth.high:.4f}) |")
    print("\n| rule | load | size | ratio | found | error | half-width | quality |")
    print("|---|---|---|---|---|---|---|---|")
    summary = []
    for load in chosen("RATIO_LOADS", list(LOADS)):
        for rule in rules:
            found = []
            with loaded(load):
                for (size, ratio), pair in pairs.items():
                    mine = [measure(pair, seed, rule) for seed in range(COMPARISONS)]
                    truth = truths[size, ratio]
                    found += [(one, truth) for one in mine]
                    print_row(rule, load, size, ratio, mine, truth)
            summary.append(summarise(rule, load, found))
    print("\n| load | rule | median error | largest error | intervals that hold | launches |")
    print("|---|---|---|---|---|---|")
    print("\n".join(summary))


@pytest.mark.bench
@pytest.mark.timeout(TIMEOUT_S)
def test_slow_models(tmp_path: Path) -> None:
    inputs = make_inputs(tmp_path, SLOW_CHANNELS, SLOW_PIXELS)
    one = save_conv_stack(tmp_path / "one.onnx", SLOW_CHANNELS, 4, SLOW_PIXELS)
    layer_ms = float(run_plainly("median", str(one), str(inputs))) / 4
    print(f"\na layer of {SLOW_CHANNELS} channels and {SLOW_PIXELS} pixels: {layer_ms:.1f} ms")
    print("\n| model | load | seconds | ratio | half-width | quality | warm | p50 ms | images/s |")
    print("|---|---|---|---|---|---|---|---|---|")
    for wanted_ms in map(float, chosen("RATIO_SLOW_MS", SLOW_MS)):
        layers = 2 * max(1, round(wanted_ms / layer_ms / 2))  # the ratio is about one half
        files = (tmp_path / f"{wanted_ms}-{n}.onnx" for n in (layers, layers // 2))
        half, whole = (
            save_conv_stack(path, SLOW_CHANNELS, count, SLOW_PIXELS)
            for path, count in zip(files, (layers // 2, layers), strict=True)
        )
        for load in ("idle", "all cores busy"):
            with loaded(load):
                begun = time.monotonic()
                found = measure(Pair(half, whole, inputs), 0, "equal time", SLOW_BUDGET_S)
                seconds = time.monotonic() - begun
            print(
                f"| {wanted_ms:g} ms | {load} | {seconds:.0f} | {found.ratio:.4f} "
                f"| {half_width(found):.1%} | {found.quality} | {found.warm} | {found.p50_ms} "
                f"| {found.images_per_s} |",
                flush=True,
            )


def make_pair(
    folder: Path, channels: int, pixels: int, threads: int, layers: int, others: int
) -> Pair:
    paths = [folder / f"{channels}-{pixels}-{n}-{i}.onnx" for i, n in enumerate((layers, others))]
    candidate, reference = (
        save_conv_stack(path, channels, count, pixels)
        for path, count in zip(paths, (layers, others), strict=True)
    )
    return Pair(candidate, reference, make_inputs(folder, channels, pixels), threads)


def make_inputs(folder: Path, channels: int, pixels: int) -> Path:
    path = folder / f"{channels}-{pixels}.npy"
    shape = (8, channels, pixels, pixels)
    np.save(path, np.random.default_rng(0).random(shape, dtype=np.float32))
    return path


def find_truth(pair: Pair) -> Truth:
    """Times both models in turns in many fresh processes, with nothing else on the machine."""
    if pair.candidate.read_bytes() == pair.reference.read_bytes():
        return Truth(1.0, 1.0, 1.0)
    arguments = map(str, (pair.candidate, pair.reference, pair.inputs, pair.threads))
    given = ("ratio", *arguments)
    logs = [math.log(float(run_plainly(*given))) for _ in range(TRUTH_PROCESSES)]
    low, high = signed_rank_interval(np.array(logs), TRUTH_LEVEL)
    return Truth(math.exp(median(logs)), math.exp(low), math.exp(high))


def run_plainly(*arguments: str) -> str:
    command = [sys.executable, plain_timing.__file__, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def measure(pair: Pair, seed: int, rule: str, budget_s: float = BUDGET_S) -> Measurement:
    with Device(LocalTransport(COMMANDS[rule]), COMPARISON_TIMEOUT_S) as device:
        hold(device, COMPARISON_TIMEOUT_S)
        return compare(device, pair.plan(seed, budget_s))


@contextlib.contextmanager
def loaded(load: str) -> Iterator[None]:
    """Keeps the machine as busy as ``load`` says."""
    program, count = LOADS[load]
    with contextlib.ExitStack() as stack:
        processes = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", program, str(os.getpid())], stdout=subprocess.PIPE
                )
            )
            for _ in range(count)
        ]
        try:
            for process in processes:
                assert process.stdout is not None
                process.stdout.readline()
            yield
            assert all(process.poll() is None for process in processes), "the load ended early"
        finally:
            for process in processes:
                process.kill()


def error(found: Measurement, truth: Truth) -> float:
    return abs(found.ratio / truth.ratio - 1)


def half_width(found: Measurement) -> float:
    return math.log(found.ratio_high / found.ratio_low) / 2


def holds(found: Measurement, truth: Truth) -> bool:
    """Whether the interval holds the truth, as far as that is known."""
    return found.ratio_low <= truth.high and found.ratio_high >= truth.low


def print_row(
    rule: str, load: str, size: str, ratio: str, found: Sequence[Measurement], truth: Truth
) -> None:
    qualities = ", ".join(sorted({one.quality for one in found}))
    print(
        f"| {rule} | {load} | {size} | {ratio} | {' '.join(f'{one.ratio:.3f}' for one in found)} "
        f"| {median(error(one, truth) for one in found):.1%} "
        f"| {median(half_width(one) for one in found):.1%} | {qualities} |",
        flush=True,
    )


def summarise(rule: str, load: str, found: Sequence[tuple[Measurement, Truth]]) -> str:
    errors = [error(*one) for one in found]
    share = sum(holds(*one) for one in found) / len(found)
    launches = median(one.launches for one, _ in found)
    return (
        f"| {load} | {rule} | {median(errors):.1%} | {max(errors):.1%} "
        f"| {share:.0%} of {len(found)} | {launches:g} |"
    )
