"""Compares this project's search with the plain loop, for real and side by side.

``python -m tests.bench.against_plain FOLDER SECONDS [overrides]`` gives each of the two as many
seconds on this machine, trial by trial in turns so that both see the same hours of it, with a store
of their own; the teacher is trained before. Then the models of both fronts are scored on the test
split and measured in one session. ``FOLDER`` keeps ``result.json`` and ``picture.png``.

The hypervolumes are moocore's (``pip install -e .[bench]``), not this project's own.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import moocore  # type: ignore[import-not-found,import-untyped,unused-ignore]  # of the extra named bench
import numpy as np
import optuna
from matplotlib.figure import Figure
from optuna.samplers import TPESampler

from search.cli import command as cli
from search.config.commands import SearchConfig
from search.config.parsing import parse
from search.engine.driving import drive
from search.engine.inline import InlineEngine
from search.engine.store import Store
from search.errors import StageFailed
from search.front import pareto
from search.front.front import ACCURACY_MARGIN
from search.recipes.deploying import measure
from search.recipes.preparing import prepare
from search.recipes.setup import make_bench
from search.records.bench import Lab
from search.records.deployable import Deployable
from search.records.steps.measuring import Confirm
from search.records.steps.recipe import Recipe
from search.records.steps.scoring import Evaluate
from search.records.trial import Figures
from search.space.space import Space
from search.storage.journal import Journal
from search.study.coordinator import Coordinator
from search.study.study import Study
from tests.bench.plain import plain_trial

LAUNCHES, BUDGET_S = 8, 10.0
PLAIN, OURS = "plain loop", "this search"
COLORS = {PLAIN: "#D55E00", OURS: "#0072B2"}


@dataclass(frozen=True)
class Entry:
    """A finished trial: figures as the search saw them, None where it was stopped before.

    Attributes:
        clock_s: Seconds that its search had taken when it was finished.
        accuracy: On the validation split.
        latency_ms: Normalised.
        deployable: None where it has no accuracy.
        threads: That it was measured with.
    """

    clock_s: float
    accuracy: float | None
    latency_ms: float | None
    deployable: Deployable | None
    threads: int


Trial = tuple[float | None, float | None, Deployable | None, int]


def plain_loop(lab: Lab, space: Space, engine: InlineEngine, seed: int) -> Iterator[Trial]:
    """Searches by Optuna's TPE over everything at once."""
    study = optuna.create_study(directions=["minimize"] * 2, sampler=TPESampler(seed=seed))
    while True:
        asked = study.ask(space.distributions())
        point = space.point(asked.params)
        try:
            found = drive(plain_trial(point, lab), engine)
        except StageFailed:  # its training diverged
            study.tell(asked, state=optuna.trial.TrialState.FAIL)
            yield None, None, None, point.whole("threads")
            continue
        study.tell(asked, (1 - found.accuracy, found.latency_ms))
        yield found.accuracy, found.latency_ms, found.deployable, point.whole("threads")


def this_search(
    config: SearchConfig, lab: Lab, space: Space, engine: InlineEngine, folder: Path
) -> Iterator[Trial]:
    """Searches as the command line does, without the closing round."""
    endless = replace(config.study, name="ours", n_trials=None, timeout_s=10**6)
    with Journal(folder, "ours") as journal:
        names = config.objective.names
        study = Study(journal, endless, space, names, {})
        coordinator = Coordinator(study, config.sampler, config.policy, lab, engine)
        for record in coordinator.trials():
            figures = record.figures
            yield (
                figures.val_accuracy if isinstance(figures, Figures) else None,
                None if figures is None else figures.latency_ms,
                record.deployable,
                record.point.whole("threads"),
            )


def take_turns(searches: Mapping[str, Iterator[Trial]], seconds: float) -> dict[str, list[Entry]]:
    """Gives whichever has had less time its next trial, until all have had ``seconds``.

    A trial that ends after ``seconds`` is not counted.
    """
    clocks = dict.fromkeys(searches, 0.0)
    entries: dict[str, list[Entry]] = {name: [] for name in searches}
    while min(clocks.values()) < seconds:
        name = min(clocks, key=lambda n: clocks[n])
        started = time.monotonic()
        found = next(searches[name])
        clocks[name] += time.monotonic() - started
        if clocks[name] <= seconds:
            entries[name].append(Entry(clocks[name], *found))
        print(f"{name:12} {clocks[name]:6.0f} s  {found[0]}  {found[1]}", flush=True)
    return entries


def best(entries: Sequence[Entry]) -> list[Entry]:
    """Returns the front as a search saw it, each model and thread count once."""
    whole = {(e.deployable, e.threads): e for e in reversed(entries) if e.deployable is not None}
    distinct = list(whole.values())
    losses = [(1 - (e.accuracy or 0.0), e.latency_ms or math.inf) for e in distinct]
    return [e for e, member in zip(distinct, pareto.non_dominated(losses), strict=True) if member]


def confirm(fronts: Mapping[str, Sequence[Entry]], lab: Lab) -> Recipe[dict[str, Any]]:
    """Scores all models on the test split and measures them in one session."""
    threads = lab.baseline.best_threads
    entries = [(name, entry) for name, front in fronts.items() for entry in front]
    steps, accuracies = [], []
    for _, entry in entries:
        assert entry.deployable is not None
        score = yield Evaluate(entry.deployable, lab.bench.data, "test", lab.bench.device)
        accuracies.append(score.accuracy)
        step = measure(lab.bench, entry.deployable, entry.threads, lab.reference, threads)
        steps.append(replace(step, budget_s=BUDGET_S, launches=LAUNCHES))
    session = yield Confirm(tuple(steps), LAUNCHES)
    original = yield Evaluate(lab.reference, lab.bench.data, "test", lab.bench.device)
    reference_ms = lab.baseline.latency_ms(threads)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in fronts}
    measured = zip(entries, accuracies, session.measurements, strict=True)
    for (name, entry), accuracy, figures in measured:
        found[name].append(
            {
                "test_accuracy": accuracy,
                "latency_ms": reference_ms * figures.ratio,
                "speedup": 1 / figures.ratio,
                "speedup_low": 1 / figures.ratio_high,
                "speedup_high": 1 / figures.ratio_low,
                "bits": entry.deployable.bits if entry.deployable else None,
                "threads": entry.threads,
            }
        )
    return {"original": {"test_accuracy": original.accuracy, "latency_ms": reference_ms}, **found}


def volume(points: Sequence[tuple[float, float]], accuracy: float, latency_ms: float) -> float:
    """Moocore's hypervolume of (accuracy, ms) below the original, as a share of its box."""
    if not points:
        return 0.0
    worst = np.array([1 - accuracy + ACCURACY_MARGIN, latency_ms])
    scaled = np.array([(1 - a, ms) for a, ms in points]) / worst
    return float(moocore.hypervolume(scaled, ref=np.ones(2)))


def curve(entries: Sequence[Entry], lab: Lab) -> list[tuple[float, float]]:
    """Returns (seconds, hypervolume as the search saw it) after every trial."""
    accuracy, ms = lab.reference_accuracy, lab.baseline.latency_ms(lab.baseline.best_threads)
    points: list[tuple[float, float]] = []
    found = []
    for entry in entries:
        if entry.accuracy is not None and entry.latency_ms is not None and entry.deployable:
            points.append((entry.accuracy, entry.latency_ms))
        found.append((entry.clock_s, volume(points, accuracy, ms)))
    return found


def draw(curves: Mapping[str, Any], scored: Mapping[str, Any], seconds: float, path: Path) -> None:
    """Draws the hypervolumes over time and the two fronts."""
    figure = Figure(figsize=(10, 4.2), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, points in curves.items():
        times, volumes = zip((0.0, 0.0), *points, (seconds, points[-1][1]), strict=True)
        left.step(times, volumes, where="post", color=COLORS[name], label=name)
        front = sorted((p["latency_ms"], 100 * p["test_accuracy"]) for p in scored[name])
        right.plot(*zip(*front, strict=True), "o--", color=COLORS[name], label=name, lw=1)
    whole = scored["original"]
    right.plot(whole["latency_ms"], 100 * whole["test_accuracy"], "s", color="black", mfc="none",
               label="original")  # fmt: skip
    left.set(xlabel="seconds of search", ylabel="hypervolume (validation)", xlim=(0, seconds))
    right.set(xlabel="latency in ms, one session", ylabel="test accuracy in %")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path)


def compare(config: SearchConfig, folder: Path, seconds: float) -> None:
    """Runs both, scores them, and writes and prints the result."""
    store = Store(folder / "store")
    engine = InlineEngine(store, lambda step: None)
    bench, space = make_bench(config, store, engine)
    lab = drive(prepare(bench), engine)
    engines = {}
    for name in (PLAIN, OURS):
        shutil.copytree(folder / "store", folder / name)
        engines[name] = InlineEngine(Store(folder / name), lambda step: None)
    searches = {
        PLAIN: plain_loop(lab, space, engines[PLAIN], config.study.seed),
        OURS: this_search(config, lab, space, engines[OURS], folder / "studies"),
    }
    entries = take_turns(searches, seconds)
    for name in (PLAIN, OURS):  # one store holds all models for the session
        shutil.copytree(folder / name, folder / "store", dirs_exist_ok=True)
    engine = InlineEngine(Store(folder / "store"), lambda step: None)
    scored = drive(confirm({n: best(e) for n, e in entries.items()}, lab), engine)
    whole, curves = scored["original"], {name: curve(e, lab) for name, e in entries.items()}
    volumes = {
        name: volume([(p["test_accuracy"], p["latency_ms"]) for p in scored[name]], **{
            "accuracy": whole["test_accuracy"], "latency_ms": whole["latency_ms"]})
        for name in entries
    }  # fmt: skip
    result = {
        "seconds": seconds,
        "trials": {name: len(e) for name, e in entries.items()},
        "hypervolume": volumes,
        "curves": curves,
        "scored": scored,
        "entries": {name: [asdict(entry) for entry in e] for name, e in entries.items()},
    }
    (folder / "result.json").write_text(json.dumps(result, indent=1))
    draw(curves, scored, seconds, folder / "picture.png")
    print(
        json.dumps({name: result[name] for name in ("trials", "hypervolume", "scored")}, indent=1)
    )


def main(folder: Path, seconds: float, overrides: Sequence[str]) -> int:
    """Runs the comparison from its command line."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)

    def job(raw: Any, _: str) -> int:
        compare(parse(raw, SearchConfig), folder, seconds)
        return 0

    return cli.main(job, overrides)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]))
