"""Which dimensions decide which objective, estimated from records.

Source:
    Watanabe, Bansal and Hutter, "PED-ANOVA: Efficiently Quantifying Hyperparameter Importance in
    Arbitrary Subspaces", 2023 (arXiv 2304.10255), as Optuna has it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial, create_trial

from search.front.front import loss_matrix
from search.records.point import Point, shared_dimensions
from search.records.trial import CompleteTrial, TrialRecord
from search.space.dimension import is_logarithmic

# With fewer the best ones are too few to tell what they have in common.
FEWEST_TRIALS = 20
# What a trial has to be among to count as good. Optuna's tenth would be two trials of twenty.
BEST_SHARE = 0.25


def importances(
    records: Sequence[TrialRecord], objectives: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Returns for every objective the dimensions' shares, the largest first, in sum 1.

    A share tells how much a dimension decides whether a trial is among the best quarter. Dimensions
    with one value only are left out, and so are objectives in which all trials are alike; with
    fewer than ``FEWEST_TRIALS`` complete trials the answer is empty. fANOVA, which explains all
    of the variance, takes a hundred times as long.

    Args:
        records: Finished trials, of which the complete ones count.
        objectives: Names of what the front trades.
    """
    complete = [record for record in records if isinstance(record, CompleteTrial)]
    axes = _axes([record.point for record in complete])
    if len(complete) < FEWEST_TRIALS or not axes:
        return {}
    shares = {name: _shares(_told(complete, axes, name)) for name in objectives}
    return {name: found for name, found in shares.items() if found}


def _axes(points: Sequence[Point]) -> dict[str, BaseDistribution]:
    """Returns what every dimension took, in Optuna's terms, without those that took one value."""
    axes: dict[str, BaseDistribution] = {}
    for name in shared_dimensions(points):
        values = sorted({_value(point, name) for point in points})
        if len(values) < 2:
            continue
        # Few whole numbers are rather choices: 4 bits lie no nearer to 8 than 16 to 32.
        if any(isinstance(value, float) for value in values):
            axes[name] = FloatDistribution(values[0], values[-1])
        else:
            axes[name] = CategoricalDistribution(values)
    return axes


def _value(point: Point, name: str) -> Any:
    value = point[name]
    return math.log10(float(value)) if is_logarithmic(name) else value


def _told(
    complete: Sequence[CompleteTrial], axes: Mapping[str, BaseDistribution], objective: str
) -> list[FrozenTrial]:
    """Returns the trials that know an objective, as Optuna's with that objective alone."""
    lost = loss_matrix(complete, [objective])[:, 0]
    return [
        create_trial(
            value=float(loss),
            params={name: _value(record.point, name) for name in axes},
            distributions=dict(axes),
        )
        for record, loss in zip(complete, lost, strict=True)
    ]


def _shares(trials: Sequence[FrozenTrial]) -> dict[str, float]:
    values = sorted(trial.values[0] for trial in trials)
    # Where the best quarter is as good as the worst trial, nothing tells them apart.
    if len(values) < FEWEST_TRIALS or values[math.ceil(BEST_SHARE * len(values)) - 1] == values[-1]:
        return {}
    # Not at the top: it brings scikit-learn, which takes seconds to import.
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    optuna.logging.set_verbosity(optuna.logging.WARNING)  # no user began this study
    study = optuna.create_study()
    study.add_trials(trials)
    evaluator = PedAnovaImportanceEvaluator(target_quantile=BEST_SHARE)
    return {
        name: float(share)
        for name, share in get_param_importances(study, evaluator=evaluator).items()
    }
