"""Stand-ins with closed-form answers, for tests of the rooms that only pass values on."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import numpy as np

from search.config.device import DeviceConfig
from search.config.study import ObjectiveConfig, PolicyConfig, SamplerConfig, TpeConfig
from search.engine.base import Done, answered
from search.records.baseline import Baseline
from search.records.bench import Lab
from search.records.deployable import Deployable, Format
from search.records.device import DeviceProfile
from search.records.files import File
from search.records.measurement import Measurement, Session
from search.records.network import Network, NetworkSpec, Student, Teacher
from search.records.placement import ChosenPlacement
from search.records.point import Point
from search.records.score import Score
from search.records.steps.editing import Edited
from search.records.steps.exporting import Export, Exported, Graph, Quantize, Trace
from search.records.steps.measuring import Confirm, Measure
from search.records.steps.pruning import Cuts, Prune, Sweep
from search.records.steps.scoring import Evaluate, EvaluateOnDevice
from search.records.steps.step import Step
from search.records.steps.training import FindRate, Finetune, Reestimate
from search.records.survey import Cut, FoundRate
from search.records.trial import TrialRecord
from search.study.coordinator import Coordinator
from search.study.study import Study
from search.testing import benches
from tests.deployables import make_deployable

TEACHER_ACCURACY = 0.95


def file(content: str, suffix: str = ".onnx", size_bytes: int = 1000) -> File:
    """Names a file by a content that need not exist."""
    return File(hashlib.sha256(content.encode()).hexdigest(), suffix, size_bytes)


def measurement(ratio: float, p50_ms: float = 1.0, spread: float = 0.01) -> Measurement:
    """A measurement with a given ratio."""
    return Measurement(
        p50_ms=p50_ms,
        p90_ms=p50_ms * 1.1,
        p95_ms=p50_ms * 1.2,
        p99_ms=None,
        reference_p50_ms=p50_ms / ratio,
        ratio=ratio,
        ratio_low=ratio * (1 - spread),
        ratio_high=ratio * (1 + spread),
        rounds=40,
        disturbed_rounds=0,
        excluded_rounds=0,
        launches=2,
        quality="resolved",
        warm=True,
        images_per_s=1e3 / p50_ms,
        cold_start_ms=5.0,
        cpu_ms=1.1,
        peak_rss_bytes=70_000_000,
        model_rss_bytes=10_000_000,
        energy_mj=None,
        energy_note="no counter",
        operators={"Conv": 1, "FusedGemm": 2},
        protocol=4,
        conditions={},
        raw=(),
    )


SPEC = NetworkSpec("cnn", 8, None, (), None, (1, 28, 28), 2)
DATA = replace(benches.make_bench(SPEC).data, labels=("zero", "one"))
BENCH = replace(benches.make_bench(SPEC), data=DATA)
PROFILE, LOCAL = benches.DEVICE, benches.MEASURING
NETWORK = Network(SPEC, (("weight", (8, 1, 3, 3)),), file("teacher", ".safetensors"), 1000, 72)


def measure_step(deployable: Deployable, **changes: Any) -> Measure:
    """A quick measurement of a model against itself on one thread, but for ``changes``."""
    step = Measure(
        deployable=deployable,
        threads=1,
        reference=deployable,
        reference_threads=1,
        data=DATA,
        device=PROFILE,
        connection=LOCAL,
        batch_size=1,
        throughput_batch_size=4,
        spinning=False,
        memory_limit_bytes=None,
        launches=2,
        budget_s=1.0,
        seed=0,
    )
    return replace(step, **changes)


POLICY = PolicyConfig(latency_first=True, eta=3.0, deployments=3)
PLAIN = PolicyConfig(latency_first=False, eta=None, deployments=0)
TPE = TpeConfig(name="tpe", n_startup_trials=5, multivariate=True)


# Coarse to fine, as a study tries them.
CUTS = tuple(
    Cut(ratio, (1 - ratio) ** 2) for ratio in (0.5, 0.3, 0.7, 0.9, 0.1, 0.6, 0.4, 0.8, 0.2)
)
RATE = FoundRate(0.0126, ())


def limits(**changes: Any) -> ObjectiveConfig:
    """The default objectives, without limits but for ``changes``."""
    return replace(benches.LIMITS, **changes)


def lab(**changes: Any) -> Lab:
    """A laboratory whose network takes 1 ms with one thread and 0.8 ms with two."""
    reference = make_deployable(file("reference"), 32, ())
    return Lab(
        bench=replace(BENCH, limits=limits(**changes)),
        placement=ChosenPlacement("cpu", "float32", "channels_last", 0.1),
        teacher=Teacher(NETWORK, file("logits", ".safetensors"), TEACHER_ACCURACY),
        reference=reference,
        reference_accuracy=TEACHER_ACCURACY,
        baseline=Baseline(1.0, {1: measurement(1.0, spread=0.0), 2: measurement(0.8)}),
        cuts=CUTS,
        rate=RATE,
    )


def score(accuracy: float, images: int) -> Score:
    """A score whose first images were recognised, and none of the others."""
    right = np.arange(images) < round(accuracy * images)
    return Score(accuracy, images, np.packbits(right).tobytes().hex())


class FakeEngine:
    """Answers every step at once by formula: pruning makes faster and less accurate.

    Args:
        interfere: Called with every step before it is answered; may raise.
    """

    slots = 1

    def __init__(self, interfere: Callable[[Step[Any]], None] = lambda step: None) -> None:
        self._interfere = interfere
        self._known: dict[str, Any] = {}
        self.computed: list[Step[Any]] = []

    def describe(self, config: DeviceConfig) -> DeviceProfile:
        return PROFILE

    def submit(self, step: Step[Any], title: str = "") -> Future[Done]:
        return answered(lambda: self.run(step))

    def run(self, step: Step[Any]) -> Done:
        """Answers ``step``; the second time from memory."""
        if step.key in self._known:
            return Done(self._known[step.key], 0.5, reused=True)
        self._interfere(step)
        self.computed.append(step)
        self._known[step.key] = self._answer(step)
        return Done(self._known[step.key], 0.5, reused=False)

    def _answer(self, step: Step[Any]) -> Any:
        # A network's kept share is its number of parameters in per cent.
        match step:
            case Prune(network=network, ratio=ratio):
                left = round(100 * (1 - ratio))
                shapes, weights = network.shapes, network.weights
                if left < 100:  # or it is the same network
                    shapes = (*shapes, ("share", (left,)))
                    weights = file(f"w{left}", ".safetensors")
                smaller = Network(SPEC, shapes, weights, 10 * left, left)
                return Edited(smaller, {"channels_removed": 1 - left / 100})
            case Finetune(start=start, end=end, learning_rate=learning_rate):
                tuned = file(f"{start.weights.sha256}{end}{learning_rate}", ".safetensors")
                network = Network(SPEC, start.shapes, tuned, start.macs, start.parameters)
                return Student(network, None if end == 1 else file("state"), 0.9)
            case Sweep():
                return Cuts(CUTS)
            case Reestimate(network=network):
                return Student(network, None, 0.5)
            case FindRate():
                return RATE
            case Trace():
                return Graph(file("graph"))
            case Export(network=network):
                name = f"{network.parameters} {network.weights.sha256}"
                return Exported(file(name, size_bytes=1000 * network.parameters), 0.0)
            case Quantize(model=model, format=Format(bits=bits)):
                size = model.size_bytes * bits // 32
                return make_deployable(file(f"{model.sha256}{bits}", size_bytes=size), bits, ())
            case Measure(deployable=deployable):
                return measurement(max(0.05, deployable.model.size_bytes / 100_000))
            case (
                Evaluate(deployable=deployable, data=data, split=split)
                | EvaluateOnDevice(deployable=deployable, data=data, split=split)
            ):
                loss = 1e-6 * (100_000 - deployable.model.size_bytes)
                images = data.sizes[1 if split == "validation" else 2]
                return score(TEACHER_ACCURACY - loss, images)
            case Confirm(comparisons=comparisons, launches=launches):
                told = [self._answer(comparison) for comparison in comparisons]
                return Session(
                    tuple(told),
                    tuple((math.log(one.ratio),) * launches for one in told),
                    tuple((one.cpu_ms,) * launches for one in told),
                    tuple((one.peak_rss_bytes,) * launches for one in told),
                )
        raise AssertionError(f"no answer for {step}")


def trials_of(
    study: Study,
    where: Lab,
    engine: FakeEngine,
    policy: PolicyConfig = PLAIN,
    sampler: SamplerConfig = TPE,
    earlier: Sequence[Point] = (),
) -> Iterator[TrialRecord]:
    """Searches as a run of the study does."""
    return Coordinator(study, sampler, policy, where, engine, earlier).trials()
