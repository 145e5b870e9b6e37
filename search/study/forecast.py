"""What a trial and a study will cost in time, from what the original cost."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from search.config.study import FinalistsConfig, PolicyConfig, StudyConfig
from search.records.bench import Lab
from search.records.formats import format_counted, format_duration

# Of the time of an uncompressed network's optimizer step, what a pruned one's takes on average.
PRUNED_STEP = 0.6
# Of the search's time: a closing round that takes more is worth being told how to shorten.
LONG_CLOSING = 0.2


@dataclass(frozen=True)
class Forecast:
    """Seconds to come.

    Attributes:
        steps: Optimizer steps of a trial that is trained to its end.
        training_s: They take at most: in the uncompressed network.
        measuring_s: One measurement.
        other_s: Exporting, storing and scoring a trial's model.
        trial_s: An average trial: pruned, and stopped at a rung as often as not.
        again_s: What other deployments of a trial's network take on average.
        left: Trials that are left; None where only time ends the study.
        study_s: All trials that are left, or the time that they are given.
        closing_s: The closing round at most: of as many finalists as it takes, and the original.
    """

    steps: int
    training_s: float
    measuring_s: float
    other_s: float
    trial_s: float
    again_s: float
    left: int | None
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
    step_s = lab.placement.step_s
    steps = lab.bench.steps(train.epochs)
    training_s = steps * step_s
    measuring_s = stage_s.get("measure", 0.0) / len(lab.bench.thread_counts)
    there_s = stage_s.get("evaluate_on_device", 0.0)
    other_s = there_s + sum(stage_s.get(kind, 0.0) for kind in ("export", "quantize", "evaluate"))
    goes_on = 1 / policy.eta if policy.eta else 1.0
    trained_share = sum(
        (end - begin) * goes_on**rung
        for rung, (begin, end) in enumerate(pairwise((0.0, *train.rungs)))
    )
    finished_share = goes_on ** (len(train.rungs) - 1)
    again_s = finished_share * policy.deployments * (measuring_s + other_s)
    busy_s = PRUNED_STEP * trained_share * training_s + other_s
    trial_s = busy_s + measuring_s
    # The device does one thing at a time, however many train.
    each_s = max((trial_s + again_s) / slots, measuring_s + there_s)
    study_s = math.inf if study.timeout_s is None else study.timeout_s
    left = None if study.n_trials is None else max(0, study.n_trials - done)
    if left is not None:
        study_s = min(study_s, left * each_s)
    closing_s = 0.0
    if finalists.count:
        further_s = PRUNED_STEP * lab.bench.steps(finalists.epochs) * step_s + other_s
        # One is measured at a time, each for its budget, and the original too.
        measured_s = (finalists.count + 1) * finalists.budget_s
        closing_s = finalists.count * further_s / slots + measured_s
    return Forecast(
        steps, training_s, measuring_s, other_s, trial_s, again_s, left, study_s, closing_s
    )


def describe_forecast(found: Forecast, step_s: float, study: StudyConfig) -> str:
    """Returns one line: what a trial costs, what the study takes, and what makes it shorter."""
    training = PRUNED_STEP * found.training_s
    trial = (
        f"a trial takes about {format_duration(found.trial_s)} (at most {found.steps} steps of "
        f"up to {format_duration(step_s)}, measuring {format_duration(found.measuring_s)}, "
        f"exporting and scoring {format_duration(found.other_s)})"
    )
    if found.again_s:
        trial += f", other deployments of its network {format_duration(found.again_s)}"
    if found.left is None or found.study_s == study.timeout_s:
        whole = f"the search ends after study.timeout_s, {format_duration(found.study_s)}"
    else:
        whole = f"{_name_left(found.left, study)} about {format_duration(found.study_s)}"
    if found.closing_s:
        whole += f", and the closing round {format_duration(found.closing_s)}"
    costs = {
        "fewer train.epochs": training,
        "a smaller device.budget_s": found.measuring_s,
        "fewer or smaller images": found.other_s,
    }
    ways = [max(costs, key=lambda way: costs[way])]
    if found.closing_s > LONG_CLOSING * found.study_s:
        ways.append("a smaller finalists.count")
    ways.append("fewer study.n_trials" if found.left is not None else "a smaller study.timeout_s")
    if found.left is not None and study.timeout_s is None:
        ways.append("a study.timeout_s")
    return f"{trial}; {whole}; shorter with {', '.join(ways[:-1])} or {ways[-1]}"


def _name_left(left: int, study: StudyConfig) -> str:
    if left == study.n_trials:
        return format_counted(left, "trial")
    return "the trial that is left" if left == 1 else f"the {left} trials that are left"
