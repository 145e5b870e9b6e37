"""How a step becomes a plan of measuring."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from search.benchmark.plans import LEAST_RETRIED_S, make_plan
from search.devices.device import Device
from search.devices.local import LocalTransport
from search.engine.store import Store
from tests.deployables import make_deployable
from tests.fakes import measure_step


@pytest.mark.parametrize(
    ("budget_s", "retry"), [(0.1, False), (LEAST_RETRIED_S, True), (8.0, True)]
)
def test_a_small_budget_is_not_spent_twice(budget_s: float, retry: bool, tmp_path: Path) -> None:
    store = Store(tmp_path)
    deployable = make_deployable(store.put(b"model", ".onnx"), 32, ())
    step = replace(measure_step(deployable), budget_s=budget_s)
    plan = make_plan(step, store, tmp_path / "inputs.npy", Device(LocalTransport(), 1.0))
    assert (plan.retry, plan.budget_s) == (retry, budget_s)
