"""Real models profiled on this machine: every kernel finds its layer, and times add up."""

from __future__ import annotations

from dataclasses import replace

import pytest

from search.records.profile import Comparison
from search.records.steps.measuring import Profile
from search.report.breakdown import Spending, draw_up, total_us
from search.report.explanation import explain
from search.stages.profile import scale
from tests.deployables import make_deployable
from tests.fakes import PROFILE, measure_step
from tests.plants import make_figures
from tests.workbench import Workbench


def profiled(bench: Workbench, name: str, bits: int) -> Comparison:
    """The half-pruned network of that name in ``bits`` beside the whole one in float."""
    original = bench.export(bench.teacher(name).network)
    pruned = bench.export(bench.prune(name, 0.5).network)
    deployable = bench.do(bench.quantize_step(pruned, bits))
    pair = measure_step(
        deployable,
        reference=make_deployable(original.model, 32),
        data=bench.data,
        device=replace(PROFILE, usable_cores=1),
    )
    return bench.do(Profile(pair))


@pytest.mark.parametrize(("name", "bits"), [("resnet8", 8), ("ds_cnn", 4), ("custom", 16)])
def test_rows_of_both_models_stand_beside_each_other(
    bench: Workbench, name: str, bits: int
) -> None:
    found = profiled(bench, name, bits)
    names = [layer.name for layer in found.candidate.layers]
    assert sorted(names) == sorted(layer.name for layer in found.original.layers)
    for profile in (found.candidate, found.original):
        budget = draw_up(profile, found)
        # Every layer computes, and nothing computes outside of the layers.
        computing = {one.kernel.layer for one in budget.spent if one.computes}
        assert computing == set(names)
        assert total_us(budget.spent) + budget.call_us == pytest.approx(budget.whole_us)
        assert 0 < budget.call_us < budget.whole_us
        assert profile.cold_start_ms > 0
        assert set(profile.latency_ms) == {1}
    operators = {k.operator for k in found.candidate.kernels if Spending(k, 0.0).computes}
    assert any(operator.startswith("Q") for operator in operators) == (bits == 8)
    explanation = explain(3, make_figures(macs=500), found, 1000, 16)
    assert [row.layer for row in explanation.rows][-2:] == ["(call)", "all"]
    assert {row.layer for row in explanation.rows} >= set(names)
    # From the store it comes back as it was.
    assert profiled(bench, name, bits) == found


@pytest.mark.parametrize(
    ("cores", "own", "tried"),
    [
        (1, (1, 1), [1]),
        (2, (1, 2), [1, 2]),
        (3, (1, 1), [1, 2, 3]),
        (8, (1, 8), [1, 2, 4, 8]),
        (8, (3, 5), [1, 2, 3, 4, 5, 8]),
    ],
)
def test_thread_counts(cores: int, own: tuple[int, int], tried: list[int]) -> None:
    assert scale(cores, *own) == tried
