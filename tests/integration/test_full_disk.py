"""A disk that is full, read-only or cannot flush stops a study, and harms nothing."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from search.cli import command as cli
from search.engine.inline import InlineEngine
from search.engine.store import Store
from search.records.deployable import Deployable
from search.records.steps.exporting import Quantize
from search.stages import quantize
from search.storage.journal import Journal
from tests.deployables import make_deployable, make_quantize
from tests.fakes import DATA, FakeEngine, file, lab, trials_of
from tests.full_disk import files_of_at_most
from tests.unit.test_study import essence, open_study, told

N_TRIALS = 7


def search(folder: Path) -> tuple[list[Any], list[Any]]:
    """Returns what Optuna was told, and the records."""
    with Journal(folder, "s") as journal:
        study = open_study(journal, N_TRIALS)
        list(trials_of(study, lab(), FakeEngine()))
        return told(journal), [essence(record) for record in study.records]


def test_a_study_goes_on_after_a_full_disk(tmp_path: Path) -> None:
    wanted = search(tmp_path / "whole")
    size = (tmp_path / "whole" / "s.journal").stat().st_size
    for full_at in range(size // 40, size, size // 17):
        folder = tmp_path / str(full_at)
        with pytest.raises(OSError, match="File too large"), files_of_at_most(full_at):
            search(folder)
        kept = (folder / "s.journal").read_bytes()
        assert len(kept) <= full_at, "nothing of the rest was written"
        assert kept.endswith(b"\n"), "nothing half is left for others to write behind"
        assert search(folder) == wanted, full_at


def test_what_is_written_once_there_is_room_again_spoils_nothing(tmp_path: Path) -> None:
    wanted = search(tmp_path / "whole")
    with Journal(tmp_path, "s") as journal:
        study = open_study(journal, N_TRIALS)
        trials = trials_of(study, lab(), FakeEngine())
        next(trials)
        room = journal.path.stat().st_size + 20
        with pytest.raises(OSError, match="File too large"), files_of_at_most(room):
            next(trials)
        study.keep_ending("FAILED")
    assert search(tmp_path) == wanted


def test_a_study_goes_on_after_a_failed_flush(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0
    fail_at = 0
    flush = os.fsync

    def fsync(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls == fail_at:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    wanted = search(tmp_path / "whole")
    for at in range(1, calls, max(1, calls // 12)):
        calls, fail_at = 0, at
        with pytest.raises(OSError, match="Input/output error"):
            search(tmp_path / str(at))
        assert search(tmp_path / str(at)) == wanted, at


STEP = make_quantize(file("float"), 8, "u8s8", DATA, 8, 0)


def test_the_store_keeps_nothing_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = b"model" * 10_000

    def stage(step: Quantize, artifacts: Store) -> Deployable:
        return make_deployable(artifacts.put(content, ".onnx"), step.format.bits, ())

    monkeypatch.setattr(quantize, "run", stage)
    engine = InlineEngine(Store(tmp_path), lambda step: None)
    for full_at in (0, 100, 10_000):
        with pytest.raises(OSError, match="File too large"), files_of_at_most(full_at):
            engine.run(STEP)
        assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    done = engine.run(STEP)
    assert not done.reused
    assert Store(tmp_path).path(done.result.model).read_bytes() == content


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_the_user_is_told_in_one_line(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(raw: Any, settings: str) -> int:
        raise OSError(code, os.strerror(code), str(tmp_path / "s.journal"))

    monkeypatch.chdir(tmp_path)
    assert cli.main(fail, []) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {tmp_path / 's.journal'}: {os.strerror(code)}; ")
    assert said.count("\n") == 1
