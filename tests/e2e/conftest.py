"""What end-to-end tests share: one search that all of them look at."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.searching import TRIALS, run


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A working directory with a finished search, and what was printed."""
    folder = tmp_path_factory.mktemp("search")
    return folder, run(folder, f"study.n_trials={TRIALS}")
