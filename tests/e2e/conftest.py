"""What end-to-end tests share: one search that all of them look at."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import commands
from tests.e2e.searching import SMOKE, TRIALS
from tests.watch import Watched, watched


@pytest.fixture(scope="session")
def search_watched(tmp_path_factory: pytest.TempPathFactory) -> Watched:
    """A whole search in a home of its own, and what it did there."""
    folder, aside = tmp_path_factory.mktemp("search"), tmp_path_factory.mktemp("home")
    words = commands.line("search.run", *SMOKE, f"study.n_trials={TRIALS}")
    return watched(words, folder, aside / "search")


@pytest.fixture(scope="session")
def finished(search_watched: Watched) -> tuple[Path, str]:
    """A working directory with a finished search, and what was printed."""
    return search_watched.folder, commands.expect_success(search_watched.result)
