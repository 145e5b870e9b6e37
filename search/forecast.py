"""What a trial and a study will cost in time, from what the original cost; knows no results."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from search.config import FinalistsConfig, PolicyConfig, StudyConfig
from search.report.formats import format_counted, format_duration
from search.trial import Lab

# Of the time of an uncompressed network's optimizer step, what a pruned one's takes on average.
PRUNED_STEP = 0.6


@dataclass(frozen=True)
class Forecast:
    """Seconds to come.

    Attributes:
        steps: Optimizer steps of a trial that is trained to its end.
        training_s: They take at most: in the uncompressed network.
        measuring_s: One measurement.
        other_s: Exporting, storing and scoring a trial's model.
        trial_s: An average trial: pruned, and stopped at a rung as often as not.
        study_s: All trials that are left, or the time that they are given.
        closing_s: The closing round.
    """

    steps: int
    training_s: float
    measuring_s: float
    other_s: float
    trial_s: float
    study_s: float
    closing_s: float


def forecast(
    lab: Lab,
    stage_s: Mapping[str, float],
    study: StudyConfig,
    policy: PolicyConfig,
    finalists: FinalistsConfig,
    done: int,
    slots: int,
) -> Forecast:
    """Estimates what a study takes.

    Args:
        lab: With the seconds of an optimizer step.
        stage_s: What each stage of the original took.
        study: Its budgets.
        policy: Its early stopping.
        finalists: Its closing round.
        done: Trials that are done.
        slots: Trials that run at a time.
    """
    train = lab.bench.train
    per_epoch = lab.bench.data.sizes[0] / lab.bench.batch_size(train.epochs)
    step_s = lab.placement.step_s
    steps = max(1, round(train.epochs * max(1.0, per_epoch)))
    training_s = steps * step_s
    measuring_s = stage_s.get("measure", 0.0) / len(lab.bench.thread_counts)
    other_s = sum(stage_s.get(kind, 0.0) for kind in ("export", "quantize", "evaluate"))
    goes_on = 1 / policy.eta if policy.eta else 1.0
    trained_share = sum(
        (end - begin) * goes_on**rung
        for rung, (begin, end) in enumerate(pairwise((0.0, *train.rungs)))
    )
    finished_share = goes_on ** (len(train.rungs) - 1)
    again_s = finished_share * policy.deployments * (measuring_s + other_s)
    busy_s = PRUNED_STEP * trained_share * training_s + other_s
    trial_s = busy_s + measuring_s
    # The device measures one at a time, however many train.
    each_s = max((trial_s + again_s) / slots, measuring_s)
    study_s = math.inf if study.timeout_s is None else study.timeout_s
    if study.n_trials is not None:
        study_s = min(study_s, max(0, study.n_trials - done) * each_s)
    further_s = PRUNED_STEP * finalists.epochs * max(1.0, per_epoch) * step_s + other_s
    closing_s = finalists.count * further_s / slots + finalists.budget_s if finalists.count else 0.0
    return Forecast(steps, training_s, measuring_s, other_s, trial_s, study_s, closing_s)


def describe_forecast(found: Forecast, step_s: float, study: StudyConfig) -> str:
    """Returns one line: what a trial costs, what the study takes, and what makes it shorter."""
    training = PRUNED_STEP * found.training_s
    trial = (
        f"a trial takes about {format_duration(found.trial_s)} (at most {found.steps} steps of "
        f"up to {format_duration(step_s)}, measuring {format_duration(found.measuring_s)}, "
        f"exporting and scoring {format_duration(found.other_s)})"
    )
    if study.n_trials is None or found.study_s == study.timeout_s:
        whole = f"the search ends after study.timeout_s, {format_duration(found.study_s)}"
    else:
        whole = f"{format_counted(study.n_trials, 'trial')} about {format_duration(found.study_s)}"
    if found.closing_s:
        whole += f", and the closing round {format_duration(found.closing_s)}"
    costs = {
        "train.epochs": training,
        "device.budget_s": found.measuring_s,
        "smaller data": found.other_s,
    }
    dearest = max(costs, key=lambda name: costs[name])
    fewer = "study.n_trials or study.timeout_s" if study.timeout_s is None else "study.timeout_s"
    closing = ", finalists.epochs" if found.closing_s > 0.2 * found.study_s else ""
    return f"{trial}; {whole}; shorter with less of {dearest}{closing}, or with {fewer}"
