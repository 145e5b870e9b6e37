"""Whole searches over the real command line, judged by what a user finds afterwards."""

from __future__ import annotations

import json
import os
import pty
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import yaml
from mlflow.entities import Run
from optuna.trial import FrozenTrial

from search.cli import command as cli
from search.config.commands import SearchConfig
from search.config.parsing import parse
from search.data import describe, load
from search.data.source import Labels, Pixels
from tests import commands
from tests.commands import expect_success
from tests.e2e.searching import (
    SMOKE,
    STUDY,
    TRIALS,
    Tracked,
    begin_beside,
    run,
)
from tests.journals import journal, record_of

# Without its own ways to save training and without a closing round the search is a plain one.
THREE = (
    f"study.n_trials={TRIALS}",
    "objective.names=[accuracy,latency,size]",
    "policy.latency_first=false",
    "policy.eta=null",
    "policy.deployments=0",
    "finalists.count=0",
)
TRIAL_LINE = re.compile(r"^\d\d:\d\d:\d\d trial (\d+) ", re.MULTILINE)
FINALIST_LINE = re.compile(r"^ *(\(?original\)?|orig\.|\d+)(?: [a-z])? +\d+\.\d\d %", re.MULTILINE)
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def non_dominated(trials: dict[int, Run], *losses: str) -> set[int]:
    """Compares every complete trial with every other; accuracy is the one that should be high."""
    points = {
        number: [(-1 if name == "val_accuracy" else 1) * run.data.metrics[name] for name in losses]
        for number, run in trials.items()
        if run.data.tags["outcome"] == "complete"
    }

    def dominates(one: list[float], other: list[float]) -> bool:
        return one != other and all(a <= b for a, b in zip(one, other, strict=True))

    return {n for n, p in points.items() if not any(dominates(q, p) for q in points.values())}


def best_beside(trials: dict[int, Run], number: int, *losses: str) -> set[int]:
    """The front of one trial and of all whose measurements are not poor."""
    sound = {n: run for n, run in trials.items() if run.data.tags.get("measuring") != "poor"}
    return non_dominated({**sound, number: trials[number]}, *losses)


def accuracy(model: Path, options: str, images: Pixels, labels: Labels) -> float:
    """Scores a model as its description says, by hand.

    Args:
        model: ONNX file.
        options: Such as ``intra_op_num_threads=1, session.some_entry=1``.
        images: ``[n, C, H, W]`` in 0..255.
        labels: Class indices, ``[n]``.
    """
    session_options = onnxruntime.SessionOptions()
    for option in options.split(", "):
        key, _, value = option.partition("=")
        if key == "intra_op_num_threads":
            session_options.intra_op_num_threads = int(value)
        else:
            session_options.add_session_config_entry(key, value)
    session = onnxruntime.InferenceSession(
        str(model), session_options, providers=["CPUExecutionProvider"]
    )
    (given,) = session.get_inputs()
    right = 0
    for begin in range(0, len(labels), 37):  # divides nothing: the last batch is smaller
        pixels = images[begin : begin + 37].astype(np.float32) / np.float32(255)
        (logits,) = session.run(None, {given.name: pixels})
        right += int((logits.argmax(1) == labels[begin : begin + 37]).sum())
    return right / len(labels)


# ---- one search, looked at from all sides


def test_search_prints_its_front_and_where_to_look(finished: tuple[Path, str]) -> None:
    folder, printed = finished
    front = Tracked(folder).tagged()
    # Beside the letter of a tie there is little place.
    shown = [name.replace("orig.", "original") for name in FINALIST_LINE.findall(printed)]
    beside = [] if 0 in front else ["(original)"]
    names = ["original" if number == 0 else str(number) for number in front]
    assert sorted(shown) == sorted([*names, *beside])
    assert f"python -m search.ui --state {folder / 'mlruns'} " in printed
    # Whole: a line break inside would make the address useless.
    (address,) = re.findall(r"http://127\.0\.0\.1:5000/\S+", printed)
    run_id = Tracked(folder).parent.info.run_id
    assert address.endswith(f"/runs/{run_id}?workflowType=machine_learning")


def test_search_logs_one_line_a_trial_without_a_terminal(finished: tuple[Path, str]) -> None:
    folder, printed = finished
    assert TRIAL_LINE.findall(printed) == [str(trial.number) for trial in journal(folder, STUDY)]
    assert "\x1b" not in printed


def test_search_leaves_only_mlruns(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    assert [path.name for path in folder.iterdir()] == ["mlruns"]


def test_every_trial_is_told_and_tracked_once(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    assert_whole(folder, TRIALS)


def test_front_is_what_stands_of_the_finalists(finished: tuple[Path, str], tmp_path: Path) -> None:
    folder, _ = finished
    tracked = Tracked(folder)
    summary = json.loads(tracked.read(tracked.parent, "front.json", tmp_path).read_text())
    losses = ("val_accuracy", "latency_ms")
    searched = non_dominated(tracked.trials, *losses)
    chosen = {row["number"] for row in summary["finalists"]}
    assert 0 in chosen
    # A point may stand beside what beats it by a poor measurement's centre.
    assert all(number in best_beside(tracked.trials, number, *losses) for number in chosen - {0})
    # Trials that deploy the same file count once: one that lost no channel is the original again.
    found = [tracked.trials[number].data.metrics for number in searched]
    distinct = {(metrics["val_accuracy"], metrics["latency_ms"]) for metrics in found}
    # The original takes part whether it is among the two or not.
    assert min(2, len(distinct)) <= len(chosen) <= 3
    assert tracked.tagged() == {row["number"] for row in summary["finalists"] if row["stands"]}
    for row in summary["finalists"]:
        metrics = tracked.trials[row["number"]].data.metrics
        assert metrics["test_accuracy"] == row["test_accuracy"]
        assert metrics["test_accuracy_low"] < metrics["test_accuracy"]


def test_students_are_deployed_otherwise(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    records = [record_of(trial) for trial in journal(folder, STUDY)]
    others = [record for record in records if record["student_of"] is not None]
    assert others
    trained = {record["number"]: record for record in records}
    for record in others:
        # The very seconds that the training took: it is the same one.
        first = trained[record["student_of"]]
        assert record["stage_s"].get("finetune") == first["stage_s"].get("finetune")


def test_logged_models_are_as_accurate_as_logged(
    finished: tuple[Path, str], tmp_path: Path
) -> None:
    folder, _ = finished
    tracked = Tracked(folder)
    settings = tracked.read(tracked.parent, "config.yaml", tmp_path).read_text()
    splits = load(describe(parse(yaml.safe_load(settings), SearchConfig).data))
    validation, test = splits.validation, splits.test
    assert isinstance(validation.images, np.ndarray)
    assert isinstance(test.images, np.ndarray)
    for number in tracked.tagged():
        trial = tracked.trials[number]
        model = tracked.read(trial, "model.onnx", tmp_path)
        (options,) = re.findall(
            r"in onnxruntime with `([^`]*)`", trial.data.tags["mlflow.note.content"]
        )
        computed = accuracy(model, options, validation.images, validation.labels)
        assert computed == pytest.approx(trial.data.metrics["val_accuracy"])
        assert model.stat().st_size == trial.data.metrics["size_bytes"]
        final = tracked.read(trial, "final/model.onnx", tmp_path)
        computed = accuracy(final, options, test.images, test.labels)
        assert computed == pytest.approx(trial.data.metrics["test_accuracy"])


def test_same_command_again_adds_nothing(finished: tuple[Path, str]) -> None:
    folder, first = finished
    before = {n: run.to_dictionary() for n, run in Tracked(folder).trials.items()}
    printed = run(folder, f"study.n_trials={TRIALS}")
    assert TRIAL_LINE.findall(printed) == []
    assert FINALIST_LINE.findall(printed) == FINALIST_LINE.findall(first) != []
    assert {n: run.to_dictionary() for n, run in Tracked(folder).trials.items()} == before
    assert_whole(folder, TRIALS)


def test_a_finished_trial_is_explained_once(finished: tuple[Path, str], tmp_path: Path) -> None:
    # Finalists were explained for the page already.
    folder = begin_beside(finished[0], tmp_path / "explained", "profile")
    shutil.copytree(finished[0] / "mlruns" / "studies", folder / "mlruns" / "studies")
    complete = {
        number: run
        for number, run in Tracked(finished[0]).trials.items()
        if run.data.tags["outcome"] == "complete"
    }
    # What lost no channel computes what the original does, and reads otherwise.
    number = str(min(complete, key=lambda number: complete[number].data.metrics["macs"]))
    wanted = (folder, "search.explain", f"study={STUDY}", f"trial={number}")
    first = expect_success(commands.run_fresh(*wanted))
    assert first.startswith("profiling on local ...\n")
    for part in (f"trial {number}", "conv", "(call)", "100 %", "Cold start", "original's time"):
        assert part in first
    assert max(len(line) for line in first.splitlines()) <= 80
    again = expect_success(commands.run(*wanted))
    assert again.startswith("remembered; to measure it again, remove mlruns/store/steps/profile\n")
    assert first.partition("\n")[2] == again.partition("\n")[2]


# ---- a larger budget, in a terminal


@pytest.fixture(scope="module")
def continued(
    finished: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """A working directory with a continued search, and what its terminal showed.

    It begins without a database: what is missing there is logged from the journal.
    """
    folder = begin_beside(finished[0], tmp_path_factory.mktemp("terminal"))
    shutil.copytree(finished[0] / "mlruns" / "studies", folder / "mlruns" / "studies")
    terminal, inside = pty.openpty()
    process = subprocess.Popen(
        commands.line("search.run", *SMOKE, f"study.n_trials={TRIALS + 2}", "finalists.count=0"),
        cwd=folder,
        env={**commands.environment(), "TERM": "xterm", "COLUMNS": "100", "LINES": "40"},
        stdin=inside,
        stdout=inside,
        stderr=inside,
    )
    os.close(inside)
    shown = ESCAPES.sub("", read_terminal(terminal))
    assert process.wait(commands.TIMEOUT_S) == 0, shown
    return folder, shown


def test_larger_budget_continues(finished: tuple[Path, str], continued: tuple[Path, str]) -> None:
    folder, _ = continued
    assert_whole(folder, TRIALS + 2)
    kept = [trial.params for trial in journal(finished[0], STUDY)]
    assert [trial.params for trial in journal(folder, STUDY)][: len(kept)] == kept


def test_terminal_shows_the_live_display(continued: tuple[Path, str]) -> None:
    _, shown = continued
    assert "Traceback" not in shown
    for part in (f"{TRIALS} of {TRIALS + 2} trials", "hypervolume", "front of"):
        assert part in shown
    numbers = [int(number) for number in re.findall(r"trial (\d+) (?:complete|stopped): ", shown)]
    assert numbers == sorted(numbers)
    assert len(numbers) >= 2
    # The display goes away when the search ends: the front is the last table.
    assert shown.rindex(f"of {TRIALS + 2} trials") < shown.rindex("Look at it")


def read_terminal(terminal: int) -> str:
    """Reads until the program at the other end is gone."""
    chunks = []
    while True:
        try:
            chunk = os.read(terminal, 1 << 16)
        except OSError:  # Linux: nobody holds the other end
            break
        if not chunk:
            break
        chunks.append(chunk)
    os.close(terminal)
    return b"".join(chunks).decode()


# ---- three objectives, and two kills on the way


@pytest.fixture(scope="module")
def killed(finished: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with a search for three objectives that was killed twice and ended."""
    folder = begin_beside(finished[0], tmp_path_factory.mktemp("killed"), "finetune", "evaluate")
    moments = random.Random(7)
    for trial in (1, 3):
        kill_after(folder, trial, moments.uniform(0.0, 1.0))
    told = [trial.number for trial in journal(folder, STUDY) if trial.state.is_finished()]
    assert 3 < len(told) < TRIALS, "the kills did not come in the middle of the search"
    run(folder, *THREE)
    return folder


def test_killed_search_goes_on_as_if_never_killed(killed: Path, tmp_path: Path) -> None:
    assert_whole(killed, TRIALS)
    beside = begin_beside(killed, tmp_path)  # measured figures come from the store
    run(beside, *THREE)
    told = [
        [(t.params, t.values, t.state) for t in journal(folder, STUDY)]
        for folder in (killed, beside)
    ]
    assert told[0] == told[1]


def test_third_objective_decides_the_front(killed: Path) -> None:
    tracked = Tracked(killed)
    losses = ("val_accuracy", "latency_ms", "size_bytes")
    # Of several trials with one model the first stands for all.
    points = {
        number: tuple(run_.data.metrics.get(name) for name in losses)
        for number, run_ in tracked.trials.items()
    }
    best = non_dominated(tracked.trials, *losses)
    # A point may stand beside what beats it by a poor measurement's centre.
    assert all(n in best_beside(tracked.trials, n, *losses) for n in tracked.tagged())
    assert {points[n] for n in tracked.tagged()} >= {points[n] for n in best}
    assert [len(trial.values or ()) for trial in journal(killed, STUDY)] == [3] * TRIALS


def kill_after(folder: Path, trial: int, delay_s: float) -> None:
    """Runs the search and kills it some time after a trial's line."""
    with subprocess.Popen(
        commands.line("search.run", *SMOKE, *THREE),
        cwd=folder,
        env={**commands.environment(), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if f" trial {trial} " in line:
                time.sleep(delay_s)
                process.kill()
                break


def is_asked(trial: FrozenTrial) -> bool:
    """Whether the trial is one that Optuna was asked for."""
    return bool(record_of(trial)["student_of"] is None)


def assert_whole(folder: Path, n_trials: int) -> None:
    """No trial is missing, doubled or half done, neither in Optuna nor in MLflow."""
    told = journal(folder, STUDY)
    numbers = list(range(len(told)))
    assert [trial.number for trial in told] == numbers
    assert sum(map(is_asked, told)) == n_trials
    assert all(trial.state.is_finished() for trial in told)
    tracked = Tracked(folder)
    assert sorted(tracked.trials) == numbers
    assert tracked.parent.info.status == "FINISHED"
    for run_ in tracked.trials.values():
        outcome = run_.data.tags["outcome"]
        assert run_.info.status == ("FAILED" if outcome == "failed" else "FINISHED")
        listed = tracked.client.list_artifacts(run_.info.run_id)
        files = [entry.path for entry in listed if entry.path != "bundle"]  # of what was picked
        final = ["final"] if "finalist" in run_.data.tags else []  # of any closing round
        assert files == ([*final, "model.onnx"] if outcome == "complete" else [])
    points = [
        metric.step
        for metric in tracked.client.get_metric_history(tracked.parent.info.run_id, "hypervolume")
    ]
    assert points == numbers
    values = [
        metric.value
        for metric in tracked.client.get_metric_history(tracked.parent.info.run_id, "hypervolume")
    ]
    assert all(later >= earlier for earlier, later in pairwise(values))


# ---- every configuration on offer


def compose(
    overrides: Sequence[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> SearchConfig:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["search.run"])
    seen: list[SearchConfig] = []

    def keep(raw: Any, _: str) -> int:
        seen.append(parse(raw, SearchConfig))
        return 0

    assert cli.main(keep, list(overrides)) == 0
    (config,) = seen
    return config


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (cli.CONF / group).glob("*.yaml"))


@pytest.mark.parametrize("name", options("experiment"))
def test_experiment_is_valid(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = compose([f"experiment={name}"], tmp_path, monkeypatch)
    assert name == "default" or config.study.name.startswith(name)


@pytest.mark.parametrize("name", options("sampler"))
def test_sampler_is_valid(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert compose([f"sampler={name}"], tmp_path, monkeypatch).sampler.name == name
