"""Dimensions that others bring: some matter beside other choices only, or for some networks."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from optuna.distributions import FloatDistribution

from search.errors import ConfigError
from search.process import registry
from search.records.network import Network
from search.space.dimension import Dimension, When, dimensions
from search.space.domains import Axis, Choice, Range
from search.space.space import Space
from search.space.starting import starting_points
from search.storage.journal import Journal
from tests.fakes import NETWORK, PLAIN, POLICY, FakeEngine, lab, trials_of
from tests.unit.test_study import open_study, space

CUTS = (0.5, 0.3, 0.8)


def dimension(name: str, axis: Axis, sound: Any, **more: Any) -> Dimension:
    given = {"group": "deployment", "label": name, "phrase": f"{name} {{}}", **more}
    return Dimension(name=name, domain=lambda cores: axis, sound=sound, **given)


CALIBRATION = dimension(
    "calibration", Choice(("minmax", "entropy")), "minmax", when=When("bits", (8,))
)
# The one that depends on the other comes first.
BINS = dimension("bins", Range(16, 2048, whole=True), 128, when=When("calibration", ("entropy",)))


def with_dimensions(*others: Dimension, **changes: Any) -> Space:
    """The usual space with dimensions of others."""
    own = space(**changes)
    axes = {**own.axes, **{one.name: one.domain(2) for one in others}}
    return Space(axes, (*own.dimensions, *others))


def test_the_original_stays_whole_where_the_space_forbids_it() -> None:
    share = dimension("share", Range(0.05, 0.5), 1.0, group="compression")
    found = with_dimensions(share, prune_ratio={"low": 0.2, "high": 0.9})
    original, *others = starting_points(found, 2, True, CUTS, lambda ratio: 0.01)
    assert original.compression == (("prune_ratio", 0.0), ("share", 1.0))
    assert not found.contains(original)
    assert others
    assert all(found.contains(point) for point in others)
    assert {point["share"] for point in others} == {0.5}


def test_starting_points_have_what_matters_beside_their_bits() -> None:
    points = starting_points(with_dimensions(BINS, CALIBRATION), 2, True, CUTS, lambda ratio: 0.01)
    plain = starting_points(space(), 2, True, CUTS, lambda ratio: 0.01)
    assert [p.whole("bits") for p in points] == [p.whole("bits") for p in plain]
    assert {(p["bits"], p.values.get("calibration")) for p in points} == {(32, None), (8, "minmax")}


def test_a_moved_point_gains_and_loses_what_matters() -> None:
    found = with_dimensions(BINS, CALIBRATION)
    point = starting_points(found, 2, False, CUTS, lambda ratio: 0.01)[0]
    eight = found.moved(point, bits=8)
    assert eight["calibration"] == "minmax"
    assert found.moved(eight, calibration="entropy")["bins"] == 128
    assert found.moved(found.moved(eight, calibration="entropy"), bits=32) == point
    narrow = replace(found, axes={**found.axes, "calibration": Choice(("entropy",))})
    assert narrow.moved(point, bits=8)["calibration"] == "entropy"


def test_nothing_matters_beside_what_does_not() -> None:
    found = with_dimensions(BINS, CALIBRATION)
    assert not found.applies("bins", {"bits": 32, "calibration": "entropy"})
    assert found.applies("bins", {"bits": 8, "calibration": "entropy"})
    fixed = found.fix(bits=32, calibration="entropy")
    assert not fixed.applies("bins", {})


@pytest.mark.parametrize("policy", [PLAIN, POLICY], ids=["sampled", "redeployed"])
def test_a_study_holds_only_points_of_its_space(tmp_path: Any, policy: Any) -> None:
    where = with_dimensions(BINS, CALIBRATION)
    with Journal(tmp_path, "s") as journal:
        study = open_study(journal, n_trials=25, where=where)
        records = list(trials_of(study, lab(), FakeEngine(), policy=policy))
    assert all(where.contains(record.point) for record in records)
    assert any(record.point["bits"] == 8 for record in records)
    if policy is PLAIN:
        assert any("bins" in record.point for record in records)


@pytest.mark.parametrize(
    ("others", "said"),
    [
        ([BINS], "space.bins: matters only beside calibration, which nothing adds"),
        (
            [replace(CALIBRATION, when=When("bins", (1,))), BINS],
            "space.calibration: matters only beside itself",
        ),
    ],
)
def test_what_can_never_matter_is_refused(
    monkeypatch: pytest.MonkeyPatch, others: list[Dimension], said: str
) -> None:
    ours = registry.load_all

    def all_of(kind: registry.Kind) -> Any:
        added = {"another": SimpleNamespace(dimensions=tuple(others))}
        return {**ours(kind), **added} if kind == "techniques" else ours(kind)

    monkeypatch.setattr(registry, "load_all", all_of)
    with pytest.raises(ConfigError, match=said):
        dimensions()


def test_what_does_not_suit_a_network_is_not_searched() -> None:
    def is_large(network: Network) -> bool:
        return network.parameters > 1000

    share = dimension("share", Range(0.05, 1.0), 1.0, group="compression", suits=is_large)
    found = with_dimensions(share)
    assert found.suited(replace(NETWORK, parameters=2000)) == found
    assert "share" not in found.suited(NETWORK).distributions()
    assert found.distributions()["share"] == FloatDistribution(0.05, 1.0)
    cannot = replace(found, axes={**found.axes, "share": Range(0.05, 0.5)})
    assert cannot.suited(NETWORK) == cannot, "the user wants it nevertheless"


@pytest.mark.parametrize(
    ("ratio", "share", "changes"),
    [(0.0, 1.0, False), (0.5, 1.0, True), (0.0, 0.5, True), (0.0, {"low": 0.5, "high": 1}, True)],
)
def test_a_space_changes_networks_by_any_technique(ratio: float, share: Any, changes: bool) -> None:
    axis = Range(0.5, 1.0) if isinstance(share, dict) else Choice((share,))
    found = with_dimensions(dimension("share", axis, 1.0, group="compression"), prune_ratio=ratio)
    assert found.changes is changes
