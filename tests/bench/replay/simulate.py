"""Replays search policies on a recorded table by a simulated clock.

A step costs the seconds that the same work cost when the table was recorded, training the median
over all recipes of its structure, so that a search of twenty minutes is over in a second. A recipe
that was not recorded is answered by the nearest one that was; every ratio has its own structure.

Source: the manner of Klein et al. 2022, Syne Tune's simulator with tabulated benchmarks.
"""

from __future__ import annotations

import gzip
import json
import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.samplers import BaseSampler
from optuna.storages import InMemoryStorage

from search.benchmark.estimates import signed_rank_interval, walsh_means
from search.config.device import DeviceConfig
from search.config.study import PolicyConfig, SamplerConfig, StudyConfig
from search.engine.base import Done, answered
from search.engine.driving import drive
from search.front import pareto
from search.front.front import ACCURACY_MARGIN
from search.recipes.deploying import deploy
from search.records.baseline import Baseline
from search.records.bench import Lab
from search.records.deployable import Format
from search.records.device import DeviceProfile
from search.records.files import File
from search.records.measurement import Measurement
from search.records.network import Network, Student, Teacher
from search.records.score import Score
from search.records.steps.editing import Edited
from search.records.steps.exporting import Export, Exported, Graph, Quantize, Trace
from search.records.steps.measuring import Measure
from search.records.steps.pruning import Prune
from search.records.steps.scoring import Evaluate
from search.records.steps.step import Step
from search.records.steps.training import Finetune
from search.records.trial import CompleteTrial
from search.space.parsing import parse_space
from search.space.space import Space
from search.storage.journal import Journal
from search.study.coordinator import Coordinator
from search.study.study import Study
from tests.bench.plain import plain_trial
from tests.deployables import make_deployable
from tests.fakes import NETWORK, SPEC, file, lab, measurement

TABLE = Path(__file__).with_name("table.json.gz")
OBJECTIVES = ("accuracy", "latency")
MOST_TRIALS = 400
# How much a difference counts where the nearest recipe is looked for: the rate matters most.
UNLIKE = {"learning_rate": 3.0, "distill_temperature": 0.5, "distill_weight": 0.5}
OTHER_WORD = {"optimizer": 1.0, "schedule": 0.7}
SECONDS_PER_TRACE = 0.0  # once a study, before its first trial


class Table:
    """What was recorded, by structure and recipe."""

    def __init__(self, path: Path = TABLE) -> None:
        recorded = json.loads(gzip.decompress(path.read_bytes()))
        for structure in recorded["structures"]:
            _pool(structure["deployed"])
        self.recorded = recorded
        self.rungs: list[float] = recorded["rungs"]
        self.ratios = [structure["prune_ratio"] for structure in recorded["structures"]]
        self.recipes: list[Mapping[str, Any]] = recorded["recipes"]
        self.trainings = {(t["prune_ratio"], t["recipe"]): t for t in recorded["trainings"]}
        # Medians: what else the machine did now and then is no part of a recipe.
        self._rung_s = {
            ratio: np.median(
                [t["rung_s"] for (r, _), t in self.trainings.items() if r == ratio], axis=0
            ).tolist()
            for ratio in self.ratios[1:]
        }
        self._overhead_s = self._fit_overhead()
        numbers = {name: [math.log(r[name]) if name != "distill_weight" else r[name]
                          for r in self.recipes] for name in UNLIKE}  # fmt: skip
        self._spans = {name: max(v) - min(v) for name, v in numbers.items()}

    def space(self) -> Space:
        """The space in which everything was recorded."""
        return parse_space(
            {
                "prune_ratio": {"low": 0.0, "high": 0.9},
                "bits": [32, 16, 8, 4],
                "distill_temperature": {"low": 1.0, "high": 10.0},
                "distill_weight": {"low": 0.0, "high": 1.0},
                "optimizer": ["sgd", "adam", "adamw", "rmsprop"],
                "learning_rate": {"low": 0.0003, "high": 0.03},
                "schedule": ["constant", "step", "cosine", "one_cycle", "plateau"],
                "threads": {"low": 1, "high": len(self.recorded["reference_ms"])},
            },
            usable_cores=len(self.recorded["reference_ms"]),
        )

    def structure(self, ratio: float) -> Mapping[str, Any]:
        """The structure that pruning by a ratio gives."""
        found: Mapping[str, Any] = self.recorded["structures"][bisect_right(self.ratios, ratio) - 1]
        return found

    def nearest_recipe(self, step: Finetune) -> int:
        """Number of the recorded recipe that is most like a step's."""

        def unlikeness(recipe: Mapping[str, Any]) -> float:
            total = sum(
                cost for name, cost in OTHER_WORD.items() if recipe[name] != getattr(step, name)
            )
            for name, cost in UNLIKE.items():
                one, other = recipe[name], getattr(step, name)
                if name != "distill_weight":
                    one, other = math.log(one), math.log(other)
                total += cost * abs(one - other) / self._spans[name]
            return total

        return min(range(len(self.recipes)), key=lambda i: unlikeness(self.recipes[i]))

    def seconds(self, ratio: float, begin: float, end: float) -> float:
        """Seconds of training a structure from one share to another, scored once at the end."""
        segments = [
            seconds
            for share, seconds in zip(self.rungs, self._rung_s[ratio], strict=True)
            if begin < share <= end
        ]
        return float(sum(segments) - self._overhead_s * (len(segments) - 1))

    def accuracy_at(self, training: Mapping[str, Any], end: float) -> float:
        """Accuracy after a share of the training."""
        index = int(np.argmin(np.abs(np.array(self.rungs) - end)))
        assert abs(self.rungs[index] - end) < 1e-6, f"nothing was recorded at {end}"
        accuracies: list[float] = training["rung_accuracy"]
        return accuracies[index]

    def _fit_overhead(self) -> float:
        """Seconds that a rung costs apart from training, by least squares over all structures."""
        shares, rows, seconds = np.diff([0.0, *self.rungs]), [], []
        for column, measured in enumerate(self._rung_s.values()):
            for share, second in zip(shares, measured, strict=True):
                row = np.zeros(len(self._rung_s) + 1)
                row[column], row[-1] = share, 1.0
                rows.append(row)
                seconds.append(second)
        return float(np.linalg.lstsq(np.array(rows), np.array(seconds), rcond=None)[0][-1])


def _pool(deployed: Sequence[Mapping[str, Any]]) -> None:
    """Gives bits that run the same operators one latency, from the launches of them all.

    They are one computation (weights in 16 and 4 bits become float when a session is made): told
    apart by chance, they would reward a policy that measures all of them.
    """
    cells: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for model in deployed:
        for threads, cell in model["threads"].items():
            cells.setdefault((threads, json.dumps(cell["operators"])), []).append(cell)
    for same in cells.values():
        logs = np.concatenate([cell["log_ratios"] for cell in same])
        low, high = signed_rank_interval(logs, 0.95)
        middle = float(np.median(walsh_means(logs)))
        pooled = {"ratio": middle, "ratio_low": low, "ratio_high": high}
        for cell in same:
            cell |= {name: math.exp(value) for name, value in pooled.items()}


@dataclass(frozen=True)
class _Model:
    """What a file of the replay stands for."""

    ratio: float
    training: Mapping[str, Any] | None
    bits: int = 32


class ReplayEngine:
    """Answers steps from the table and adds up what they cost.

    Args:
        table: The recording.
        remembers: Whether a step is done once only.
    """

    slots = 1

    def __init__(self, table: Table, remembers: bool = True) -> None:
        self.clock_s = 0.0
        self.trained_s = 0.0
        self._table = table
        self._remembers = remembers
        self._known: dict[str, tuple[Any, float]] = {}
        self._models: dict[str, _Model] = {NETWORK.weights.sha256: _Model(0.0, None)}

    def describe(self, config: DeviceConfig) -> DeviceProfile:
        """Nobody asks: the table is of one device."""
        raise NotImplementedError

    def submit(self, step: Step[Any], title: str = "") -> Future[Done]:
        """Answers ``step``."""
        return answered(lambda: self._run(step))

    def _run(self, step: Step[Any]) -> Done:
        if self._remembers and step.key in self._known:
            return Done(*self._known[step.key], reused=True)
        result, seconds = self._answer(step)
        self.clock_s += seconds
        self._known[step.key] = (result, seconds)
        return Done(result, seconds, reused=False)

    def _answer(self, step: Step[Any]) -> tuple[Any, float]:
        match step:
            case Prune(network=network, ratio=ratio):
                return self._prune(network, ratio)
            case Trace():
                return Graph(file("graph")), SECONDS_PER_TRACE
            case Export(network=network):
                model = self._models[network.weights.sha256]
                named = self._name(f"onnx {network.weights.sha256}", model, 0)
                return Exported(named, 0.0), self._deployed(model)["export_s"]
            case Quantize(model=model_file, format=Format(bits=bits)):
                model = replace(self._models[model_file.sha256], bits=bits)
                kept = self._deployed(model)
                named = self._name(f"{model_file.sha256} {bits}", model, kept["size_bytes"])
                return make_deployable(named, bits, ()), kept["quantize_s"]
            case Measure(deployable=deployable, threads=threads):
                return self._measure(self._models[deployable.model.sha256], threads)
            case Evaluate(deployable=deployable):
                return self._score(self._models[deployable.model.sha256])
            case Finetune():
                return self._finetune(step)
        raise AssertionError(f"nothing was recorded for {step}")

    def _name(self, content: str, model: _Model, size_bytes: int) -> File:
        named = file(content, size_bytes=size_bytes)
        self._models[named.sha256] = model
        return named

    def _prune(self, network: Network, ratio: float) -> tuple[Edited, float]:
        found = self._table.structure(ratio)
        if found["channels_removed"] == 0:
            return Edited(network, {"channels_removed": 0.0}), found["prune_s"]
        weights = self._name(
            f"pruned {found['prune_ratio']}", _Model(found["prune_ratio"], None), 0
        )
        smaller = Network(SPEC, network.shapes, weights, found["macs"], found["parameters"])
        return Edited(smaller, {"channels_removed": found["channels_removed"]}), found["prune_s"]

    def _deployed(self, model: _Model) -> Mapping[str, Any]:
        found = self._table.structure(model.ratio)["deployed"]
        chosen: Mapping[str, Any] = next(d for d in found if d["bits"] == model.bits)
        return {"export_s": 0.0, "quantize_s": 0.0, **chosen}

    def _measure(self, model: _Model, threads: int) -> tuple[Measurement, float]:
        found = self._deployed(model)["threads"][str(threads)]
        kept = ("ratio", "ratio_low", "ratio_high", "p50_ms", "cpu_ms", "peak_rss_bytes")
        return (
            replace(measurement(found["ratio"]), **{name: found[name] for name in kept}),
            found["measure_s"],
        )

    def _score(self, model: _Model) -> tuple[Score, float]:
        scored = (model.training or self._table.structure(0.0))["scored"]
        found = next(s for s in scored if s["bits"] == model.bits)
        return Score(found["accuracy"], 10_000), found["evaluate_s"]

    def _finetune(self, step: Finetune) -> tuple[Student, float]:
        ratio = self._models[step.start.weights.sha256].ratio
        recipe = self._table.nearest_recipe(step)
        training = self._table.trainings[ratio, recipe]
        seconds = self._table.seconds(ratio, step.begin, step.end)
        self.trained_s += seconds
        weights = self._name(f"{ratio} {recipe} {step.end}", _Model(ratio, training), 0)
        network = replace(step.start, weights=weights)
        accuracy = self._table.accuracy_at(training, step.end)
        return Student(network, None if step.end == 1 else file("state"), accuracy), seconds


def replay_lab(table: Table, rungs: Sequence[float]) -> Lab:
    """The laboratory of the recording: its reference, baseline and rungs."""
    given, recorded = lab(), table.recorded
    base = recorded["reference_ms"]["1"]
    baseline = Baseline(
        base, {int(n): measurement(ms / base) for n, ms in recorded["reference_ms"].items()}
    )
    whole = recorded["structures"][0]
    network = replace(NETWORK, macs=whole["macs"], parameters=whole["parameters"])
    reference = drive(deploy(network, 32, given.bench), ReplayEngine(table))
    train = replace(given.bench.train, rungs=tuple(rungs), epochs=recorded["epochs"])
    return replace(
        given,
        bench=replace(given.bench, train=train, thread_counts=tuple(baseline.against_base)),
        teacher=Teacher(network, file("logits"), recorded["teacher_accuracy"]),
        reference=reference,
        reference_accuracy=recorded["reference_accuracy"],
        baseline=baseline,
    )


class MemoryJournal(Journal):
    """A journal of which nothing is kept."""

    def storage(self) -> Any:
        """Opens a storage in memory."""
        return InMemoryStorage()


Curve = list[tuple[float, float]]


class Hypervolume:
    """The share of the box below the original that the points so far dominate."""

    def __init__(self, lab: Lab) -> None:
        best_ms = lab.baseline.latency_ms(lab.baseline.best_threads)
        self._reference = np.array([1 - lab.reference_accuracy + ACCURACY_MARGIN, best_ms])
        self._points: list[tuple[float, float]] = []

    def add(self, accuracy: float | None, latency_ms: float | None) -> float:
        """Adds a point, if it has both figures, and returns the hypervolume."""
        if accuracy is not None and latency_ms is not None:
            self._points.append((1 - accuracy, latency_ms))
        scaled = np.array(self._points).reshape(-1, 2) / self._reference
        return pareto.hypervolume(scaled, np.ones(2))


def replay_plain(
    table: Table, sampler: BaseSampler, n_trials: int, until_s: float = math.inf
) -> Curve:
    """Replays a plain loop: everything is sampled, trained to the end and measured last."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    given, space = replay_lab(table, (1.0,)), table.space()
    engine, volume = ReplayEngine(table, remembers=False), Hypervolume(given)
    curve: Curve = []
    study = optuna.create_study(directions=["minimize"] * 2, sampler=sampler)
    while len(curve) < n_trials and engine.clock_s < until_s:
        asked = study.ask(space.distributions())
        found = drive(plain_trial(space.point(asked.params), given), engine)
        study.tell(asked, (1 - found.accuracy, found.latency_ms))
        curve.append((engine.clock_s, volume.add(found.accuracy, found.latency_ms)))
    return curve


def replay_search(
    table: Table,
    sampler: SamplerConfig,
    policy: PolicyConfig,
    rungs: Sequence[float],
    seed: int,
    until_s: float,
    make_coordinator: type[Coordinator] = Coordinator,
) -> Curve:
    """Replays this project's own study."""
    given, engine = replay_lab(table, rungs), ReplayEngine(table)
    volume = Hypervolume(given)
    curve: Curve = []
    study = Study(
        MemoryJournal(Path("nowhere"), "replay"),
        StudyConfig(name="replay", n_trials=100_000, timeout_s=None, warm_start=(), seed=seed),
        table.space(),
        OBJECTIVES,
        {},
    )
    for record in make_coordinator(study, sampler, policy, given, engine).trials():
        found = record.figures if isinstance(record, CompleteTrial) else None
        accuracy = None if found is None else found.val_accuracy
        latency_ms = None if record.figures is None else record.figures.latency_ms
        curve.append((engine.clock_s, volume.add(accuracy, latency_ms)))
        # A table is finite: once all of it is known, the clock would stand still.
        if engine.clock_s >= until_s or len(curve) >= MOST_TRIALS:
            break
    return curve


def time_to(curve: Curve, target: float) -> float:
    """Seconds until the hypervolume first reached ``target``; infinite if it never did."""
    return next((clock for clock, volume in curve if volume >= target), math.inf)


def volume_at(curve: Curve, clock_s: float) -> float:
    """The hypervolume at a moment."""
    reached = [volume for clock, volume in curve if clock <= clock_s]
    return reached[-1] if reached else 0.0
