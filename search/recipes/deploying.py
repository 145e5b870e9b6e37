"""From a network to a measured model."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from search.errors import StageFailed
from search.records.bench import Bench, Lab
from search.records.deployable import Deployable
from search.records.measurement import Canary, Measurement
from search.records.network import Network
from search.records.profile import Comparison
from search.records.score import Score
from search.records.steps.exporting import (
    PARITY_TOLERANCE,
    Export,
    Exported,
    Graph,
    Quantize,
    Trace,
)
from search.records.steps.measuring import Measure, Profile
from search.records.steps.recipe import Recipe
from search.records.steps.scoring import Evaluate, EvaluateOnDevice
from search.records.steps.step import Step
from search.runtimes import runtimes

# Of fresh processes at least; more follow where these disagree. A canary is rare, and a verdict.
SEARCH_LAUNCHES, CANARY_LAUNCHES = 2, 6


def as_fast_as_itself(measured: Measurement) -> Measurement:
    """Returns a network's figures beside itself: its ratio is 1, whatever was measured."""
    return replace(measured, ratio=1.0, ratio_low=1.0, ratio_high=1.0, quality="resolved")


def canary(lab: Lab, study: str, after_trials: int) -> Recipe[Canary]:
    """Measures the uncompressed network against itself, once for that moment of that study."""
    bench, threads = lab.bench, lab.bench.thread_counts[0]
    against_itself = measure(bench, lab.reference, threads, lab.reference, threads)
    measured: Measurement = yield replace(
        against_itself, launches=CANARY_LAUNCHES, occasion=f"{study}, {after_trials} trials"
    )
    return Canary(after_trials, measured.interval, measured.quality)


def profile(deployable: Deployable, threads: int, lab: Lab) -> Recipe[Comparison]:
    """Profiles a model beside the uncompressed network at its best thread count."""
    best = lab.baseline.best_threads
    found: Comparison = yield Profile(measure(lab.bench, deployable, threads, lab.reference, best))
    return found


def deploy(network: Network, bits: int, bench: Bench) -> Recipe[Deployable]:
    """Exports a network and stores it in ``bits``."""
    exported = yield from export(network, bench)
    runtime = runtimes()[bench.device.runtime_name]
    deployable: Deployable = yield Quantize(
        exported.model,
        runtime.name,
        runtime.formats[bits],
        bench.device.int8_format,
        bench.data,
        bench.train.calibration_images,
        bench.seed,
    )
    return deployable


def evaluate(
    deployable: Deployable, split: Literal["validation", "test"], bench: Bench
) -> Recipe[Score]:
    """Scores a model in the arithmetic that it will run in, which is the device's."""
    step: Step[Score] = Evaluate(deployable, bench.data, split, bench.device)
    if not bench.is_here:
        step = EvaluateOnDevice(deployable, bench.data, split, bench.device, bench.measuring)
    score: Score = yield step
    return score


def export(network: Network, bench: Bench) -> Recipe[Exported]:
    """Exports a network; one slow tracing serves all widths that the network can be pruned to.

    Only code that computes with its own channel counts needs to be traced at each width.

    Raises:
        StageFailed: When the ONNX model does not compute what the network computes.
    """
    mean, std = bench.data.mean, bench.data.std
    error = None
    for shapes in (None, network.shapes):
        graph: Graph = yield Trace(network.spec, shapes, mean, std, network.edits)
        exported: Exported = yield Export(graph, network, mean, std)
        if exported.is_faithful:
            return exported
        error = exported.parity_error
    raise StageFailed(
        "export",
        "the ONNX model's logits are not the network's, in spite of a trace of its own "
        f"(relative error {error}); at most {PARITY_TOLERANCE:g} is allowed",
    )


def measure(
    bench: Bench,
    deployable: Deployable,
    threads: int,
    reference: Deployable,
    reference_threads: int,
) -> Measure:
    """Returns the step that times a model beside another one."""
    return Measure(
        deployable=deployable,
        threads=threads,
        reference=reference,
        reference_threads=reference_threads,
        data=bench.data,
        device=bench.device,
        connection=bench.measuring,
        batch_size=bench.measuring.batch_size,
        throughput_batch_size=bench.measuring.throughput_batch_size,
        spinning=bench.measuring.spinning,
        memory_limit_bytes=bench.measuring.memory_limit_bytes,
        launches=SEARCH_LAUNCHES,
        budget_s=bench.measuring.budget_s,
        seed=bench.seed,
    )
