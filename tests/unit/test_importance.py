"""Which dimensions decide, on records whose answer is known."""

from __future__ import annotations

import random
from dataclasses import replace

import optuna
import pytest

from search.front.importance import FEWEST_TRIALS, importances
from search.records.trial import TrialRecord
from tests.plants import plant

OBJECTIVES = ("accuracy", "latency")


def _search(trials: int) -> list[TrialRecord]:
    """Learning rate decides accuracy, pruning latency; optimizer and bits decide nothing."""
    draw = random.Random(2)
    records: list[TrialRecord] = []
    for number in range(trials):
        ratio, exponent = draw.uniform(0.0, 0.9), draw.uniform(-4, -1)
        record = plant(number, latency_ms=1.0 - ratio, val_accuracy=0.9 - abs(exponent + 2) / 20)
        point = record.point.replaced(
            prune_ratio=ratio,
            learning_rate=10**exponent,
            optimizer=draw.choice(("sgd", "adam")),
            bits=draw.choice((4, 8, 32)),
        )
        records.append(replace(record, point=point))
    return records


def test_what_decides_comes_first() -> None:
    found = importances(_search(120), OBJECTIVES)
    assert next(iter(found["accuracy"])) == "learning_rate"
    assert next(iter(found["latency"])) == "prune_ratio"
    for shares in found.values():
        assert set(shares) == {"prune_ratio", "bits", "optimizer", "learning_rate"}
        assert sum(shares.values()) == pytest.approx(1.0)
        assert max(shares.values()) > 0.6


def test_few_complete_trials_tell_nothing() -> None:
    records = _search(FEWEST_TRIALS)
    assert set(importances(records, OBJECTIVES)) == set(OBJECTIVES)
    records[0] = plant(0, "stopped")
    assert importances(records, OBJECTIVES) == {}
    assert importances([], OBJECTIVES) == {}


def test_an_objective_in_which_all_are_alike_is_left_out() -> None:
    found = importances(_search(FEWEST_TRIALS), ("accuracy", "size"))
    assert set(found) == {"accuracy"}


def test_trials_of_one_recipe_tell_nothing() -> None:
    assert importances([plant(n) for n in range(30)], OBJECTIVES) == {}


def test_optuna_does_not_tell_of_its_study(monkeypatch: pytest.MonkeyPatch) -> None:
    optuna.logging.set_verbosity(optuna.logging.INFO)
    told: list[str] = []
    monkeypatch.setattr(
        optuna.logging.get_logger("optuna.storages._in_memory"),
        "callHandlers",
        lambda r: told.append(r.msg),
    )
    assert importances(_search(40), ("accuracy", "latency"))
    assert told == []
