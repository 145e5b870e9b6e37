"""What the command line that brings MLflow up to date says, and refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from search.cli.remarks import COMMENT_COLUMN
from search.storage.journal import Journal
from search.sync import main
from tests.fakes import FakeEngine, lab, trials_of
from tests.unit.test_study import open_study


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["sync.py"])
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "study is not given, and there is none; run it where one is kept"),
        (["study=s"], "study=s: there is no such study; there are none"),
        (["study=a/b"], "study='a/b': input should be 1 to 100 letters"),
        (["tracking.uri=foo"], "tracking.uri='foo': input should be a server such as"),
        (["stud=s"], "stud=s: there is no such key (did you mean study?); there are storage, st"),
    ],
)
def test_refusal(
    arguments: list[str], said: str, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(f"error: {said}")
    assert printed.err.count("\n") == 1
    assert printed.out == ""
    assert not (elsewhere / "mlruns" / "mlflow.db").exists()


def test_a_study_that_has_not_begun_is_passed_over(
    elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Journal(elsewhere / "mlruns" / "studies", "s") as journal:
        open_study(journal, 1)
    assert main(["study=s"]) == 2
    assert "study=s: its uncompressed network is not measured yet" in capsys.readouterr().err
    assert main([]) == 0
    assert "study=s: its uncompressed network is not measured yet" in capsys.readouterr().out


def test_without_the_models_nothing_is_delivered(
    elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Journal(elsewhere / "mlruns" / "studies", "s") as journal:
        study = open_study(journal, 2)
        study.keep_lab(lab(), "")
        list(trials_of(study, lab(), FakeEngine()))
    assert main(["study=s"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: study=s: none of its models is in mlruns/store")
    assert said.count("\n") == 1
    assert not (elsewhere / "mlruns" / "mlflow.db").exists()


@pytest.fixture
def studies(elsewhere: Path) -> Path:
    """Where studies are kept, empty."""
    folder = elsewhere / "mlruns" / "studies"
    folder.mkdir(parents=True)
    return folder


def test_a_damaged_study_does_not_hold_up_the_others(
    studies: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (studies / "bad.journal").write_text("{}\n")
    with Journal(studies, "s") as journal:
        open_study(journal, 1)
    assert main([]) == 2
    printed = capsys.readouterr().out
    assert "bad.journal: is damaged" in printed
    assert "study=s: " in printed


def test_a_study_killed_before_its_first_line_is_not_ready(
    studies: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (studies / "s.journal").write_text("")
    assert main([]) == 0
    assert "study=s: its uncompressed network is not measured yet" in capsys.readouterr().out


def test_every_key_is_explained(capsys: pytest.CaptureFixture[str], elsewhere: Path) -> None:
    assert main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for key in ("study: null ", "  uri: null ", "  timeout_s: 10.0 "):
        (line,) = (line for line in lines if line.startswith(key))
        assert line.index("  # ") == COMMENT_COLUMN
    assert list(elsewhere.iterdir()) == []
