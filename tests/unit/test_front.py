"""Fronts of records, and how they grew."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from search.front import GrowingFront, front, hypervolume, hypervolumes, original
from search.records import Deployable, File, Outcome, TrialRecord
from tests.plants import plant

OBJECTIVES = ("accuracy", "latency")


def _search(seed: int, trials: int = 40) -> list[TrialRecord]:
    draw = random.Random(seed)
    records = []
    for number in range(trials):
        outcome: Outcome = draw.choice(("complete", "complete", "stopped", "infeasible"))
        record = plant(
            number,
            "complete" if number == 0 else outcome,
            val_accuracy=draw.uniform(0.85, 0.95),
            latency_ms=1.0 if number == 0 else draw.uniform(0.1, 1.2),
        )
        if draw.random() < 0.3:  # some deploy the same file again
            model = File(f"{draw.randrange(4):064x}", ".onnx", 1)
            record = replace(record, deployable=Deployable(model, 8, ()))
        records.append(record)
    return records


@pytest.mark.parametrize("seed", range(8))
def test_growth_is_the_hypervolume_after_every_trial(seed: int) -> None:
    records = _search(seed)
    # A file is as fast whichever trial deploys it.
    known: dict[Deployable | None, TrialRecord] = {}
    for place, record in enumerate(records):
        if record.deployable is not None:
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
