"""Samplers draw as Optuna's own do, and TPE looks at the best and the latest of many trials."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.samplers import BaseSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from search.config.study import TpeConfig
from search.study.sampling import History, make_sampler, suggest

DIMENSIONS: dict[str, BaseDistribution] = {
    "rate": FloatDistribution(0.001, 0.1, log=True),
    "ratio": FloatDistribution(0.0, 0.9),
    "optimizer": CategoricalDistribution(["sgd", "adam"]),
}
BOTH = pytest.mark.parametrize("together", [True, False], ids=["together", "one by one"])


def planted(number: int, front: int, is_allowed: bool = True) -> FrozenTrial:
    """A finished trial on one of the fronts, each of which dominates all of the next one."""
    loss, share = 2.0**front, 0.4 + 0.2 * ((number * 0.618) % 1)
    trial = create_trial(
        state=TrialState.COMPLETE,
        values=[loss * share, loss * (1 - share)],
        params={
            "rate": 0.1 * share,
            "ratio": 0.9 * ((number * 0.414) % 1),
            "optimizer": "sgd" if number % 3 else "adam",
        },
        distributions=DIMENSIONS,
    )
    trial.set_constraint("limit", 0.0 if is_allowed else 1.0 + number % 7)
    return trial


Maker = Callable[[optuna.Study, Sequence[optuna.Trial]], BaseSampler]


def draw(trials: Sequence[FrozenTrial], make: Maker, asks: int = 1) -> dict[str, object]:
    """Returns the last of so many points that are asked for before any is told."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(directions=["minimize", "minimize"])
    study.add_trials(trials)
    under_way: list[optuna.Trial] = []
    for _ in range(asks):
        study.sampler = make(study, under_way)
        under_way.append(study.ask())
        for name, distribution in DIMENSIONS.items():
            suggest(under_way[-1], name, distribution)
    return under_way[-1].params


def own(together: bool) -> Maker:
    config = TpeConfig(name="tpe", n_startup_trials=10, multivariate=together)
    return lambda study, under_way: make_sampler(
        config, DIMENSIONS, 3, History(study), list(under_way)
    )


def optunas(together: bool) -> Maker:
    return lambda *_: TPESampler(n_startup_trials=10, multivariate=together, seed=3)


@BOTH
@pytest.mark.parametrize("asks", [1, 3])
@pytest.mark.parametrize("count", [0, 9, 10, 300])
def test_draws_as_optuna_does(together: bool, count: int, asks: int) -> None:
    trials = [planted(number, number % 5) for number in range(count)]
    assert draw(trials, own(together), asks) == draw(trials, optunas(together), asks)


@BOTH
def test_what_is_under_way_counts(together: bool) -> None:
    trials = [planted(number, number % 5) for number in range(400)]
    assert draw(trials, own(together), asks=2) != draw(trials, own(together))


@BOTH
def test_of_many_trials_the_best_and_the_latest_count(together: bool) -> None:
    # Two early fronts of 20 hold the 30 that TPE would call good among 300; later ones are worse.
    trials = [planted(n, n // 20 if n < 40 else 2 + n % 11) for n in range(1000)]
    kept = [*trials[:40], *trials[-260:]]
    assert draw(trials, own(together)) == draw(kept, optunas(together))
    assert draw(trials, own(together)) != draw(trials[-300:], optunas(together))


def test_the_first_front_is_not_left_out_for_a_long_second_one() -> None:
    trials = [planted(n, 0 if n < 25 else 1 if n < 225 else 3 + n % 5) for n in range(425)]
    kept = [*trials[:150], *trials[-150:]]
    assert draw(trials, own(True)) == draw(kept, optunas(True))


@BOTH
def test_trials_that_broke_a_limit_are_not_the_best(together: bool) -> None:
    trials = [planted(n, 0 if n < 100 else 1 + n % 10, is_allowed=n >= 100) for n in range(500)]
    # 40 of the 400 allowed ones are on their first front.
    first, others = trials[100::10], [t for n, t in enumerate(trials) if n < 100 or n % 10]
    kept = [t for t in trials if t in first or t in others[-260:]]
    assert draw(trials, own(together)) == draw(kept, optunas(together))


def test_where_nothing_is_allowed_the_latest_count() -> None:
    trials = [planted(n, n % 11, is_allowed=False) for n in range(400)]
    assert draw(trials, own(True)) == draw(trials[-300:], optunas(True))
