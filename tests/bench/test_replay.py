"""Search policies compared on the recorded table: what each ingredient is worth."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
from optuna.samplers import RandomSampler, TPESampler

from search.config import PolicyConfig, TpeConfig
from tests.bench.replay.simulate import (
    Curve,
    Table,
    replay_plain,
    replay_search,
    time_to,
    volume_at,
)

SEEDS = range(20)
PLAIN_TRIALS = 60
TPE = TpeConfig(name="tpe", n_startup_trials=10, multivariate=True)
OFF = PolicyConfig(latency_first=False, eta=None, deployments=0)
POLICIES = {
    "starting points and reuse alone": OFF,
    "and latency first": PolicyConfig(latency_first=True, eta=None, deployments=0),
    "and early stopping": PolicyConfig(latency_first=False, eta=3.0, deployments=0),
    "and all deployments": PolicyConfig(latency_first=False, eta=None, deployments=3),
    "everything": PolicyConfig(latency_first=True, eta=3.0, deployments=3),
}
RUNGS = (1 / 3, 1.0)


def plain(seed: int) -> Curve:
    return replay_plain(Table(), TPESampler(seed=seed), PLAIN_TRIALS)


def chance(seed: int) -> Curve:
    until_s = plain(seed)[-1][0]
    return replay_plain(Table(), RandomSampler(seed=seed), 10_000, until_s)


def ours(policy: PolicyConfig, seed: int) -> Curve:
    return replay_search(Table(), TPE, policy, RUNGS, seed, plain(seed)[-1][0])


def in_parallel(work: Callable[..., Curve], *given: object) -> list[Curve]:
    with ProcessPoolExecutor(2) as pool:
        return [f.result() for f in [pool.submit(work, *given, seed) for seed in SEEDS]]


def geometric(ratios: Sequence[float]) -> str:
    """The geometric mean with its 95 % bootstrap interval."""
    logs = np.log(ratios)
    draws = np.random.default_rng(0).choice(logs, (2000, len(logs))).mean(axis=1)
    low, high = np.exp(np.quantile(draws, (0.025, 0.975)))
    return f"{math.exp(logs.mean()):5.2f} [{low:.2f}, {high:.2f}]"


@pytest.mark.bench
@pytest.mark.timeout(3600)
def test_ingredients() -> None:
    base = in_parallel(plain)
    targets = [curve[-1][1] for curve in base]
    ends = [curve[-1][0] for curve in base]
    print(f"\nplain loop: {PLAIN_TRIALS} trials in {np.mean(ends):.0f} s, {len(base)} seeds,")
    print(f"hypervolume {np.mean(targets):.4f}; times faster to reach each seed's own:")
    everything = {"random": in_parallel(chance)}
    for name, policy in POLICIES.items():
        everything[name] = in_parallel(ours, policy)
    for name, curves in everything.items():
        times = [time_to(c, target) for c, target in zip(curves, targets, strict=True)]
        # What never arrived is taken to arrive at the end: the ratio is too good for it.
        late = sum(math.isinf(t) for t in times)
        faster = [end / min(t, end) for end, t in zip(ends, times, strict=True)]
        final = np.mean([curve[-1][1] for curve in curves])
        print(f"  {name:34} {geometric(faster)}, {late:2} never; at the end {final:.4f}")
    grid = np.linspace(0.0, min(ends), 200)
    means = {
        name: np.mean([[volume_at(c, t) for t in grid] for c in curves], axis=0)
        for name, curves in {"plain": base, **everything}.items()
    }
    worse = grid[means["everything"] < means["plain"]]
    print(f"everything below the plain loop in the mean at {len(worse)} of {len(grid)} moments")
