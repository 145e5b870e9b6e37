"""The parts of the page that need no script."""

from __future__ import annotations

from collections.abc import Callable

from search.records import TrialRecord
from search.report.sections import (
    explanation_section,
    importance_section,
    layers_section,
    on_front,
)
from tests.plants import plant_finalist, with_layers

Plant = Callable[..., TrialRecord]


def test_layers_show_channels_of_channels(plant: Plant) -> None:
    shown = layers_section([with_layers(plant(7), conv_1=(12, 32), fc=(10, 10)), plant(8)])
    assert '<th scope="row">conv.1</th><td>32</td>' in shown
    assert '<td data-trial="7" style="--share:37.5%">12' in shown
    assert '<td data-trial="7" style="--share:100%" class="whole">10' in shown
    assert 'data-trial="8"' not in shown  # it failed before it was pruned


def test_unknown_layers_take_no_room(plant: Plant) -> None:
    assert layers_section([plant(1)]) == layers_section([]) == ""


def test_importances_say_from_how_many_trials(plant: Plant) -> None:
    shown = importance_section({"accuracy": {"learning_rate": 0.75, "bits": 0.25}}, 41)
    assert "from 41 complete trials" in shown
    assert "<caption>accuracy</caption>" in shown
    assert '<th scope="row">learning rate</th><td style="--share:75%">75 %' in shown
    assert importance_section({}, 3) == ""


def test_explanations_are_kept_as_they_are() -> None:
    assert "<p>3 &lt; 4</p>" in explanation_section("<p>3 &lt; 4</p>")
    assert explanation_section("") == ""


def test_columns_follow_the_table(plant: Plant) -> None:
    records = [plant(n, latency_ms=1.0 - 0.1 * n) for n in range(4)]
    assert [r.number for r in on_front(records, {1, 3}, ())] == [3, 1]
    finalists = [
        plant_finalist(records[2]),
        plant_finalist(records[1]),
        plant_finalist(records[0], stands=False),
    ]
    assert [r.number for r in on_front(records, {1, 3}, finalists)] == [2, 1]
