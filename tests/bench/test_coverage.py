"""How often intervals hold the truth, by more simulations than the gate has time for."""

from __future__ import annotations

import pytest

from search.benchmark.launches import LEVEL
from tests.unit.benchmark.test_protocol import NOISES, Noises, simulate

SIMULATIONS = 1000


@pytest.mark.bench
@pytest.mark.parametrize("noises", NOISES.values(), ids=NOISES)
def test_intervals_hold_the_truth(noises: Noises) -> None:
    covered = simulate(noises, SIMULATIONS) / SIMULATIONS
    print(f"\n{covered:.1%} of {SIMULATIONS} intervals hold the truth")
    assert covered >= LEVEL
