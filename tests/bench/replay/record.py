"""Records the table that search policies are replayed on: real trainings, scores and latencies.

``python -m tests.bench.replay.record FOLDER [overrides]`` prunes by every hundredth, trains every
structure that comes of it with every recipe of a low-discrepancy sequence, scores the students in
every number of bits, and measures the structures in every number of bits at every thread count.
Everything goes through the store in ``FOLDER``, so that the same command goes on after an
interruption; at the end ``table.json.gz`` lies there. On two quiet cores it takes about an hour.
"""

from __future__ import annotations

import gzip
import json
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from scipy.stats import qmc

from search.benchmark.plan import PROTOCOL_VERSION
from search.cli import command as cli
from search.config.commands import SearchConfig
from search.config.parsing import parse
from search.engine.driving import ResourceUsage, drive
from search.engine.inline import InlineEngine
from search.engine.store import Store
from search.errors import StageFailed
from search.recipes.deploying import deploy, measure
from search.recipes.preparing import prepare
from search.recipes.setup import make_bench
from search.recipes.training import finetune
from search.records.deployable import Deployable
from search.records.network import Network, Student
from search.records.steps.measuring import Confirm
from search.records.steps.pruning import Prune
from search.records.steps.scoring import Evaluate
from search.records.steps.step import Step
from search.space.domains import Choice, Range
from search.space.space import Space
from tests.points import make_point

log = logging.getLogger(__name__)

RATIOS = tuple(i / 100 for i in range(91))  # those that give another structure are kept
RECIPES = 40  # spread over the space; and the sound one at other rates
RATES = (0.001, 0.002, 0.004, 0.016, 0.03)
LAUNCHES, CONFIRM_S = 8, 3.0
RUNGS = (1 / 9, 2 / 9, 1 / 3, 1 / 2, 2 / 3, 1.0)
RECIPE = ("distill_temperature", "distill_weight", "optimizer", "learning_rate", "schedule")
SOUND = {
    "distill_temperature": 3.0,
    "distill_weight": 0.9,
    "optimizer": "adamw",
    "learning_rate": 0.008,
    "schedule": "one_cycle",
}


class Recorder:
    """Does steps and writes down what they answer and cost.

    Args:
        config: Of the study that is recorded; its space says what a recipe may be.
        folder: Where the store and the table are kept.
    """

    def __init__(self, config: SearchConfig, folder: Path) -> None:
        store = Store(folder / "store")
        self._engine = InlineEngine(store, lambda step: None)
        bench, self._space = make_bench(config, store, self._engine)
        self._lab = drive(prepare(bench), self._engine)

    def record(self) -> dict[str, Any]:
        """Returns the whole table."""
        lab, threads = self._lab, self._lab.bench.thread_counts
        recipes = list(draw_recipes(self._space, RECIPES))
        structures: list[dict[str, Any]] = []
        for ratio in RATIOS:
            pruned, prune_s = self._do(Prune(lab.teacher.network, ratio, lab.bench.device.round_to))
            if (
                structures
                and structures[-1]["channels_removed"] == pruned.figures["channels_removed"]
            ):
                continue
            structures.append(
                {
                    "prune_ratio": ratio,
                    "channels_removed": pruned.figures["channels_removed"],
                    "macs": pruned.network.macs,
                    "parameters": pruned.network.parameters,
                    "prune_s": prune_s,
                    "deployed": [
                        self._measure(pruned.network, bits, threads) for bits in (32, 16, 8, 4)
                    ],
                    "scored": self._score(pruned.network) if ratio == 0.0 else None,
                }
            )
        self._confirm(structures)
        ratios = [structure["prune_ratio"] for structure in structures[1:]]
        trainings = []
        for number, recipe in enumerate(recipes):
            for ratio in ratios:
                trainings.append(
                    {"prune_ratio": ratio, "recipe": number, **self._train(ratio, recipe)}
                )
            log.warning("recipe %d of %d is done", number + 1, len(recipes))
        return {
            "cpu": lab.bench.device.cpu,
            "runtime": lab.bench.device.runtime,
            "protocol": PROTOCOL_VERSION,
            "epochs": lab.bench.train.epochs,
            "rungs": RUNGS,
            "teacher_accuracy": lab.teacher.val_accuracy,
            "reference_accuracy": lab.reference_accuracy,
            "reference_ms": {str(n): lab.baseline.latency_ms(n) for n in threads},
            "recipes": recipes,
            "structures": structures,
            "trainings": trainings,
        }

    def _do(self, step: Step[Any]) -> tuple[Any, float]:
        done = self._engine.run(step)
        return done.result, done.seconds

    def _deploy(self, network: Network, bits: int) -> tuple[Deployable, Mapping[str, float]]:
        usage = ResourceUsage()
        deployable = drive(deploy(network, bits, self._lab.bench), self._engine, usage)
        return deployable, usage.stage_s

    def _measure(self, network: Network, bits: int, threads: Sequence[int]) -> dict[str, Any]:
        lab = self._lab
        deployable, seconds = self._deploy(network, bits)
        timed = {}
        for count in threads:
            step = measure(lab.bench, deployable, count, lab.reference, count)
            found, measure_s = self._do(step)
            timed[str(count)] = {
                "ratio": found.ratio,
                "ratio_low": found.ratio_low,
                "ratio_high": found.ratio_high,
                "p50_ms": found.p50_ms,
                "quality": found.quality,
                "launches": found.launches,
                "cpu_ms": found.cpu_ms,
                "peak_rss_bytes": found.peak_rss_bytes,
                "operators": found.operators,
                "measure_s": measure_s,
            }
        return {
            "bits": bits,
            "size_bytes": deployable.model.size_bytes,
            "threads": timed,
            **{f"{stage}_s": s for stage, s in seconds.items()},
        }

    def _confirm(self, structures: Sequence[dict[str, Any]]) -> None:
        """Replaces the ratios by those of many launches in turns.

        What a policy is worth should not depend on whose measurement was lucky that day.
        """
        lab, cells, comparisons = self._lab, [], []
        for structure in structures:
            ratio = structure["prune_ratio"]
            pruned, _ = self._do(Prune(lab.teacher.network, ratio, lab.bench.device.round_to))
            for deployed in structure["deployed"]:
                deployable, _ = self._deploy(pruned.network, deployed["bits"])
                for count, cell in deployed["threads"].items():
                    step = measure(lab.bench, deployable, int(count), lab.reference, int(count))
                    cells.append(cell)
                    comparisons.append(replace(step, budget_s=CONFIRM_S, launches=LAUNCHES))
        session, _ = self._do(Confirm(tuple(comparisons), LAUNCHES))
        for cell, found, logs in zip(cells, session.measurements, session.log_ratios, strict=True):
            cell |= {
                "ratio": found.ratio,
                "ratio_low": found.ratio_low,
                "ratio_high": found.ratio_high,
                "p50_ms": found.p50_ms,
                "quality": found.quality,
                "log_ratios": [round(value, 5) for value in logs],
            }

    def _train(self, ratio: float, recipe: Mapping[str, Any]) -> dict[str, Any]:
        """Fine-tunes one structure with one recipe, rung by rung, unless the loss diverges."""
        lab = self._lab
        pruned, _ = self._do(Prune(lab.teacher.network, ratio, lab.bench.device.round_to))
        point = make_point(prune_ratio=ratio, bits=32, threads=1, **recipe)
        student = Student(pruned.network, None, 0.0)
        rungs: dict[str, list[float]] = {"rung_accuracy": [], "rung_s": []}
        try:
            for begin, end in pairwise((0.0, *RUNGS)):
                student, seconds = self._do(finetune(student, begin, end, point, lab))
                rungs["rung_accuracy"].append(student.val_accuracy)
                rungs["rung_s"].append(seconds)
        except StageFailed as error:
            return {"failed": str(error), **rungs}
        return {**rungs, "scored": self._score(student.network)}

    def _score(self, network: Network) -> list[dict[str, Any]]:
        found = []
        for bits in (32, 16, 8, 4):
            deployable, seconds = self._deploy(network, bits)
            bench = self._lab.bench
            step = Evaluate(deployable, bench.data, "validation", bench.device)
            score, evaluate_s = self._do(step)
            found.append(
                {
                    "bits": bits,
                    "accuracy": score.accuracy,
                    "size_bytes": deployable.model.size_bytes,
                    "evaluate_s": evaluate_s,
                    **{f"{stage}_s": s for stage, s in seconds.items()},
                }
            )
        return found


def draw_recipes(space: Space, count: int) -> Iterator[dict[str, Any]]:
    """Yields the sound recipe, others that fill the space evenly, and it at other rates."""
    yield dict(SOUND)
    for numbers in qmc.Sobol(len(RECIPE), rng=0).random(count - 1):
        yield {
            name: _at(space.axes[name], share) for name, share in zip(RECIPE, numbers, strict=True)
        }
    for rate in RATES:
        yield {**SOUND, "learning_rate": rate}


def _at(axis: Range | Choice, share: float) -> Any:
    """Returns the value of an axis at a share of its way, 0..1."""
    if isinstance(axis, Choice):
        return axis.values[min(int(share * len(axis.values)), len(axis.values) - 1)]
    if axis.log:
        return axis.typed(axis.low * (axis.high / axis.low) ** share)
    return axis.typed(axis.low + (axis.high - axis.low) * share)


def main(folder: Path, overrides: Sequence[str]) -> int:
    """Records and writes the table."""

    def job(raw: Any, _: str) -> int:
        table = Recorder(parse(raw, SearchConfig), folder).record()
        text = json.dumps(table, separators=(",", ":"))
        (folder / "table.json.gz").write_bytes(gzip.compress(text.encode(), mtime=0))
        return 0

    return cli.main(job, overrides)


if __name__ == "__main__":
    logging.basicConfig(format="%(asctime)s %(message)s")
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
