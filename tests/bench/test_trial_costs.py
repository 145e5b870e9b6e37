"""What one trial of a real study costs, stage by stage, and what is neither training nor timing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

ROOT = Path(__file__).parents[2]
TRIALS = 16
# First exports, imports and warm-ups fall into these.
FIRST_STEADY = 5
TIMEOUT_S = 3600
# Of a whole trial or of its run, not of a stage.
NOT_STAGES = {"wall_s"}


@pytest.mark.bench
@pytest.mark.timeout(TIMEOUT_S)
def test_trial_costs(tmp_path: Path) -> None:
    data = search(tmp_path)
    trials = steady_trials(tmp_path, data)
    print(f"\ncnn on {data}, {len(trials)} trials after the first {FIRST_STEADY}; medians:")
    for stage in sorted({name for trial in trials for name in stages(trial)}):
        seconds = [stages(trial)[stage] for trial in trials if stage in stages(trial)]
        print(f"  {stage.removesuffix('_s'):<24}{median(seconds):8.3f} s as first computed")
    print_line("whole trial", [trial.data.metrics["wall_s"] for trial in trials])
    print_line("between trials", between(trials), "tell, log, ask")
    rest = neither_trained_nor_measured(trials)
    print_line("neither train nor measure", rest, "between trials included")


def search(folder: Path) -> str:
    """Runs a short study and returns the data set that it could get, which names the study too."""
    complaints = []
    for data in ("fashion_mnist", "digits"):
        command = [
            sys.executable, "-m", "search.run", f"data={data}", "model=cnn",
            f"study.name={data}", f"study.n_trials={TRIALS}", "train.teacher_epochs=2",
        ]  # fmt: skip
        result = subprocess.run(
            command,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        if result.returncode == 0:
            return data
        complaints.append(result.stderr)
    raise AssertionError("\n".join(complaints))


def steady_trials(folder: Path, study: str) -> list[Run]:
    client = MlflowClient(f"sqlite:///{folder / 'mlruns' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name(study)
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id], "tags.kind = 'trial'")
    runs = sorted(found, key=lambda run: int(run.data.tags["trial"]))
    return [run for run in runs[FIRST_STEADY:] if run.data.tags["outcome"] == "complete"]


def stages(trial: Run) -> Mapping[str, float]:
    """Seconds of each stage, of a reused step those that it took when it was computed."""
    metrics = trial.data.metrics
    return {
        name: s for name, s in metrics.items() if name.endswith("_s") and name not in NOT_STAGES
    }


def between(trials: Sequence[Run]) -> list[float]:
    """Seconds from the end of each trial to the beginning of the next, which no trial counts."""
    neighbours = [
        (one, two)
        for one, two in pairwise(trials)
        if int(two.data.tags["trial"]) == int(one.data.tags["trial"]) + 1
    ]
    return [(two.info.start_time - one.info.end_time) / 1000 for one, two in neighbours]


def neither_trained_nor_measured(trials: Sequence[Run]) -> list[float]:
    """Seconds of each trial beside fine-tuning and measuring, with what passes between trials."""
    own = [
        trial.data.metrics["wall_s"]
        - stages(trial).get("finetune_s", 0.0)
        - stages(trial).get("measure_s", 0.0)
        for trial in trials
    ]
    pause = median(between(trials) or [0.0])
    # Below zero: the fine-tuning or the measurement was an earlier trial's.
    return [seconds + pause for seconds in own if seconds >= 0]


def print_line(name: str, seconds: Sequence[float], remark: str = "") -> None:
    value = f"{median(seconds):8.3f} s" if seconds else "       - s"
    print(f"  {name:<24}{value} {f'({remark}; {len(seconds)} trials)' if remark else ''}".rstrip())
