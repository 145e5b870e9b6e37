"""The original beside itself: its ratio is exactly 1, and its quality is that ratio's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from search.benchmark.summary import quality_of
from search.engine.driving import drive
from search.recipes.deploying import deploy
from search.recipes.preparing import prepare
from search.recipes.referee import Unjudged
from search.records.baseline import Baseline
from search.records.bench import Lab
from search.records.steps.measuring import Measure
from search.records.steps.pruning import Prune
from search.records.steps.step import Step
from search.records.steps.training import ChoosePlacement, Teach
from tests.fakes import FakeEngine, lab, measurement
from tests.unit.test_trial import POINT, finished, scored

POOR = replace(measurement(1.2, spread=0.3), quality="poor")


class Noisy(FakeEngine):
    """Can prepare, on a device where nothing is measured well."""

    def _answer(self, step: Step[Any]) -> Any:
        match step:
            case ChoosePlacement():
                return lab().placement
            case Teach():
                return lab().teacher
            case Measure():
                return POOR
        return super()._answer(step)


def untouched(engine: FakeEngine) -> Lab:
    """A lab whose original was measured poorly, and is what an untouched network becomes."""
    bench = lab().bench
    pruned = engine.run(Prune(lab().teacher.network, 0.0, bench.device.round_to)).result
    reference = drive(deploy(pruned.network, 32, bench), engine)
    return replace(lab(), reference=reference, baseline=Baseline(1.0, {1: POOR, 2: POOR}))


def test_the_quality_is_that_of_the_interval() -> None:
    lab_of_it = drive(prepare(replace(lab().bench, prunes=False)), Noisy())
    own, other = (lab_of_it.baseline.against_base[threads] for threads in (1, 2))
    assert own == replace(POOR, ratio=1.0, ratio_low=1.0, ratio_high=1.0, quality="resolved")
    assert own.quality == quality_of(0.0, 0.0)
    assert other == POOR


def test_the_original_does_not_count_as_measured_poorly() -> None:
    engine = FakeEngine()
    where = untouched(engine)
    for threads in (1, 2):
        point = POINT.replaced(prune_ratio=0.0, bits=32, threads=threads)
        figures = scored(finished(point, where, Unjudged(), engine))
        assert (figures.latency_ratio, figures.quality) == (1.0, "resolved")
