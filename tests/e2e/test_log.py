"""A search leaves a log that says more than it showed."""

from __future__ import annotations

from pathlib import Path

from tests.e2e.searching import STUDY, TRIALS


def test_a_search_leaves_its_whole_log(finished: tuple[Path, str]) -> None:
    folder, printed = finished
    (path,) = (folder / "mlruns" / "logs").iterdir()
    assert path.name == f"{STUDY}.log"
    written = path.read_text(encoding="utf-8")
    head = written.splitlines()[1]
    assert head.startswith("==== 2")
    assert head.endswith("finalists.budget_s=2.0 study.n_trials=10")
    assert f"INFO search.run: study {STUDY}:" in written
    assert "DEBUG search.engine.base: stage finetune took" in written
    assert "stage finetune took" not in printed
    told = [line for line in written.splitlines() if "INFO search.cli.progress: trial " in line]
    assert len(told) >= TRIALS
    assert "most memory held: this process" in written
