"""The closing round of models too slow for as many launches as its statements need."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from search.benchmark.estimates import highest_level, launches_needed
from search.config.study import RandomConfig, StudyConfig
from search.front.standing import joint_level
from search.recipes.closing import Contender, confirm, judge
from search.records.measurement import Session
from search.records.steps.measuring import Confirm
from search.space.parsing import parse_space
from search.storage.journal import Journal
from search.study.study import Study
from tests.fakes import PLAIN, FakeEngine, lab, measurement, score, trials_of
from tests.unit.test_finalists import IMAGES, OBJECTIVES, contender
from tests.unit.test_study import SPACE

RATIOS = (1.0, 0.9, 0.8)


@pytest.fixture
def contenders(tmp_path: Path) -> list[Contender]:
    with Journal(tmp_path, "s") as journal:
        config = StudyConfig(name="s", n_trials=1, timeout_s=None, warm_start=(), seed=1)
        study = Study(journal, config, parse_space(SPACE, usable_cores=2), OBJECTIVES, {})
        trials = trials_of(study, lab(), FakeEngine(), PLAIN, RandomConfig(name="random"))
        record = next(trials)
        return [contender(number, record, score(0.9, IMAGES)) for number in range(len(RATIOS))]


def session(launches: int) -> Session:
    rng = np.random.default_rng(0)
    told = tuple(replace(measurement(ratio), launches=launches) for ratio in RATIOS)
    return Session(
        told,
        tuple(tuple(math.log(r) + rng.normal(0, 0.004, launches)) for r in RATIOS),
        tuple((one.cpu_ms,) * launches for one in told),
        tuple((one.peak_rss_bytes,) * launches for one in told),
    )


@pytest.mark.parametrize("missing", [0, 4])
def test_fewer_launches_lower_the_level_and_are_told(
    contenders: list[Contender], missing: int, caplog: pytest.LogCaptureFixture
) -> None:
    joint = joint_level(len(RATIOS), OBJECTIVES)
    wanted = launches_needed(joint)
    recipe = confirm(contenders, lab(), 10.0)
    asked = next(recipe)
    assert isinstance(asked, Confirm)
    assert asked.launches == wanted
    told = session(wanted - missing)
    with pytest.raises(StopIteration) as end:
        recipe.send(told)
    found, level = end.value.value
    assert found == told
    assert (f"of {wanted} of each model" in caplog.text) is (missing > 0)
    assert level == (highest_level(wanted - missing) if missing else joint)
    # All that is published is finite, and what is clearly slower still leaves.
    finalists = judge(contenders, found, level, lab())
    assert all(math.isfinite(f.figures.speedup_high or math.inf) for f in finalists)
    assert [f.number for f in finalists if f.stands] == [2]
