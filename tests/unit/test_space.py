"""Every form of a declared space, every refusal, and the way to Optuna and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest
from omegaconf import OmegaConf
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from search.errors import ConfigError
from search.records.point import Point
from search.space.dimension import dimensions
from search.space.domains import Choice, Range
from search.space.parsing import parse_space
from search.space.space import Space
from search.space.starting import starting_points
from tests.points import make_point

DECLARED = Path(__file__).parents[2] / "conf" / "space" / "default.yaml"
POINT = make_point(0.25, 8, 2.0, 0.5, "adam", 0.001, "cosine", 2)


def declared(**overrides: Any) -> dict[str, Any]:
    raw = OmegaConf.to_container(OmegaConf.load(DECLARED))
    assert isinstance(raw, dict)
    return {**{str(name): value for name, value in raw.items()}, **overrides}


def space(cores: int = 2, **overrides: Any) -> Space:
    return parse_space(declared(**overrides), cores)


def fault(cores: int = 2, **overrides: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        space(cores, **overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_every_dimension_has_an_axis() -> None:
    assert set(space().axes) == {one.name for one in dimensions()}


def test_dimensions_are_counted_in_sentences() -> None:
    threads = next(one for one in dimensions() if one.name == "threads")
    assert [threads.describe(count) for count in (1, 2)] == ["1 thread", "2 threads"]


def test_declared_space() -> None:
    assert space().distributions() == {
        "prune_ratio": FloatDistribution(0.0, 0.9),
        "bits": CategoricalDistribution((32, 16, 8, 4)),
        "distill_temperature": FloatDistribution(1.0, 10.0, log=True),
        "distill_weight": FloatDistribution(0.0, 1.0),
        "optimizer": CategoricalDistribution(("sgd", "adam", "adamw", "rmsprop")),
        "learning_rate": FloatDistribution(1e-6, 1.0, log=True),
        "schedule": CategoricalDistribution(("constant", "step", "cosine", "one_cycle", "plateau")),
        "threads": IntDistribution(1, 2),
    }


@pytest.mark.parametrize(
    ("name", "given", "axis"),
    [
        ("prune_ratio", {"low": 0, "high": 0.5}, Range(0.0, 0.5)),
        ("prune_ratio", [0.5, 0], Choice((0.0, 0.5))),
        ("prune_ratio", (0.5, 0), Choice((0.0, 0.5))),
        ("prune_ratio", 0, Choice((0.0,))),
        ("prune_ratio", {"low": 0.3, "high": 0.3}, Choice((0.3,))),
        ("learning_rate", 0.001, Choice((0.001,))),
        ("learning_rate", {"low": 1e-6, "high": 1}, Range(1e-6, 1.0, log=True)),
        ("learning_rate", [0.1, 0.01], Choice((0.01, 0.1))),
        ("distill_weight", 1, Choice((1.0,))),
        ("bits", [8, 32], Choice((32, 8))),
        ("bits", 8, Choice((8,))),
        ("bits", [4], Choice((4,))),
        ("optimizer", "adamw", Choice(("adamw",))),
        ("optimizer", ["adamw", "sgd"], Choice(("sgd", "adamw"))),
        ("schedule", ["plateau"], Choice(("plateau",))),
        ("threads", 2, Choice((2,))),
        ("threads", [1, 4], Choice((1, 4))),
        ("threads", "cores", Choice((4,))),
        ("threads", [1, "cores"], Choice((1, 4))),
        ("threads", [4, "cores"], Choice((4,))),
        ("threads", {"low": 2, "high": "cores"}, Range(2, 4, whole=True, counts_cores=True)),
        ("threads", {"low": "cores", "high": "cores"}, Choice((4,))),
    ],
)
def test_every_form_of_a_dimension(name: str, given: object, axis: object) -> None:
    found = space(4, **{name: given})
    assert found.axes[name] == axis
    assert (name in found.distributions()) == (not isinstance(axis, Choice) or len(axis.values) > 1)


def test_values_have_the_types_of_their_fields() -> None:
    # 1 and 1.0 are equal here, but not in the store's keys.
    found = space(prune_ratio=[0, 0.5], distill_weight=1, learning_rate={"low": 0.01, "high": 1})
    point = found.point(
        {"prune_ratio": 0, "bits": 8.0, "distill_temperature": 2, "optimizer": "sgd"}
        | {"learning_rate": 1, "schedule": "step", "threads": 1.0}
    )
    values = [
        point.number("prune_ratio"),
        point.whole("bits"),
        point.number("distill_temperature"),
        point.number("distill_weight"),
    ]
    assert (
        repr([*values, point.number("learning_rate"), point.whole("threads")])
        == "[0.0, 8, 2.0, 1.0, 1.0, 1]"
    )
    moved = found.nearest(POINT.replaced(prune_ratio=0, learning_rate=7, threads=9))
    assert repr([moved["prune_ratio"], moved["learning_rate"], moved["threads"]]) == "[0.0, 1.0, 2]"


def test_on_one_core_threads_are_fixed() -> None:
    assert "threads" not in space(1).distributions()
    assert space(1, threads=[1, "cores"]).axes["threads"] == Choice((1,))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"prune_ration": 0.5},
            "space.prune_ration: unknown dimension; did you mean prune_ratio? Allowed are "
            "prune_ratio, bits, distill_temperature, distill_weight, optimizer, learning_rate, "
            "schedule, threads",
        ),
        ({"xyz": 1}, "space.xyz: unknown dimension; remove it. Allowed are prune_ratio, bits, "),
        ({"bits": None}, "space.bits: missing; give 32, 16, 8, 4, or a list of some"),
        (
            {"prune_ratio": {"low": 0.6, "high": 0.5}},
            "space.prune_ratio={low: 0.6, high: 0.5}: low is above high; lower it or raise high",
        ),
        ({"prune_ratio": 0.95}, "space.prune_ratio=0.95: out of range; give 0 to 0.9"),
        ({"prune_ratio": -0.1}, "space.prune_ratio=-0.1: out of range; give 0 to 0.9"),
        ({"prune_ratio": [0, 2]}, "space.prune_ratio[1]=2: out of range; give 0 to 0.9"),
        (
            {"learning_rate": {"low": 0, "high": 0.1}},
            "space.learning_rate.low=0: out of range; give 1e-06 to 1",
        ),
        ({"bits": 7}, "space.bits=7: not one of the choices; give 32, 16, 8, 4, or a list of some"),
        ({"bits": [8, 7]}, "space.bits[1]=7: not one of the choices; give 32, 16, 8, 4, or "),
        ({"bits": 8.0}, "space.bits=8.0: not one of the choices; give 32"),
        ({"bits": "8"}, "space.bits='8': not one of the choices; give 32"),
        ({"bits": [[8]]}, "space.bits[0]=[8]: not one of the choices; give 32"),
        ({"optimizer": "adagrad"}, "space.optimizer='adagrad': not one of the choices; give sgd, "),
        ({"bits": []}, "space.bits=[]: empty; give 32, 16, 8, 4, or a list of some"),
        ({"threads": []}, "space.threads=[]: empty; give 1 to 2"),
        ({"bits": [8, 8]}, "space.bits=[8, 8]: has a value twice; remove one"),
        ({"prune_ratio": [0, 0.0]}, "space.prune_ratio=[0, 0.0]: has a value twice; remove one"),
        ({"threads": True}, "space.threads=True: not a number; give 1 to 2"),
        ({"distill_weight": [False]}, "space.distill_weight[0]=False: not a number; give 0 to 1"),
        ({"prune_ratio": "abc"}, "space.prune_ratio='abc': not a number; give 0 to 0.9"),
        ({"prune_ratio": "cores"}, "space.prune_ratio='cores': not a number; give 0 to 0.9"),
        ({"prune_ratio": [None]}, "space.prune_ratio[0]=None: not a number; give 0 to 0.9"),
        ({"threads": 1.5}, "space.threads=1.5: not a whole number; give 1 to 2"),
        ({"threads": 8}, "space.threads=8: this device has 2 usable cores; give 1 to 2"),
        (
            {"threads": {"low": 3, "high": "cores"}},
            "space.threads.low=3: this device has 2 usable cores; give 1 to 2",
        ),
        ({"threads": 0}, "space.threads=0: out of range; give 1 to 2"),
        ({"distill_weight": float("nan")}, "space.distill_weight=nan: not finite; give 0 to 1"),
        (
            {"distill_temperature": {"low": 1, "high": float("inf")}},
            "space.distill_temperature.high=inf: not finite; give 1 to 10",
        ),
        ({"prune_ratio": 10**400}, "out of range; give 0 to 0.9"),
        (
            {"bits": {"low": 4, "high": 8}},
            "space.bits={low: 4, high: 8}: takes no range; give 32, 16, 8, 4, or a list of",
        ),
        (
            {"prune_ratio": {"low": 0, "high": 0.5, "step": 0.1}},
            "space.prune_ratio.step: unknown key; a range has low and high",
        ),
        ({"prune_ratio": {"low": 0}}, "space.prune_ratio.high: missing; give 0 to 0.9"),
        ({"prune_ratio": {"low": None, "high": 0.5}}, "space.prune_ratio.low: missing; give 0 to"),
        ({"prune_ratio": {}}, "space.prune_ratio.low: missing; give 0 to 0.9; space.prune_rat"),
        ({"prune_ratio": {"low": [0], "high": 0.5}}, "space.prune_ratio.low=[0]: not a number; "),
    ],
)
def test_refusals(overrides: dict[str, Any], message: str) -> None:
    assert message in fault(**overrides)


def test_a_device_with_one_core_is_named_so() -> None:
    assert fault(1, threads=2) == "space.threads=2: this device has 1 usable core; give 1"


def test_a_dimension_may_not_be_left_out() -> None:
    raw = declared()
    del raw["schedule"]
    with pytest.raises(ConfigError, match=r"^space\.schedule: missing; give constant, step, "):
        parse_space(raw, 2)


def test_all_faults_are_told_together() -> None:
    message = fault(
        bit=8,
        bits=[7, 32, 5],
        prune_ratio={"low": -1, "high": 2, "mid": 0},
        threads=3,
        optimizer=[],
    )
    assert [part.split(":")[0] for part in message.split("; space.")] == [
        "space.bit",
        "prune_ratio.mid",
        "prune_ratio.low=-1",
        "prune_ratio.high=2",
        "bits[0]=7",
        "bits[2]=5",
        "optimizer=[]",
        "threads=3",
    ]


def test_fixed_dimensions_come_back_with_the_point() -> None:
    found = space(bits=8, threads=2, schedule="cosine", distill_weight={"low": 0.5, "high": 0.5})
    params = {
        "prune_ratio": 0.25,
        "distill_temperature": 2.0,
        "optimizer": "adam",
        "learning_rate": 0.001,
    }
    assert list(found.distributions()) == list(params)
    assert found.point(params) == POINT
    assert found.params(POINT) == params


def test_a_point_needs_all_its_parameters() -> None:
    with pytest.raises(KeyError, match="prune_ratio"):
        space().point({"bits": 8})


@pytest.mark.parametrize(
    "outside",
    [
        {"prune_ratio": 0.6},
        {"prune_ratio": -0.1},
        {"bits": 16},
        {"threads": 1},
        {"optimizer": "lion"},
    ],
)
def test_contains(outside: dict[str, Any]) -> None:
    found = space(prune_ratio={"low": 0, "high": 0.5}, bits=[8, 32], threads=2)
    assert found.contains(POINT)
    other = POINT.replaced(**outside)
    assert not found.contains(other)
    with pytest.raises(ValueError, match="outside of the space"):
        found.params(other)


@pytest.mark.parametrize(
    ("given", "wanted", "moved"),
    [
        ({"prune_ratio": {"low": 0.3, "high": 0.5}}, {"prune_ratio": 0.0}, {"prune_ratio": 0.3}),
        ({"prune_ratio": {"low": 0.3, "high": 0.5}}, {"prune_ratio": 0.4}, {"prune_ratio": 0.4}),
        ({"prune_ratio": [0.2, 0.6]}, {"prune_ratio": 0.5}, {"prune_ratio": 0.6}),
        ({"bits": [4, 8, 16]}, {"bits": 32}, {"bits": 16}),
        ({"optimizer": ["rmsprop", "adam"]}, {"optimizer": "adamw"}, {"optimizer": "adam"}),
        ({"optimizer": ["adam", "adamw"]}, {"optimizer": "adamw"}, {"optimizer": "adamw"}),
        ({"learning_rate": 0.5}, {"learning_rate": 0.1}, {"learning_rate": 0.5}),
        ({}, {"threads": 9}, {"threads": 2}),
    ],
)
def test_nearest(given: dict[str, Any], wanted: dict[str, Any], moved: dict[str, Any]) -> None:
    assert space(**given).nearest(POINT.replaced(**wanted)) == POINT.replaced(**moved)


def test_description_is_canonical() -> None:
    one = space(bits=[8, 32], prune_ratio=[0.5, 0], threads="cores", distill_weight=1)
    assert one.describe() == {
        "prune_ratio": [0.0, 0.5],
        "bits": [32, 8],
        "distill_temperature": {"low": 1.0, "high": 10.0},
        "distill_weight": 1.0,
        "optimizer": ["sgd", "adam", "adamw", "rmsprop"],
        "learning_rate": "auto",
        "schedule": ["constant", "step", "cosine", "one_cycle", "plateau"],
        "threads": 2,
    }
    assert parse_space(one.describe(), 2) == one
    assert space(bits=[32, 8], prune_ratio=[0, 0.5], threads=[2], distill_weight=[1.0]) == one


CUTS = (0.5, 0.35, 0.75, 0.9)


def rate(ratio: float) -> float:
    return float(f"{0.004 * 10**ratio:.2g}")


def start(found: Space, threads: int, names_deployments: bool) -> list[Point]:
    return starting_points(found, threads, names_deployments, CUTS, rate)


def test_starting_points_of_the_declared_space() -> None:
    points = start(space(), 1, names_deployments=True)
    assert [(point.number("prune_ratio"), point.whole("bits")) for point in points] == [
        (0.0, 32),
        (0.0, 8),
        (0.5, 32),
        (0.5, 8),
        (0.35, 32),
        (0.35, 8),
        (0.75, 32),
        (0.9, 32),
    ]
    recipe = make_point(0.0, 32, 3.0, 0.9, "adamw", 0.004, "one_cycle", 1)
    assert all(
        point.number("learning_rate") == rate(point.number("prune_ratio")) for point in points
    )
    assert {p.replaced(prune_ratio=0.0, bits=32, learning_rate=0.004) for p in points} == {recipe}
    assert all(space().contains(point) for point in points)


def test_shares_of_the_channels_start_with_the_fewest_threads() -> None:
    points = start(space(cores=4, threads={"low": 2, "high": "cores"}), 4, True)
    assert [
        (point.number("prune_ratio"), point.whole("bits"), point.whole("threads"))
        for point in points
    ] == [
        *((0.0, bits, 4) for bits in (32, 8)),
        *((0.5, bits, 4) for bits in (32, 8)),
        *((ratio, 32, 2) for ratio in (0.5, 0.35)),
        (0.35, 8, 4),
        *((ratio, 32, 2) for ratio in (0.75, 0.9)),
    ]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"bits": [32, 16]}, [(0.0, 32), *((ratio, 32) for ratio in CUTS)]),
        ({"bits": 8}, [(0.0, 32), (0.0, 8), (0.5, 8), (0.35, 8)]),
        ({"prune_ratio": 0.5, "bits": 8}, [(0.0, 32), (0.5, 8)]),
        # A cut outside becomes the nearest inside.
        (
            {"prune_ratio": {"low": 0.6, "high": 0.9}},
            [(0.0, 32), (0.6, 32), (0.6, 8), (0.75, 32), (0.75, 8), (0.9, 32)],
        ),
        ({"prune_ratio": 0}, [(0.0, 32), (0.0, 8)]),
    ],
)
def test_starting_points_stay_in_the_space_but_for_the_first(
    overrides: dict[str, Any], expected: list[tuple[float, int]]
) -> None:
    found = space(**overrides)
    points = start(found, 1, names_deployments=True)
    assert [(point.number("prune_ratio"), point.whole("bits")) for point in points] == expected
    assert all(found.contains(point) for point in points[1:])


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({}, [(0.0, 32), *((ratio, 32) for ratio in CUTS)]),
        ({"bits": [4, 8]}, [(0.0, 32), *((ratio, 8) for ratio in CUTS)]),
        ({"prune_ratio": [0.0, 0.3, 0.6]}, [(0.0, 32), (0.6, 32), (0.3, 32)]),
    ],
)
def test_where_students_are_deployed_in_many_ways_the_sweep_is_of_channels_alone(
    overrides: dict[str, Any], expected: list[tuple[float, int]]
) -> None:
    points = start(space(**overrides), 2, names_deployments=False)
    assert [(point.number("prune_ratio"), point.whole("bits")) for point in points] == expected
    assert {point.whole("threads") for point in points} == {2}


def test_learning_rates_lie_around_the_one_found() -> None:
    found = space().around(0.02)
    assert found.axes["learning_rate"] == Range(0.002, 0.2, log=True)
    assert found.describe() == space().describe()  # what was declared is the same
    assert space().around(0.5).axes["learning_rate"] == Range(0.05, 1.0, log=True)
    own = space(learning_rate={"low": 0.01, "high": 0.1})
    assert own.around(0.5) == own


def test_a_space_is_left_as_it_is_where_it_demands_pruning() -> None:
    demanding = space(prune_ratio={"low": 0.1, "high": 0.9})
    assert demanding.unpruned() == demanding
    assert not space(prune_ratio={"low": 0.0, "high": 0.9}).unpruned().prunes


@pytest.mark.parametrize(
    ("ratios", "prunes"),
    [({"low": 0.0, "high": 0.9}, True), ([0.0, 0.3], True), (0.0, False), (0.5, True)],
)
def test_a_space_prunes_where_any_of_its_points_does(ratios: Any, prunes: bool) -> None:
    assert space(prune_ratio=ratios).prunes is prunes


def test_fixing_dimensions_leaves_the_others() -> None:
    fixed = space().fix(bits=8, threads=2)
    assert set(space().distributions()) - set(fixed.distributions()) == {"bits", "threads"}
    assert fixed.bit_widths() == (8,)
    assert fixed.thread_counts() == (2,)
    assert space().bit_widths() == (32, 16, 8, 4)


def test_starting_recipes_move_into_the_space() -> None:
    found = space(
        optimizer=["sgd", "adam"],
        learning_rate={"low": 0.01, "high": 0.1},
        schedule="constant",
        distill_temperature=1,
        distill_weight=[0, 0.5],
        threads=2,
    )
    expected = make_point(0.0, 32, 1.0, 0.5, "sgd", 0.01, "constant", 2)
    assert start(found, 1, names_deployments=True)[0] == expected


def test_a_yardstick_outside_does_not_end_joint_sampling() -> None:
    # What starting_points tells the study to do, done with Optuna itself.
    found = space(bits=8)
    sampler = optuna.samplers.TPESampler(seed=0, multivariate=True)
    study = optuna.create_study(directions=["minimize", "minimize"], sampler=sampler)
    study.tell(study.ask(), state=TrialState.FAIL)
    for point in start(found, 1, names_deployments=True)[1:]:
        study.enqueue_trial(found.params(point))
        trial = study.ask(found.distributions())
        assert found.point(trial.params) == point
        study.tell(trial, [0.0, 1.0])
    joint = sampler.infer_relative_search_space(study, study.trials[-1])
    assert joint == found.distributions()
