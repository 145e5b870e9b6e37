"""What end-to-end tests share: one search that all of them look at."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import commands
from tests.e2e.searching import SMOKE, TRIALS


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A working directory with a finished search, and what was printed."""
    folder = tmp_path_factory.mktemp("search")
    search = ("search.run", *SMOKE, f"study.n_trials={TRIALS}")
    return folder, commands.expect_success(commands.run_fresh(folder, *search))
