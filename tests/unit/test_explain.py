"""Which trial is explained, and what the command line says where there is none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from search.cli.remarks import COMMENT_COLUMN
from search.engine.driving import drive
from search.errors import ConfigError
from search.explain import choose, main
from search.recipes.deploying import profile
from search.records.closing import Closing, Finalist
from search.records.steps.measuring import Profile
from search.records.steps.step import Step
from search.records.trial import ScoredTrial, TrialRecord
from search.study.archive import Archive
from tests.deployables import make_deployable
from tests.fakes import FakeEngine, file, lab
from tests.plants import plant, plant_finalist

FINAL = make_deployable(file("trained on"), 8, ())


@pytest.fixture
def archive() -> Archive:
    """Three trials, of which the second has no model and the last is the fastest."""
    original, model = (
        make_deployable(file("original"), 32, ()),
        make_deployable(file("model"), 8, ()),
    )
    records = (
        replace(plant(0, latency_ms=1.0), deployable=original),
        plant(1, outcome="stopped"),
        replace(plant(2, latency_ms=0.4, val_accuracy=0.8), deployable=model),
    )
    return Archive("s", "identity", "", lab(), records, None, {}, None, ())


def finalist(record: TrialRecord, stands: bool = True) -> Finalist:
    assert isinstance(record, ScoredTrial)
    return plant_finalist(record, deployable=FINAL, stands=stands)


def test_the_trials_model_is_explained(archive: Archive) -> None:
    chosen = choose(archive, 2)
    assert chosen == (2, archive.records[2].deployable, 2, archive.records[2].figures)


def test_a_finalists_model_comes_first(archive: Archive) -> None:
    closed = replace(archive, closing=Closing(3, (finalist(archive.records[2]),), ()))
    assert choose(closed, 2).deployable == FINAL
    assert choose(closed, 0).deployable != FINAL


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (1, "trial=1: has no model; with a model there are 0, 2"),
        (9, "trial=9: there is no such trial; with a model there are 0, 2"),
        (None, "trial is not given; add trial=...: on the front of s are 0, 2"),
    ],
)
def test_what_there_is_to_explain(archive: Archive, number: int | None, said: str) -> None:
    with pytest.raises(ConfigError) as raised:
        choose(archive, number)
    assert str(raised.value) == said


def test_the_closing_rounds_front_is_the_front(archive: Archive) -> None:
    finalists = (finalist(archive.records[0], stands=False), finalist(archive.records[2]))
    closed = replace(archive, closing=Closing(3, finalists, ()))
    with pytest.raises(ConfigError, match=r"on the front of s are 2$"):
        choose(closed, None)


def test_the_original_runs_with_its_best_threads() -> None:
    asked: list[Step[object]] = []
    with pytest.raises(AssertionError, match="no answer"):
        drive(profile(FINAL, 1, lab()), FakeEngine(asked.append))
    (step,) = asked
    assert isinstance(step, Profile)
    pair = step.comparison
    assert (pair.deployable, pair.threads) == (FINAL, 1)
    assert (pair.reference, pair.reference_threads) == (lab().reference, 2)


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["explain.py"])
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "study is not given; add study=...: there are none"),
        (["study=s", "trial=1"], "study=s: there is no such study; there are none"),
        (["study=a/b"], "study='a/b': input should be 1 to 100 letters"),
        (["study=s", "trial=-1"], "trial=-1: input should be greater than or equal to 0"),
        (["study=s", "trial=x", "top=0"], "trial='x': input should be a whole number; top=0: "),
        (["trail=3"], "trail=3: there is no such key (did you mean trial?); there are storage, "
         "study, top, trial"),
    ],
)  # fmt: skip
def test_refusal(
    arguments: list[str], said: str, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(f"error: {said}")
    assert printed.err.count("\n") == 1
    assert printed.out == ""


def test_every_key_is_explained(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for key in ("study: null ", "trial: null ", "top: 12 "):
        (line,) = (line for line in lines if line.startswith(key))
        assert line.index("  # ") == COMMENT_COLUMN
    assert list(elsewhere.iterdir()) == []
