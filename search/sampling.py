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
# TPE takes this share of them for the good ones.
GOOD = 0.1
VALUED = (TrialState.COMPLETE, TrialState.PRUNED)


class _Memorable(optuna.Study):
    """A study as TPE sees it: of many trials that ended, the best and the latest.

    Args:
        study: With all of them, none of which ends while this is looked at.
    """

    def __init__(self, study: optuna.Study) -> None:
        vars(self).update(vars(study))
        trials = study.get_trials(deepcopy=False, states=VALUED)
        self._memorable = trials
        if len(trials) > MOST_WEIGHED:
            good = {trial.number for trial in _good(trials)}
            others = [trial for trial in trials if trial.number not in good]
            kept = good.union(trial.number for trial in others[len(good) - MOST_WEIGHED :])
            self._memorable = [trial for trial in trials if trial.number in kept]

    def _get_trials(
        self, deepcopy: bool = True, states: Any = None, use_cache: bool = False
    ) -> list[FrozenTrial]:
        # What is under way TPE takes for bad, so that workers side by side try different points.
        running = super()._get_trials(deepcopy, (TrialState.RUNNING,), use_cache)
        return [*self._memorable, *(trial for trial in running if trial.state in states)]


def _good(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    """Returns the first fronts, as many as hold all that TPE would call good; at most half.

    Of the last of these fronts the latest trials are left out first.
    """
    allowed = [
        trial
        for trial in trials
        if trial.state == TrialState.COMPLETE and all(v <= 0 for v in trial.constraints.values())
    ]
    if not allowed:
        return []
    ranks = pareto.non_dominated_ranks([trial.values for trial in allowed])
    last = np.sort(ranks)[: round(GOOD * MOST_WEIGHED)][-1]
    good = [(rank, trial) for trial, rank in zip(allowed, ranks, strict=True) if rank <= last]
    good.sort(key=lambda ranked: (ranked[0], ranked[1].number))
    return [trial for _, trial in good[: MOST_WEIGHED // 2]]


class _Tpe(TPESampler):
    """Chooses one trial; looks at the others once for all dimensions.

    Attributes:
        dimensions: That are sampled together, which Optuna would gather from all trials.
    """

    dimensions: Mapping[str, BaseDistribution]
    _seen: _Memorable | None = None

    def _look(self, study: optuna.Study) -> _Memorable:
        self._seen = self._seen or _Memorable(study)
        return self._seen

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Returns the dimensions that have something to choose, by name as Optuna does."""
        return {name: one for name, one in sorted(self.dimensions.items()) if not one.single()}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Samples all dimensions together."""
        return super().sample_relative(self._look(study), trial, search_space)

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Samples one dimension by itself."""
        return super().sample_independent(self._look(study), trial, param_name, param_distribution)


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
