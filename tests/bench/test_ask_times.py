"""How long a sampler thinks when a thousand trials are behind it, and what a trial costs then."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from statistics import median
from typing import Any

import optuna
import pytest

from search.config.study import (
    GpConfig,
    NsgaConfig,
    PolicyConfig,
    RandomConfig,
    SamplerConfig,
    StudyConfig,
    TpeConfig,
)
from search.storage.journal import Journal
from search.study.coordinator import Coordinator
from search.study.study import Study
from tests.bench.replay.simulate import OBJECTIVES, Table
from tests.fakes import PLAIN, FakeEngine, lab

TRIALS, MORE, MORE_OF_GP = 1000, 20, 3
RANDOM = RandomConfig(name="random")
SAMPLERS: list[SamplerConfig] = [
    TpeConfig(name="tpe", n_startup_trials=10, multivariate=True),
    TpeConfig(name="tpe", n_startup_trials=10, multivariate=False),
    NsgaConfig(name="nsga2", population_size=50),
    RANDOM,
    GpConfig(name="gp", n_startup_trials=10),
]


class Timed(Coordinator):
    """A run that notes the seconds of its asks."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.asks_s: list[float] = []

    def _ask(self) -> optuna.Trial:
        started = time.perf_counter()
        asked = super()._ask()
        self.asks_s.append(time.perf_counter() - started)
        return asked


def extend(folder: Path, sampler: SamplerConfig, policy: PolicyConfig, n_trials: int) -> Timed:
    """Goes on with the study of a folder."""
    config = StudyConfig(name="s", n_trials=n_trials, timeout_s=None, warm_start=(), seed=0)
    with Journal(folder, "s") as journal:
        study = Study(journal, config, Table().space(), OBJECTIVES, {})
        run = Timed(study, sampler, policy, lab(), FakeEngine())
        for _ in run.trials():
            pass
    return run


@pytest.mark.bench
@pytest.mark.timeout(3600)
def test_ask_times(tmp_path: Path) -> None:
    extend(tmp_path / "filled", RANDOM, PLAIN, TRIALS)
    print(f"\nafter {TRIALS} trials, medians in ms: ask, whole trial without its steps")
    for number, sampler in enumerate(SAMPLERS):
        folder = tmp_path / str(number)
        shutil.copytree(tmp_path / "filled", folder)
        more = MORE_OF_GP if sampler.name == "gp" else MORE
        started = time.perf_counter()
        # Not other deployments of a thousand students that had none: asks are what is timed.
        run = extend(folder, sampler, PLAIN, TRIALS + more)
        whole_s = (time.perf_counter() - started) / more  # opening the study included
        print(f"  {sampler}: {1e3 * median(run.asks_s):.0f}, {1e3 * whole_s:.0f}")
