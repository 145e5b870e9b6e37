"""What the search tells its user, from records and a laboratory alone."""

from __future__ import annotations

import logging
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from search.cli.progress import Progress
from search.cli.showing import greet
from search.config.device import DeviceConfig
from search.config.study import StudyConfig
from search.devices.device import AgentKilled
from search.engine.base import Done, answered
from search.errors import ConfigError, DeviceLost, SearchError, StageFailed
from search.records.device import DeviceProfile
from search.records.steps.step import Step
from search.run import _measure_original
from tests.fakes import lab
from tests.plants import plant


@pytest.mark.parametrize(("accuracy", "warns"), [(0.60, True), (0.62, True), (0.63, False)])
def test_a_teacher_that_guesses_is_told(
    accuracy: float, warns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    greet(replace(lab(), reference_accuracy=accuracy), 3.0)  # of two classes
    assert f"{100 * accuracy:.2f} % on validation" in caplog.text
    assert ("little better than guessing (50.00 %)" in caplog.text) is warns


@pytest.mark.parametrize("accuracy", [0.49, 0.5])
def test_a_teacher_that_guesses_is_refused_unless_any_accuracy_will_do(accuracy: float) -> None:
    worse = replace(lab(), reference_accuracy=accuracy)
    with pytest.raises(ConfigError, match=r"0 % on .* gives 50.00 %; .*min_accuracy_share=0"):
        greet(worse, 3.0)
    greet(replace(lab(min_accuracy_share=0.0), reference_accuracy=accuracy), 3.0)


@pytest.mark.parametrize(
    ("n_trials", "said"),
    [
        (3, "continuing s after 2 trials"),
        (2, "s has 2 trials already: for more, give study.n_trials above it"),
        (1, "s has 2 trials already: for more, give study.n_trials above it"),
        (None, "continuing s after 2 trials"),
    ],
)
def test_a_continued_study_says_where_it_stands(
    n_trials: int | None, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    config = StudyConfig(name="s", n_trials=n_trials, timeout_s=60.0, warm_start=(), seed=0)
    progress = Progress(Console(), config, ("accuracy", "latency"))
    progress.begin([plant(0), plant(1)])
    assert caplog.messages == [said]


class Failing:
    """An engine whose every step fails."""

    slots = 1

    def __init__(self, error: SearchError) -> None:
        self._error = error

    def describe(self, config: DeviceConfig) -> DeviceProfile:
        raise self._error

    def submit(self, _: Step[Any], title: str = "") -> Future[Done]:
        return answered(self._fail)

    def _fail(self) -> Done:
        raise self._error


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (AgentKilled("measure", "the agent died with status -9"), DeviceLost),
        (StageFailed("measure", "no such operator"), ConfigError),
    ],
)
def test_a_killed_agent_is_no_fault_of_the_network(
    error: SearchError, raised: type[SearchError]
) -> None:
    with pytest.raises(raised):
        _measure_original(lab().bench, Failing(error))
