"""What runs is told: on a line every half minute, or on the live display."""

from __future__ import annotations

import io
import logging
import time
from dataclasses import replace

import pytest
from rich.console import Console

from search.cli import progress
from search.cli.progress import Progress
from search.config.study import FinalistsConfig, StudyConfig
from search.engine.base import Event, announced
from search.process import activity
from search.process.activity import Activity, listening, tell
from search.recipes.closing import close
from search.records.steps.measuring import Confirm
from search.records.steps.pruning import Prune
from search.study.forecast import describe_forecast, forecast
from tests.deployables import make_deployable
from tests.fakes import NETWORK, POLICY, FakeEngine, lab
from tests.plants import MODEL, plant

STEP = Prune(NETWORK, 0.5, 8)
STUDY = StudyConfig(name="study", n_trials=10, timeout_s=None, warm_start=(), seed=0)
ROUND = FinalistsConfig(count=4, epochs=2.0, budget_s=5.0)


@pytest.fixture(autouse=True)
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every telling is passed on."""
    monkeypatch.setattr(activity, "LEAST_S", 0.0)


def shown(terminal: bool = False) -> tuple[Progress, io.StringIO]:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=200)
    return Progress(console, STUDY, ("accuracy", "latency")), stream


def begin(title: str = "trial 3") -> Event:
    return Event("began", STEP, title)


def test_nobody_listens() -> None:
    tell("step", 1, 2)  # and nothing happens


def test_a_listener_is_told_and_the_loss_is_read_only_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Loss:
        reads = 0

        def __float__(self) -> float:
            self.reads += 1
            return 0.25

    loss, told = Loss(), list[Activity]()
    with listening(told.append):
        tell("step", 1, 4, loss)
        monkeypatch.setattr(activity, "LEAST_S", 60.0)
        tell("step", 2, 4, loss)
    assert told == [Activity(1, 4, "step", 0.25)]
    assert loss.reads == 1


def test_a_step_is_announced_also_when_it_fails() -> None:
    events: list[Event] = []

    def fail() -> None:
        with announced(STEP, "trial 1", events.append) as listener:
            listener(Activity(1, 2))
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        fail()
    assert [event.state for event in events] == ["began", "goes on", "ended"]
    assert {event.title for event in events} == {"trial 1"}


def test_a_line_says_what_runs_and_how_long_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    told, _ = shown()
    told.note(begin())
    assert told._describe_running() == ["trial 3: pruning, for 0 s"]
    told.note(Event("goes on", STEP, "trial 3", Activity(20, 100, "step", 0.5)))
    now[0] = 130.0
    told.note(Event("goes on", STEP, "trial 3", Activity(40, 100, "step", 0.25)))
    assert told._describe_running() == [  # twenty steps took 30 s
        "trial 3: pruning, step 40 of 100, loss 0.25, about 2 min left"
    ]
    other = replace(STEP, ratio=0.25)
    told.note(Event("began", other, "trial 4"))
    assert len(told._describe_running()) == 2
    told.note(Event("ended", STEP, "trial 3"))
    told.note(Event("goes on", STEP, "trial 3", Activity(41, 100)))  # too late
    assert told._describe_running() == ["trial 4: pruning, for 0 s"]


def test_without_a_terminal_a_line_comes_again_and_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(progress, "TELL_EVERY_S", 0.02)
    told, _ = shown()
    with caplog.at_level(logging.INFO), told:
        tell("image", 5, 10, what="decoding images")  # of no step
        deadline = time.monotonic() + 20
        while not caplog.messages and time.monotonic() < deadline:
            time.sleep(0.01)
        assert "decoding images, image 5 of 10" in caplog.text
        told.note(begin())
        told.begin([])
        while "trial 3: pruning" not in caplog.text and time.monotonic() < deadline:
            time.sleep(0.01)
    assert "trial 3: pruning" in caplog.text
    assert "0 of 10 trials done" in caplog.text
    caplog.clear()
    time.sleep(0.1)
    assert caplog.messages == [], "nobody tells any more"


def test_on_a_terminal_the_display_shows_it_also_the_second_time() -> None:
    told, stream = shown(terminal=True)
    for number in (1, 2):
        with told:
            told.note(begin(f"trial {number}"))
            if told._live is not None:
                told._live.refresh()
        assert f"trial {number}: pruning" in stream.getvalue()


def test_a_forecast_adds_up() -> None:
    known = lab()  # 10 steps of an epoch, 0.1 s each; two rungs; measured with two thread counts
    stage_s = {"measure": 4.0, "export": 1.0, "evaluate": 2.0, "teacher": 99.0}
    policy = replace(POLICY, eta=2.0, deployments=0)
    found = forecast(known, stage_s, STUDY, policy, ROUND, done=4, slots=1)
    assert found.steps == 10
    assert found.training_s == pytest.approx(1.0)
    assert (found.measuring_s, found.other_s) == (2.0, 3.0)
    # Half of the training, and the other half for every second trial, in a pruned network.
    assert found.trial_s == pytest.approx(0.6 * 0.75 * 1.0 + 3.0 + 2.0)
    assert found.study_s == pytest.approx(6 * found.trial_s)
    # Four finalists are trained on, and measured for 5 s each, as the original is.
    assert found.closing_s == pytest.approx(4 * (0.6 * 2.0 + 3.0 + 5.0) + 5.0)
    without = replace(ROUND, count=0)
    assert forecast(known, stage_s, STUDY, policy, without, done=4, slots=1).closing_s == 0.0
    for study in (replace(STUDY, timeout_s=7.0), replace(STUDY, timeout_s=7.0, n_trials=None)):
        assert forecast(known, stage_s, study, policy, ROUND, 0, 1).study_s == 7.0


def test_the_line_tells_all_that_the_total_counts() -> None:
    policy = replace(POLICY, eta=2.0, deployments=2)
    stage_s = {"measure": 4.0, "export": 1.0, "evaluate": 2.0}
    found = forecast(lab(), stage_s, STUDY, policy, ROUND, done=0, slots=1)
    # Every second network is trained to its end, and runs twice otherwise.
    assert found.again_s == pytest.approx(0.5 * 2 * (2.0 + 3.0))
    assert found.study_s == pytest.approx(10 * (found.trial_s + found.again_s))
    assert "), other deployments of its network 5 s; 10" in describe_forecast(found, 0.1, STUDY)


def test_workers_share_the_training_but_not_the_device() -> None:
    stage_s = {"measure": 4.0}
    policy = replace(POLICY, deployments=0)
    many = forecast(lab(), stage_s, STUDY, policy, ROUND, done=0, slots=100)
    assert many.study_s == pytest.approx(10 * 2.0)
    # Nor while it scores.
    scoring = forecast(
        lab(), {**stage_s, "evaluate_on_device": 3.0}, STUDY, policy, ROUND, done=0, slots=100
    )
    assert scoring.other_s == 3.0
    assert scoring.study_s == pytest.approx(10 * (2.0 + 3.0))


def test_the_closing_round_takes_what_its_measuring_is_given() -> None:
    """What it spends on the device is what its step says, whatever the forecast thinks."""
    known, engine = lab(), FakeEngine()
    first = replace(
        plant(0, val_accuracy=0.8, latency_ms=2.0), deployable=make_deployable(MODEL, 8, ())
    )
    better = (
        plant(number, val_accuracy=0.9 + 0.01 * number, latency_ms=0.5 + 0.1 * number)
        for number in range(1, 6)
    )
    records = [first, *better]
    close(records, known, ROUND, engine)
    (confirmed,) = (step for step in engine.computed if isinstance(step, Confirm))
    spent_s = sum(comparison.budget_s for comparison in confirmed.comparisons)
    free = replace(ROUND, epochs=0.0)
    assert spent_s == forecast(known, {}, STUDY, POLICY, free, done=0, slots=1).closing_s


@pytest.mark.parametrize(
    ("stage_s", "way"),
    [
        ({"measure": 900.0}, "shorter with a smaller device.budget_s"),
        ({}, "shorter with fewer train.epochs"),
        ({"evaluate": 900.0}, "shorter with fewer or smaller images"),
    ],
)
def test_the_line_names_what_makes_the_dearest_part_shorter(
    stage_s: dict[str, float], way: str
) -> None:
    found = forecast(lab(), stage_s, STUDY, POLICY, ROUND, done=0, slots=1)
    line = describe_forecast(found, 0.1, STUDY)
    assert way in line
    assert "study.n_trials" in line
    assert "\n" not in line


@pytest.mark.parametrize(
    ("done", "named"),
    [
        (0, "; 10 trials about"),
        (8, "; the 2 trials that are left"),
        (9, "; the trial that is left"),
    ],
)
def test_the_line_counts_the_trials_that_are_left(done: int, named: str) -> None:
    found = forecast(lab(), {"measure": 4.0}, STUDY, POLICY, ROUND, done, slots=1)
    assert named in describe_forecast(found, 0.1, STUDY)


def test_a_study_that_only_time_ends_is_shortened_by_time() -> None:
    study = replace(STUDY, n_trials=None, timeout_s=60.0)
    found = forecast(lab(), {}, study, POLICY, ROUND, done=3, slots=1)
    line = describe_forecast(found, 0.1, study)
    assert "the search ends after study.timeout_s" in line
    assert line.endswith("or a smaller study.timeout_s")
    assert "n_trials" not in line
