"""Search policies compared on the recorded table: what each ingredient is worth."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from typing import TypeAlias

import numpy as np
import pytest
from optuna.samplers import BaseSampler, RandomSampler, TPESampler

from search.config.study import (
    GpConfig,
    NsgaConfig,
    PolicyConfig,
    RandomConfig,
    SamplerConfig,
    TpeConfig,
)
from search.records.point import Point
from search.study.coordinator import Coordinator
from search.study.study import InitialDesign
from tests.bench.replay.simulate import (
    Curve,
    Table,
    replay_plain,
    replay_search,
    time_to,
    volume_at,
)

SEEDS, SEEDS_OF_GP = 20, 4  # it takes minutes for one
PLAIN_TRIALS = 60
MOMENTS_S = (30, 60, 100, 200, 400, 700)
RUNGS = (1 / 3, 1.0)
TPE = TpeConfig(name="tpe", n_startup_trials=10, multivariate=True)
EVERYTHING = PolicyConfig(latency_first=True, eta=2.0, deployments=3)
Policy: TypeAlias = Callable[[int, float], Curve]  # takes a seed and the seconds


class Unplanned(Coordinator):
    """A run whose sampler knows nothing but the baseline."""

    def _make_design(self, earlier: Sequence[Point]) -> InitialDesign:
        plan = super()._make_design(earlier)
        return replace(plan, starting=plan.starting[:1])


class Grouped(Coordinator):
    """A run whose sampler splits the space where trials lack parameters."""

    def _make_sampler(self, number: int) -> BaseSampler:
        seed = self._seed(number)
        return TPESampler(n_startup_trials=10, multivariate=True, group=True, seed=seed)


def plain(seed: int) -> Curve:
    return replay_plain(Table(), TPESampler(seed=seed), PLAIN_TRIALS)


def chance(seed: int, until_s: float) -> Curve:
    return replay_plain(Table(), RandomSampler(seed=seed), 10_000, until_s)


def ours(
    seed: int,
    until_s: float,
    latency_first: bool = False,
    eta: float | None = None,
    deployments: int = 0,
    make_coordinator: type[Coordinator] = Coordinator,
) -> Curve:
    policy = PolicyConfig(latency_first=latency_first, eta=eta, deployments=deployments)
    return replay_search(Table(), TPE, policy, RUNGS, seed, until_s, make_coordinator)


def sampled(
    seed: int,
    until_s: float,
    sampler: SamplerConfig,
    make_coordinator: type[Coordinator] = Coordinator,
) -> Curve:
    return replay_search(Table(), sampler, EVERYTHING, RUNGS, seed, until_s, make_coordinator)


INGREDIENTS: Mapping[str, Policy] = {
    "random instead of TPE in the plain loop": chance,
    "starting points and reuse": ours,
    "... and latency first": partial(ours, latency_first=True),
    "... and early stopping, 1 in 2": partial(ours, eta=2.0),
    "... and early stopping, 1 in 3": partial(ours, eta=3.0),
    "... and other deployments": partial(ours, deployments=3),
    "everything": partial(ours, latency_first=True, eta=2.0, deployments=3),
    "everything, stopping 1 in 3": partial(ours, latency_first=True, eta=3.0, deployments=3),
    "everything but early stopping": partial(ours, latency_first=True, deployments=3),
    "everything but starting points": partial(
        ours, latency_first=True, eta=2.0, deployments=3, make_coordinator=Unplanned
    ),
}
SINGLY = TpeConfig(name="tpe", n_startup_trials=10, multivariate=False)
NSGA = NsgaConfig(name="nsga2", population_size=16)
SAMPLERS: Mapping[str, Policy] = {
    "TPE, multivariate": partial(sampled, sampler=TPE),
    "TPE, grouped": partial(sampled, sampler=TPE, make_coordinator=Grouped),
    "TPE, independent": partial(sampled, sampler=SINGLY),
    "NSGA-II": partial(sampled, sampler=NSGA),
    "random": partial(sampled, sampler=RandomConfig(name="random")),
    "GP": partial(sampled, sampler=GpConfig(name="gp", n_startup_trials=10)),
}


def in_parallel(work: Callable[..., Curve], *columns: Sequence[float]) -> list[Curve]:
    with ProcessPoolExecutor(2) as pool:
        return list(pool.map(work, *columns))


def geometric(ratios: Sequence[float]) -> str:
    """The geometric mean with its 95 % bootstrap interval."""
    logs = np.log(ratios)
    draws = np.random.default_rng(0).choice(logs, (2000, len(logs))).mean(axis=1)
    low, high = np.exp(np.quantile(draws, (0.025, 0.975)))
    return f"{math.exp(logs.mean()):5.2f} [{low:.2f}, {high:.2f}]"


def describe(curves: Sequence[Curve], base: Sequence[Curve]) -> str:
    """How much sooner a policy is where the plain loop ends, and its mean hypervolumes."""
    pairs = list(zip(curves, base, strict=False))
    times = [time_to(curve, end[-1][1]) for curve, end in pairs]
    # What never arrived is taken to arrive at the end: the ratio is too good for it.
    faster = [end[-1][0] / min(t, end[-1][0]) for t, (_, end) in zip(times, pairs, strict=True)]
    means = [np.mean([volume_at(curve, moment) for curve in curves]) for moment in MOMENTS_S]
    late = sum(map(math.isinf, times))
    volumes = " ".join(f"{mean:.4f}" for mean in means)
    return f"{geometric(faster)}, {late:2} of {len(curves)} never; {volumes}"


@pytest.fixture(scope="module")
def base() -> list[Curve]:
    return in_parallel(plain, range(SEEDS))


@pytest.mark.bench
@pytest.mark.timeout(3600)
def test_ingredients(base: list[Curve]) -> None:
    ends = [curve[-1][0] for curve in base]
    target = np.mean([curve[-1][1] for curve in base])
    print(f"\nplain loop: {PLAIN_TRIALS} trials in {np.mean(ends):.0f} s, {SEEDS} seeds, ", end="")
    print(f"hypervolume {target:.4f}; times faster there, means after {MOMENTS_S} s")
    print(f"  {'plain loop':40} {describe(base, base)}", flush=True)
    found = {"plain loop": base}
    for name, policy in INGREDIENTS.items():
        found[name] = in_parallel(policy, range(SEEDS), ends)
        print(f"  {name:40} {describe(found[name], base)}", flush=True)
    grid = np.linspace(0.0, min(ends), 400)
    ahead, behind = (
        np.mean([[volume_at(curve, t) for t in grid] for curve in found[name]], axis=0)
        for name in ("everything", "plain loop")
    )
    late = grid[ahead < behind]
    print(f"everything is below the plain loop in the mean at {len(late)} of 400 moments", end="")
    print(f", from {late.min():.0f} to {late.max():.0f} s" if len(late) else "")


@pytest.mark.bench
@pytest.mark.timeout(3600)
def test_samplers(base: list[Curve]) -> None:
    print()
    for name, policy in SAMPLERS.items():
        seeds = SEEDS_OF_GP if name == "GP" else SEEDS
        ends = [curve[-1][0] for curve in base[:seeds]]
        curves = in_parallel(policy, range(seeds), ends)
        print(f"  {name:40} {describe(curves, base)}")
