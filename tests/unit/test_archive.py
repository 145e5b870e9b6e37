"""What a study leaves behind is read back as it was, also while it is being searched."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from search.errors import ConfigError
from search.records.closing import Closing
from search.records.measurement import Canary, Interval
from search.storage.journal import Journal, Journals
from search.study.archive import read_archive, read_record, write_record
from tests.fakes import FakeEngine, lab, trials_of
from tests.plants import plant
from tests.unit.test_study import open_study

CANARY = Canary(3, Interval(1.0, 0.99, 1.02), "resolved")


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path, "s")


def test_a_study_is_read_back_as_it_was(journal: Journal, tmp_path: Path) -> None:
    with journal:
        study = open_study(journal, 3)
        study.keep_lab(lab(), "seed: 0\n")
        records = tuple(trials_of(study, lab(), FakeEngine()))
        study.keep_closing(Closing(3, (), (CANARY,)))
        archive = read_archive(Journals(tmp_path), "s", "study")  # while the other holds it
    assert archive.records == records
    assert archive.lab == lab()
    assert archive.closing == Closing(3, (), (CANARY,))
    assert archive.objectives == ("accuracy", "latency")
    assert archive.configuration == "seed: 0\n"
    assert archive.identity == study.identity


def test_a_lab_that_stays_is_written_once(journal: Journal) -> None:
    with journal:
        study = open_study(journal, 1)
        study.keep_lab(lab(), "seed: 0\n")
        size = journal.path.stat().st_size
        study.keep_lab(lab(), "seed: 0\n")
        assert journal.path.stat().st_size == size


def test_a_study_without_its_lab_is_explained(journal: Journal, tmp_path: Path) -> None:
    with journal:
        open_study(journal, 1)
    with pytest.raises(ConfigError, match=r"study=s: .*not measured yet"):
        read_archive(Journals(tmp_path), "s", "study")


@pytest.mark.parametrize(("name", "answer"), [("t", "no such study"), (None, "is not given")])
def test_studies_there_are_named(
    journal: Journal, tmp_path: Path, name: str | None, answer: str
) -> None:
    with journal:
        open_study(journal, 1)
    with pytest.raises(ConfigError, match=f"{answer}.*there are s"):
        read_archive(Journals(tmp_path), name, "study")


def test_a_figure_that_is_no_number_stays_what_it_is() -> None:
    record = plant(3, latency_ratio_high=math.inf, cpu_ms=math.nan)
    back = read_record(write_record(record))
    assert back.figures is not None
    assert back.figures.latency_ratio_high == math.inf
    assert math.isnan(back.figures.cpu_ms)
    assert replace(back, figures=record.figures) == record
