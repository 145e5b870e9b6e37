"""Fronts of records, and how they grew."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from search.front.front import (
    GrowingFront,
    at_worst,
    front,
    hypervolume,
    hypervolumes,
    losses,
    original,
)
from search.records.deployable import Deployable
from search.records.files import File
from search.records.trial import Outcome, ScoredTrial, TrialRecord
from tests.deployables import make_deployable
from tests.plants import plant

OBJECTIVES = ("accuracy", "latency")


def _search(seed: int, trials: int = 40) -> list[TrialRecord]:
    draw = random.Random(seed)
    records = []
    for number in range(trials):
        outcome: Outcome = draw.choice(("complete", "complete", "stopped", "infeasible"))
        record: TrialRecord = plant(
            number,
            "complete" if number == 0 else outcome,
            val_accuracy=draw.uniform(0.85, 0.95),
            latency_ms=1.0 if number == 0 else draw.uniform(0.1, 1.2),
        )
        # The plant's intervals are wide.
        if draw.random() < 0.3 and isinstance(record, ScoredTrial):
            record = replace(record, figures=replace(record.figures, quality="poor"))
        if draw.random() < 0.3 and isinstance(record, ScoredTrial):  # some deploy a file again
            model = File(f"{draw.randrange(4):064x}", ".onnx", 1)
            record = replace(record, deployable=make_deployable(model, 8, ()))
        records.append(record)
    return records


@pytest.mark.parametrize("seed", range(8))
def test_growth_is_the_hypervolume_after_every_trial(seed: int) -> None:
    records = _search(seed)
    # A file is as fast whichever trial deploys it.
    known: dict[Deployable, ScoredTrial] = {}
    for place, record in enumerate(records):
        if isinstance(record, ScoredTrial):
            same = known.setdefault(record.deployable, record)
            records[place] = replace(record, figures=same.figures)
    if seed % 2:  # workers side by side end in another order
        random.Random(seed).shuffle(records)
    wanted = [hypervolume(records[: n + 1], OBJECTIVES) for n in range(len(records))]
    assert hypervolumes(records, OBJECTIVES) == pytest.approx(wanted)
    growing = GrowingFront(OBJECTIVES)
    for record in records:
        growing.add(record)
    assert growing.members == front(records, OBJECTIVES)
    assert growing.original == original(records)
    assert growing.trials == len(records)
    assert growing.hypervolume == pytest.approx(wanted[-1])


def test_nothing_has_grown_before_the_original_is_known() -> None:
    assert hypervolumes([], OBJECTIVES) == []
    assert hypervolumes([plant(1), plant(2)], OBJECTIVES) == [0.0, 0.0]


def test_a_poor_measurement_pushes_nobody_off_by_the_centre_of_its_interval() -> None:
    # 0.5 ms, or up to 0.7.
    first, lucky = plant(0, latency_ms=1.0, val_accuracy=0.95), plant(1, val_accuracy=0.92)
    poor = replace(lucky, figures=replace(lucky.figures, quality="poor"))
    between, beyond = (
        plant(2, latency_ms=0.6, val_accuracy=0.91),
        plant(3, latency_ms=0.9, val_accuracy=0.91),
    )

    def numbers(*records: TrialRecord) -> list[int]:
        found = front(records, OBJECTIVES)
        assert found == front(records[::-1], OBJECTIVES)
        return [record.number for record in found]

    assert numbers(first, lucky, between, beyond) == [1, 0]
    assert numbers(first, poor, between) == [1, 2, 0]
    assert numbers(first, poor, beyond) == [1, 0]  # slower than all that the poor one may be
    better = plant(4, latency_ms=0.49, val_accuracy=0.92)
    assert numbers(first, poor, better) == [4, 0]  # it is judged by its centre itself


def test_a_poor_measurement_fills_only_what_it_surely_reaches() -> None:
    first = plant(0, latency_ms=1.0, val_accuracy=0.95)
    lucky = plant(1, latency_ms=0.5, val_accuracy=0.95)
    poor = replace(lucky, figures=replace(lucky.figures, quality="poor"))
    sure = plant(2, latency_ms=0.7, val_accuracy=0.95)
    found = [hypervolume([first, one], OBJECTIVES) for one in (lucky, poor, sure)]
    assert found[0] > found[1] == pytest.approx(found[2])


def test_an_interval_of_no_width_is_its_centre() -> None:
    exact = plant(
        1, latency_ms=0.3, latency_ratio=0.1, latency_ratio_low=0.1, latency_ratio_high=0.1
    )
    exact = replace(exact, figures=replace(exact.figures, quality="poor"))
    assert losses(at_worst(exact.figures), 0.9, OBJECTIVES) == [pytest.approx(0.1), 0.3]
