"""Optuna's samplers by configuration, and asking them for one dimension of a point."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from search import pareto
from search.config import GpConfig, NsgaConfig, RandomConfig, SamplerConfig, TpeConfig

# Trials that TPE weighs: its time grows with them, while the oldest hardly count (decision 019).
MOST_WEIGHED = 300
# Of which TPE takes this share for the good ones.
GOOD = 0.1


class _Memorable(optuna.Study):
    """A study as TPE sees it: of many trials that bear values, the best and the latest.

    Args:
        study: With all of them.
    """

    def __init__(self, study: optuna.Study) -> None:
        vars(self).update(vars(study))
        trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
        self._memorable = trials
        if len(trials) > MOST_WEIGHED:
            good = {trial.number for trial in _good(trials)}
            others = [trial for trial in trials if trial.number not in good]
            kept = good.union(trial.number for trial in others[len(good) - MOST_WEIGHED :])
            self._memorable = [trial for trial in trials if trial.number in kept]

    def _get_trials(self, *_: Any, **__: Any) -> list[FrozenTrial]:
        return self._memorable


def _good(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    """Returns the first fronts, as many as hold all that TPE would call good; at most half."""
    allowed = [
        trial
        for trial in trials
        if trial.state == TrialState.COMPLETE and all(v <= 0 for v in trial.constraints.values())
    ]
    if not allowed:
        return []
    ranks = pareto.non_dominated_ranks([trial.values for trial in allowed])
    last = np.sort(ranks)[: round(GOOD * MOST_WEIGHED)][-1]
    good = [trial for trial, rank in zip(allowed, ranks, strict=True) if rank <= last]
    return good[-(MOST_WEIGHED // 2) :]


class _Tpe(TPESampler):
    """Knows the dimensions, which Optuna would gather from all trials anew at every ask.

    Attributes:
        dimensions: That are sampled together.
    """

    dimensions: Mapping[str, BaseDistribution]

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Returns the dimensions that have something to choose, by name as Optuna does."""
        return {name: one for name, one in sorted(self.dimensions.items()) if not one.single()}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Samples all dimensions together."""
        return super().sample_relative(_Memorable(study), trial, search_space)

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Samples one dimension by itself."""
        seen = _Memorable(study)
        return super().sample_independent(seen, trial, param_name, param_distribution)


def make_sampler(
    config: SamplerConfig, dimensions: Mapping[str, BaseDistribution], seed: int
) -> BaseSampler:
    """Builds the sampler for one trial.

    Args:
        config: Which one.
        dimensions: Of all trials of the study.
        seed: Of the trial.
    """
    match config:
        case TpeConfig(n_startup_trials=n_startup_trials, multivariate=together):
            tpe = _Tpe(n_startup_trials=n_startup_trials, multivariate=together, seed=seed)
            tpe.dimensions = dimensions if together else {}
            return tpe
        case NsgaConfig(population_size=population_size):
            return NSGAIISampler(population_size=population_size, seed=seed)
        case GpConfig(n_startup_trials=n_startup_trials):
            return GPSampler(n_startup_trials=n_startup_trials, seed=seed)
        case RandomConfig():
            return RandomSampler(seed=seed)


def suggest(asked: optuna.Trial, name: str, distribution: BaseDistribution) -> None:
    """Fixes one parameter of a trial: as enqueued or suggested before, else from the sampler."""
    match distribution:
        case FloatDistribution(low=low, high=high, log=log_scale):
            asked.suggest_float(name, low, high, log=log_scale)
        case IntDistribution(low=low, high=high, log=log_scale):
            asked.suggest_int(name, low, high, log=log_scale)
        case CategoricalDistribution(choices=choices):
            asked.suggest_categorical(name, choices)
