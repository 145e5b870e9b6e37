"""Spaces drawn at random: what Optuna samples is a point inside, and nothing is lost."""

from __future__ import annotations

import json
from typing import Any

import optuna
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from search.records.point import Point
from search.space.dimension import dimensions
from search.space.domains import Range
from search.space.parsing import parse_space
from search.space.space import Space
from search.space.starting import starting_points
from tests.points import make_point

CORES = 4


def numbers(legal: Range) -> st.SearchStrategy[float]:
    if legal.whole:
        return st.integers(int(legal.low), int(legal.high))
    return st.floats(legal.low, legal.high)


def ranges(legal: Range) -> st.SearchStrategy[dict[str, float]]:
    ends = st.tuples(numbers(legal), numbers(legal)).map(sorted)
    return ends.map(lambda pair: {"low": pair[0], "high": pair[1]})


def declarations() -> st.SearchStrategy[dict[str, Any]]:
    forms: dict[str, st.SearchStrategy[Any]] = {}
    for name, legal in ((one.name, one.domain(CORES)) for one in dimensions()):
        if isinstance(legal, Range):
            one: st.SearchStrategy[Any] = numbers(legal)
            forms[name] = ranges(legal) | one | st.lists(one, min_size=1, max_size=4, unique=True)
        else:
            one = st.sampled_from(legal.values)
            forms[name] = one | st.lists(one, min_size=1, unique=True)
    return st.fixed_dictionaries(forms)


SPACES = declarations().map(lambda raw: parse_space(raw, CORES))
# Any point that can be written down, inside of a space or not.
POINTS = st.builds(
    make_point,
    prune_ratio=st.floats(-1, 2),
    bits=st.integers(1, 64),
    distill_temperature=st.floats(0, 100),
    distill_weight=st.floats(-1, 2),
    optimizer=st.sampled_from(["sgd", "adam", "adamw", "rmsprop", "lion"]),
    learning_rate=st.floats(0, 10),
    schedule=st.sampled_from(["constant", "step", "cosine", "one_cycle", "plateau", "none"]),
    threads=st.integers(-1, 99),
)


def values(distribution: BaseDistribution) -> st.SearchStrategy[Any]:
    if isinstance(distribution, CategoricalDistribution):
        return st.sampled_from(distribution.choices)
    if isinstance(distribution, IntDistribution):
        return st.integers(distribution.low, distribution.high)
    assert isinstance(distribution, FloatDistribution)
    return st.floats(distribution.low, distribution.high)


@given(SPACES, st.data())
def test_what_is_sampled_is_inside_and_comes_back(space: Space, data: st.DataObject) -> None:
    distributions = space.distributions()
    params = {name: data.draw(values(one), label=name) for name, one in distributions.items()}
    point = space.point(params)
    assert space.contains(point)
    assert space.params(point) == params
    assert space.nearest(point) == point


@given(SPACES, POINTS)
def test_nearest_lands_inside(space: Space, point: Point) -> None:
    moved = space.nearest(point)
    assert space.contains(moved)
    assert space.nearest(moved) == moved
    assert space.point(space.params(moved)) == moved
    for one in dimensions():
        assert type(moved[one.name]) is type(one.sound)


@given(SPACES)
def test_description_survives_json(space: Space) -> None:
    assert parse_space(json.loads(json.dumps(space.describe())), CORES) == space


@given(SPACES, st.booleans())
def test_starting_points_differ_and_begin_uncompressed(space: Space, alone: bool) -> None:
    points = starting_points(space, 1, alone, (0.5, 0.3, 0.8), lambda ratio: 0.01)
    assert (points[0].number("prune_ratio"), points[0].whole("bits")) == (0.0, 32)
    assert len(set(points)) == len(points) <= 10
    assert all(space.contains(point) for point in points[1:])


@settings(max_examples=20, deadline=None)
@given(SPACES, st.integers(0, 2**31))
def test_optuna_stays_inside(space: Space, seed: int) -> None:
    sampler = optuna.samplers.RandomSampler(seed=seed)
    study = optuna.create_study(directions=["minimize", "minimize"], sampler=sampler)
    for wanted in starting_points(space, 1, True, (0.5, 0.3, 0.8), lambda ratio: 0.01):
        if space.contains(wanted):
            study.enqueue_trial(space.params(wanted))
            assert space.point(study.ask(space.distributions()).params) == wanted
    for _ in range(5):
        assert space.contains(space.point(study.ask(space.distributions()).params))
