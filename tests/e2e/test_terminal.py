"""Commands that end well on terminals that know few letters."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tests import commands
from tests.e2e.searching import SMOKE, STUDY, TRIALS

ASCII = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}


@pytest.mark.parametrize("variables", [ASCII, {"PYTHONIOENCODING": "latin-1"}], ids=["C", "Latin"])
def test_a_front_is_listed(
    variables: dict[str, str], finished: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    # Read as it was written: commands' tests read UTF-8.
    monkeypatch.setenv("PYTHONIOENCODING", variables.get("PYTHONIOENCODING", "ascii"))
    done = commands.run_fresh(finished[0], "search.pick", f"study={STUDY}", encoding="latin-1")
    printed = commands.expect_success(done)
    assert "Pick one:    python -m search.pick" in printed
    assert re.search(r"\d\.\d+[x\N{MULTIPLICATION SIGN}]", printed)


@pytest.mark.parametrize("variables", [ASCII, {}], ids=["C", "stream"])
def test_a_search_ends(
    variables: dict[str, str],
    finished: tuple[Path, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A whole search, but for steps that are remembered."""
    shutil.copytree(finished[0] / "mlruns" / "store", tmp_path / "mlruns" / "store")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    search = (*SMOKE, f"study.n_trials={TRIALS}")
    printed = commands.expect_success(commands.run_fresh(tmp_path, "search.run", *search))
    assert re.search(r"\d\.\d+x", printed)
    assert "Pick from it: python -m search.pick" in printed
    (page,) = (tmp_path / "mlruns" / "artifacts").rglob("front.html")
    assert "\N{MULTIPLICATION SIGN}" in page.read_text(encoding="utf-8")
