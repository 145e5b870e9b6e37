"""What the page's script is given to draw."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from search.records.trial import TrialRecord
from search.report.drawing import parallel_data, progress_data
from tests.plants import plant


def _at(record: TrialRecord, **point: Any) -> TrialRecord:
    return replace(record, point=record.point.replaced(**point))


def test_axes_are_the_dimensions_that_vary_then_latency_and_accuracy() -> None:
    records = [
        _at(plant(1, val_accuracy=0.9), learning_rate=0.001, optimizer="sgd"),
        _at(plant(2, val_accuracy=0.8, latency_ms=0.7), learning_rate=0.1, optimizer="adam"),
        _at(plant(3, val_accuracy=0.85, latency_ms=1.0), learning_rate=0.01, optimizer="sgd"),
    ]
    axes = {axis["label"]: axis for axis in parallel_data(records, [1])["axes"]}
    assert list(axes) == ["optimizer", "learning rate", "latency (ms)", "accuracy (%)"]
    # The more accurate is drawn above: trials 2, 3 and 1.
    assert axes["learning rate"]["values"] == pytest.approx([-1, -2, -3])
    assert axes["learning rate"]["ticktext"][0] == "0.001"
    assert axes["learning rate"]["tickvals"][0] == pytest.approx(-3)
    assert axes["optimizer"]["values"] == [0, 1, 1]
    assert axes["optimizer"]["ticktext"] == ["adam", "sgd"]
    assert axes["accuracy (%)"]["values"] == pytest.approx([80, 85, 90])


@pytest.mark.parametrize(
    ("rates", "ticks"),
    [
        ((0.0008, 0.03), ["0.001", "0.002", "0.005", "0.01", "0.02"]),
        ((0.0012, 0.0045), ["0.0015", "0.002", "0.003", "0.004"]),
        ((0.0031, 0.0039), ["0.0031", "0.0039"]),
    ],
)
def test_a_logarithmic_axis_is_labelled_by_round_numbers(
    rates: tuple[float, float], ticks: list[str]
) -> None:
    records = [_at(plant(n, val_accuracy=0.9), learning_rate=r) for n, r in enumerate(rates)]
    (axis, *_) = parallel_data(records, [0])["axes"]
    assert (axis["label"], axis["ticktext"]) == ("learning rate", ticks)


def test_few_whole_numbers_are_evenly_spaced() -> None:
    records = [plant(n, bits=bits, val_accuracy=0.9) for n, bits in enumerate((4, 32, 8))]
    (bits, *_) = parallel_data(records, [0])["axes"]
    assert (bits["label"], bits["values"], bits["ticktext"]) == (
        "bits",
        [0, 2, 1],
        ["4", "8", "32"],
    )


def test_only_complete_trials_near_the_rest_have_a_line() -> None:
    good = [plant(n, val_accuracy=0.9 + 0.01 * n) for n in range(4)]
    others = [plant(7, "stopped"), plant(8, "infeasible"), plant(9, val_accuracy=0.1)]
    data = parallel_data([*good, *others], [3])
    assert data["accuracies"] == pytest.approx([90, 91, 92, 93])
    assert data["left_out"] == 1


def test_progress_counts_the_trials_own_minutes() -> None:
    records = [
        plant(0, val_accuracy=0.9, latency_ms=1.0),
        replace(plant(1, val_accuracy=0.9, latency_ms=0.5), wall_s=30.0, finished_at=1e9),
    ]
    assert progress_data(records, ("accuracy", "latency")) == {
        "numbers": [0, 1],
        "minutes": [1.0, 1.5],
        "hypervolumes": [0.0, pytest.approx(0.25)],
    }
