"""Optuna's samplers by configuration, and asking them for one dimension of a point."""

from __future__ import annotations

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler

from search.config import GpConfig, NsgaConfig, RandomConfig, SamplerConfig, TpeConfig


def make_sampler(config: SamplerConfig, seed: int) -> BaseSampler:
    """Builds the sampler for one trial."""
    match config:
        case TpeConfig(n_startup_trials=n_startup_trials, multivariate=multivariate):
            return TPESampler(
                n_startup_trials=n_startup_trials, multivariate=multivariate, seed=seed
            )
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
