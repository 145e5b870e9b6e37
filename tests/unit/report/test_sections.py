"""The parts of the page that need no script."""

from __future__ import annotations

import re

from search.records.formats import DASH
from search.report.sections import (
    explanation_section,
    importance_section,
    layers_section,
    on_front,
)
from tests.plants import plant, plant_finalist, with_layers


def test_layers_show_channels_of_channels() -> None:
    shown = layers_section([with_layers(plant(7), conv_1=(12, 32), fc=(10, 10)), plant(8)])
    assert '<th scope="row">conv.1</th><td>32</td>' in shown
    assert '<td data-trial="7" style="--share:37.5%">12' in shown
    assert '<td data-trial="7" style="--share:100%" class="whole">10' in shown
    assert 'data-trial="8"' not in shown  # it failed before it was pruned


def test_a_layer_that_was_replaced_has_a_dash() -> None:
    whole = with_layers(plant(0), conv=(32, 32), hidden=(64, 64), fc=(10, 10))
    shown = layers_section([with_layers(plant(7), conv=(16, 32), fc=(10, 10)), whole])
    names = re.findall(r'<th scope="row">(\w+)</th>', shown)
    assert names == ["conv", "hidden", "fc"]
    assert f'<td data-trial="7">{DASH}</td>' in shown


def test_unknown_layers_take_no_room() -> None:
    assert layers_section([plant(1)]) == layers_section([]) == ""


def test_importances_say_from_how_many_trials() -> None:
    shown = importance_section({"accuracy": {"learning_rate": 0.75, "bits": 0.25}}, 41)
    assert "from 41 complete trials" in shown
    assert "<caption>accuracy</caption>" in shown
    assert '<th scope="row">learning rate</th><td style="--share:75%">75 %' in shown
    assert importance_section({}, 3) == ""


def test_explanations_are_kept_as_they_are() -> None:
    assert "<p>3 &lt; 4</p>" in explanation_section("<p>3 &lt; 4</p>")
    assert explanation_section("") == ""


def test_columns_follow_the_table() -> None:
    records = [plant(n, latency_ms=1.0 - 0.1 * n) for n in range(4)]
    assert [r.number for r in on_front(records, {1, 3}, ())] == [3, 1]
    finalists = [
        plant_finalist(records[2]),
        plant_finalist(records[1]),
        plant_finalist(records[0], stands=False),
    ]
    assert [r.number for r in on_front(records, {1, 3}, finalists)] == [2, 1]
