"""Optuna's samplers by configuration, and asking them for one dimension of a point."""

from __future__ import annotations

from bisect import insort
from collections.abc import Mapping, Sequence
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

from search.config.factory import call_factory
from search.config.study import (
    GpConfig,
    NsgaConfig,
    PluginSamplerConfig,
    RandomConfig,
    SamplerConfig,
    TpeConfig,
)
from search.errors import ConfigError
from search.front import pareto
from search.space.space import Space

# Trials that TPE weighs: its time grows with them, while the oldest hardly count (decision 019).
MOST_WEIGHED = 300
# TPE takes this share of them for the good ones.
GOOD = 0.1
VALUED = (TrialState.COMPLETE, TrialState.PRUNED)


class History:
    """Of the trials that ended with something to learn from, those that TPE weighs.

    These are the best and the latest. A trial that was left out never comes back.

    Args:
        study: With trials to begin with.

    Attributes:
        trials: In the order of their numbers.
    """

    def __init__(self, study: optuna.Study) -> None:
        self.trials: list[FrozenTrial] = []
        for trial in study.get_trials(deepcopy=False):
            self.add(trial)

    def add(self, trial: FrozenTrial) -> None:
        """Adds a trial that ended, leaving out the oldest of those that are not among the best."""
        if trial.state not in VALUED:
            return
        insort(self.trials, trial, key=lambda one: one.number)  # as a continued study has them
        if len(self.trials) > MOST_WEIGHED:
            good = {best.number for best in _good(self.trials)}
            oldest = next(i for i, one in enumerate(self.trials) if one.number not in good)
            del self.trials[oldest]


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


class _Remembered(optuna.Study):
    """A study as TPE sees it.

    Args:
        study: Whose trials they are.
        history: Of those that ended.
        under_way: All others.
    """

    def __init__(
        self, study: optuna.Study, history: History, under_way: Sequence[optuna.Trial]
    ) -> None:
        vars(self).update(vars(study))
        # What is under way TPE takes for bad, so that workers side by side try different points.
        running = [self._storage.get_trial(trial._trial_id) for trial in under_way]
        self._seen = [*history.trials, *running]

    def _get_trials(
        self, deepcopy: bool = True, states: Any = None, use_cache: bool = False
    ) -> list[FrozenTrial]:
        return [trial for trial in self._seen if trial.state in states]


class _Tpe(TPESampler):
    """Chooses one trial; looks at the others once for all dimensions.

    Attributes:
        dimensions: That are sampled together, which Optuna would gather from all trials.
        history: Of trials that ended.
        under_way: Trials that did not.
    """

    dimensions: Mapping[str, BaseDistribution]
    history: History
    under_way: Sequence[optuna.Trial]
    _seen: _Remembered | None = None

    def _look(self, study: optuna.Study) -> _Remembered:
        self._seen = self._seen or _Remembered(study, self.history, self.under_way)
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
    config: SamplerConfig,
    dimensions: Mapping[str, BaseDistribution],
    seed: int,
    history: History | None,
    under_way: Sequence[optuna.Trial],
) -> BaseSampler:
    """Builds the sampler for one trial.

    Args:
        config: Which one.
        dimensions: Of all trials of the study.
        seed: Of the trial.
        history: Of the study's trials that ended; only TPE needs it.
        under_way: Those that did not, except the one that is sampled.
    """
    match config:
        case TpeConfig(n_startup_trials=n_startup_trials, multivariate=together):
            assert history is not None
            tpe = _Tpe(n_startup_trials=n_startup_trials, multivariate=together, seed=seed)
            tpe.dimensions = dimensions if together else {}
            tpe.history, tpe.under_way = history, under_way
            return tpe
        case NsgaConfig(population_size=population_size):
            return NSGAIISampler(population_size=population_size, seed=seed)
        case GpConfig(n_startup_trials=n_startup_trials):
            return GPSampler(
                n_startup_trials=n_startup_trials,
                seed=seed,
                warn_independent_sampling=False,  # of dimensions that matter beside others only
            )
        case RandomConfig():
            return RandomSampler(seed=seed)
        case PluginSamplerConfig(factory=factory, arguments=arguments):
            return _plugin_sampler(factory, arguments, seed)


def _plugin_sampler(factory: str, arguments: Mapping[str, Any], seed: int) -> BaseSampler:
    sampler = call_factory(factory, "sampler", arguments, seed=seed)
    if not isinstance(sampler, BaseSampler):
        raise ConfigError(
            f"sampler.factory={factory!r}: returned {type(sampler).__name__}; "
            "return an optuna.samplers.BaseSampler"
        )
    return sampler


def check_sampler(config: SamplerConfig) -> None:
    """Builds a plug-in's sampler, to be refused before anything is trained.

    Raises:
        ConfigError: When it cannot be built.
    """
    if isinstance(config, PluginSamplerConfig):
        _plugin_sampler(config.factory, config.arguments, seed=0)


def together(space: Space) -> dict[str, BaseDistribution]:
    """Returns the dimensions that every trial has, which samplers may choose together."""
    return {n: one for n, one in space.distributions().items() if n not in space.conditional}


def choose(asked: optuna.Trial, space: Space) -> None:
    """Chooses a trial's dimensions that are not fixed, those first that others depend on."""
    for name, distribution in sorted(
        space.distributions().items(), key=lambda pair: space.depth(pair[0])
    ):
        if space.applies(name, asked.params):
            suggest(asked, name, distribution)


def suggest(asked: optuna.Trial, name: str, distribution: BaseDistribution) -> None:
    """Fixes one parameter of a trial: as enqueued or suggested before, else from the sampler."""
    match distribution:
        case FloatDistribution(low=low, high=high, log=log_scale):
            asked.suggest_float(name, low, high, log=log_scale)
        case IntDistribution(low=low, high=high, log=log_scale):
            asked.suggest_int(name, low, high, log=log_scale)
        case CategoricalDistribution(choices=choices):
            asked.suggest_categorical(name, choices)
