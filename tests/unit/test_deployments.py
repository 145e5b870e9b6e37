"""What may be hoped of bits and threads, on latencies that are easy to reckon with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from search.front.front import front
from search.policy.deployments import (
    Deployment,
    LatencyModel,
    Structure,
    Students,
    most_promising,
    worth_deploying,
)
from search.records.measurement import Interval
from search.records.trial import TrialRecord
from tests.deployables import make_deployable
from tests.fakes import PROFILE, file, lab
from tests.plants import plant
from tests.points import SPACE

WHOLE, HALF, TENTH = (1000, 100, ""), (500, 50, ""), (100, 10, "")
ALLOWED: list[Deployment] = [(32, 1), (32, 2), (8, 1), (8, 2)]
ORIGINAL = {(32, 1): 1.0, (32, 2): 0.8}


def latency_model(
    measured: Mapping[Structure, dict[Deployment, float]], **speeds: float
) -> LatencyModel:
    ratios = {"8 bits u8s8": 0.5, "4-bit weights": 1.0, **speeds}
    told = {name: Interval(ratio, ratio, ratio) for name, ratio in ratios.items()}
    return LatencyModel(
        replace(PROFILE, speeds=told), lab().baseline, {WHOLE: ORIGINAL, **measured}
    )


@pytest.mark.parametrize(
    ("own", "wanted", "hoped"),
    [
        ({(32, 1): 0.4}, (32, 1), 0.4),  # measured
        ({(32, 1): 0.4}, (32, 2), 0.32),  # threads do to it what they do to the original
        ({(32, 1): 0.4}, (8, 1), 0.2),  # as the probe says
        ({(32, 1): 0.4}, (8, 2), 0.16),  # both
        ({(8, 1): 0.9, (32, 1): 0.4}, (8, 2), 0.72),  # its own eight bits count more than a probe
    ],
)
def test_hopes_of_the_first_network(
    own: dict[Deployment, float], wanted: Deployment, hoped: float
) -> None:
    assert latency_model({HALF: own}).predicted_ms(HALF, wanted) == pytest.approx(hoped)


def test_networks_of_one_size_have_latencies_of_their_own() -> None:
    """As those have that differ in their activations alone."""
    known = latency_model({})
    for structure, latency_ms in (("relu", 0.4), ("swish", 0.9)):
        record = plant(1, bits=32, macs=500, parameters=50, structure=structure)
        figures = replace(record.figures, latency_ms=latency_ms)
        known.add(replace(record, figures=figures))
    threads = record.point.whole("threads")
    assert known.predicted_ms((500, 50, "relu"), (32, threads)) == 0.4
    assert known.predicted_ms((500, 50, "swish"), (32, threads)) == 0.9


def test_hopes_come_from_the_most_similar_network() -> None:
    known = latency_model({HALF: {(32, 1): 0.4, (32, 2): 0.6}, TENTH: {(32, 1): 0.2}})
    assert known.predicted_ms(TENTH, (32, 2)) == pytest.approx(0.3)
    shown = latency_model({HALF: {(32, 2): 0.6, (8, 2): 0.9}, TENTH: {(32, 1): 0.2}})
    # What eight bits do at two threads they are taken to do at one.
    assert shown.predicted_ms(TENTH, (8, 1)) == pytest.approx(0.3)


@pytest.mark.parametrize(("plain", "other"), [((32, 1), (32, 2)), ((32, 1), (8, 1))])
def test_a_much_smaller_network_may_gain_from_fewer_threads_and_from_float(
    plain: Deployment, other: Deployment
) -> None:
    known = latency_model({HALF: {plain: 0.6, other: 0.4}, TENTH: {other: 0.2}})
    assert known.predicted_ms(TENTH, plain) == pytest.approx(0.2 * 0.6 / 0.4 * 0.7)
    known = latency_model({HALF: {plain: 0.6, other: 0.4}, TENTH: {plain: 0.2}})
    assert known.predicted_ms(TENTH, other) == pytest.approx(0.2 * 0.4 / 0.6)


def test_the_fastest_deployment_of_a_similar_network_is_chosen() -> None:
    point = plant(1).point  # 8 bits, 2 threads
    known = latency_model({HALF: {(32, 1): 0.4, (32, 2): 0.5, (8, 1): 0.39}})
    assert most_promising(point, HALF, known, ALLOWED, SPACE) == point.replaced(bits=32, threads=1)
    assert most_promising(point, HALF, known, [(32, 2)], SPACE) == point.replaced(
        bits=32, threads=2
    )
    assert most_promising(point, HALF, known, [], SPACE) == point


def worth(records: list[TrialRecord], known: LatencyModel) -> dict[Deployment, float]:
    names = ("accuracy", "latency")
    model = make_deployable(file("model"), 32, ())
    students = Students([replace(records[0], deployable=model)])
    chosen = students.open(limit=1, busy=[], only_changed=False)
    tried, members = {record.point for record in records}, front(records, names)
    predictions = worth_deploying(students, chosen, tried, members, known, ALLOWED, SPACE, names)
    assert {prediction.student for prediction in predictions} <= {records[0].number}
    return {
        (h.point.whole("bits"), h.point.whole("threads")): h.figures.latency_ms or 0.0
        for h in predictions
    }


def test_worth_a_try_is_what_may_reach_the_front() -> None:
    figures: dict[str, Any] = {"macs": HALF[0], "parameters": HALF[1], "float_accuracy": 0.9}
    trained = plant(1, bits=32, val_accuracy=0.9, latency_ms=0.4, **figures)  # 2 threads
    known = latency_model({HALF: {(32, 2): 0.4}})
    # One thread takes longer; eight bits halve it, less what chance might save.
    found = worth([trained], known)
    assert set(found) == {(8, 1), (8, 2)}
    assert found[8, 2] == pytest.approx(0.2 / 0.95)
    rival = plant(2, bits=32, val_accuracy=0.95, latency_ms=0.22)
    assert set(worth([trained, rival], known)) == {(8, 2)}
    better = plant(2, bits=32, val_accuracy=0.95, latency_ms=0.1)
    assert worth([trained, better], known) == {}
