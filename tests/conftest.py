"""What tests of several rooms share."""

from __future__ import annotations

import pytest

from tests.workbench import Workbench


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    """A store that remembers teachers and graphs for the whole test run."""
    return Workbench(tmp_path_factory.mktemp("store"))
