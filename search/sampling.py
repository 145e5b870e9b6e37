"""Optuna's samplers by configuration, and asking them for one dimension of a point."""

from __future__ import annotations

from collections.abc import Mapping

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial

from search.config import GpConfig, NsgaConfig, RandomConfig, SamplerConfig, TpeConfig


class _Tpe(TPESampler):
    """Knows the dimensions, which Optuna would gather from all trials anew at every ask."""

    dimensions: Mapping[str, BaseDistribution]

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Returns the dimensions that have something to choose, by name as Optuna does."""
        return {name: one for name, one in sorted(self.dimensions.items()) if not one.single()}


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
        case TpeConfig(n_startup_trials=n_startup_trials, multivariate=True):
            sampler = _Tpe(n_startup_trials=n_startup_trials, multivariate=True, seed=seed)
            sampler.dimensions = dimensions
            return sampler
        case TpeConfig(n_startup_trials=n_startup_trials):
            return TPESampler(n_startup_trials=n_startup_trials, seed=seed)
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
