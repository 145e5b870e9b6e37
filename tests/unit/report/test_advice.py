"""A study in which nothing beats the original says why, and which keys to change."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import yaml

from search.cli import command as cli
from search.records.trial import TrialRecord
from search.report.advice import CAUSES, describe_no_gain
from tests.plants import plant, plant_finalist

ORIGINAL = plant(0, val_accuracy=0.95, latency_ms=1.0)
TRADED = ("accuracy", "latency")


def infeasible(number: int, limit: str, **changes: Any) -> TrialRecord:
    return replace(plant(number, "infeasible", **changes), violations={limit: 0.1})


@pytest.mark.parametrize(
    ("others", "told", "key"),
    [
        (
            [infeasible(1, "min_accuracy_share"), infeasible(2, "min_accuracy_share")],
            "2 trials are little better than guessing",
            "train.epochs",
        ),
        (
            [infeasible(1, "max_accuracy_drop")],
            "1 trial loses more than objective.max_accuracy_drop",
            "objective.max_accuracy_drop",
        ),
        (
            [plant(1, latency_ms=1.1), plant(2, latency_ms=1.2)],
            "2 trials are not measurably faster than the original",
            "space.prune_ratio.high",
        ),
        (
            # 1.1 ms, or down to 0.88.
            [plant(1, latency_ms=1.1, quality="poor")],
            "1 trial was measured too poorly to tell",
            "device.budget_s",
        ),
        (
            [plant(1, "stopped", float_accuracy=0.5), plant(2, "stopped", float_accuracy=None)],
            "1 trial was stopped before the end of its training, 1 trial was not trained",
            "policy.eta=null",
        ),
        ([plant(1, "failed", "finetune: loss is nan")], "1 trial failed", "reasons"),
        ([], "Only the original was tried so far", "study.n_trials"),
    ],
)
def test_the_reason_is_told_with_a_key(others: list[TrialRecord], told: str, key: str) -> None:
    text = describe_no_gain([ORIGINAL, *others], [0], TRADED)
    assert told in text
    assert key in text


def test_what_is_frequent_is_told_first() -> None:
    slow = [plant(number, latency_ms=2.0) for number in (2, 3)]
    text = describe_no_gain([ORIGINAL, infeasible(1, "min_accuracy_share"), *slow], [0], TRADED)
    assert text.index("2 trials are not measurably faster") < text.index(
        "1 trial is little better than guessing"
    )


@pytest.mark.parametrize("limit", ["max_latency_ms", "max_size_bytes", "max_memory_bytes", ""])
def test_more_pruning_is_not_advised_where_nothing_could_be_pruned(limit: str) -> None:
    def said(removed: float) -> str:
        impossible = replace(plant(2, "infeasible", val_accuracy=None), figures=None)
        slow = plant(1, latency_ms=2.0, channels_removed=removed)
        other = infeasible(1, limit, channels_removed=removed) if limit else slow
        return describe_no_gain([ORIGINAL, other, impossible], [0], TRADED)

    assert "prune more" in said(0.25)
    assert "prune more" not in said(0.0)
    assert said(0.0) == re.sub(r"prune more \([^)]*\)(?:;? or)? ", "", said(0.25))


def test_a_gain_needs_no_words() -> None:
    records = [ORIGINAL, plant(1)]
    assert describe_no_gain(records, [0, 1], TRADED) == ""
    assert describe_no_gain([], [], TRADED) == ""
    stands, tied = plant_finalist(records[1]), plant_finalist(records[1], tie=1)
    left = plant_finalist(records[1], stands=False, reason="the original is faster")
    whole = plant_finalist(ORIGINAL)
    assert describe_no_gain(records, [0, 1], TRADED, [whole, stands]) == ""
    assert "in the closing round" in describe_no_gain(records, [0, 1], TRADED, [whole, left])
    nothing_new = describe_no_gain(records, [0, 1], TRADED, [replace(whole, tie=1), tied])
    assert "in the closing round" in nothing_new


ALIKE: dict[str, Any] = {
    "val_accuracy": 0.95,
    "latency_ms": 0.998,
    "latency_ratio": 0.998,
    "latency_ratio_low": 0.98,
    "latency_ratio_high": 1.02,
    "speedup": 1.002,
    "speedup_low": 0.98,
    "speedup_high": 1.02,
    "size_bytes": 1,
}


def test_a_point_that_noise_put_on_the_front_is_no_gain() -> None:
    # The original in 16 bits: as accurate, and faster only by chance.
    records = [ORIGINAL, plant(1, bits=16, **ALIKE)]
    text = describe_no_gain(records, [0, 1], TRADED)
    assert "1 trial is not measurably faster than the original" in text
    assert "space.prune_ratio.high" in text
    surely = plant(1, bits=16, **(ALIKE | {"speedup_low": 1.001}))
    assert describe_no_gain([ORIGINAL, surely], [0, 1], TRADED) == ""
    better = plant(1, bits=16, **(ALIKE | {"val_accuracy": 0.951}))
    assert describe_no_gain([ORIGINAL, better], [0, 1], TRADED) == ""
    assert describe_no_gain(records, [0, 1], [*TRADED, "size"]) == ""


def test_what_alone_keeps_the_limits_is_a_gain() -> None:
    whole = infeasible(0, "max_latency_ms", latency_ms=1.0, val_accuracy=0.95)
    assert describe_no_gain([whole, plant(1, bits=16, **ALIKE)], [1], TRADED) == ""


def test_an_original_that_guesses_is_told_before_all_else() -> None:
    guessing = replace(infeasible(0, "min_accuracy_share"), reason="is little better than guessing")
    text = describe_no_gain([guessing, infeasible(1, "min_accuracy_share")], [], TRADED)
    assert text.startswith("The original itself is no better than guessing")
    slow = infeasible(0, "max_latency_ms")
    text = describe_no_gain([slow, infeasible(1, "max_latency_ms")], [], TRADED)
    assert text.startswith("Nothing keeps the limits of the study so far, nor does the original")


def test_every_key_that_is_advised_exists() -> None:
    known = {
        f"{path.parent.name}.{key}"
        for path in cli.CONF.glob("*/*.yaml")
        for key in leaves(yaml.safe_load(path.read_text()) or {})
    }
    advised = {
        key
        for cause in CAUSES.values()
        for key in re.findall(
            r"\b(?:train|space|device|policy|objective|finalists)\.[a-z_.]*[a-z_]", " ".join(cause)
        )
    }
    assert {"train.epochs", "device.budget_s", "policy.eta"} <= advised
    assert advised <= known


def leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in tree.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
