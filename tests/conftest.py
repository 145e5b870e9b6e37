"""What tests of several rooms share."""

from __future__ import annotations

import functools
import gc
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest
import torch
from torch.onnx._internal.exporter._registration import ONNXRegistry

from search.records import TrialRecord
from tests import plants
from tests.postgres_server import PostgresServer, find_programs, running_server
from tests.workbench import Workbench


def pytest_configure() -> None:
    """Has programs that are started heed Ctrl-C, which whatever a script runs behind ignores."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """Leaves what was imported out of every later look for what can be freed."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def operators_known() -> Iterator[None]:
    """Has PyTorch's exporter make its table of operators once, which takes it a second a time."""
    with pytest.MonkeyPatch.context() as patch:
        once = staticmethod(functools.cache(ONNXRegistry.from_torchlib))
        patch.setattr(ONNXRegistry, "from_torchlib", once)
        yield


# A busy machine is no bug.
hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workbench]:
    """A store that remembers teachers and graphs for the whole test run."""
    threads = torch.get_num_threads()
    # Networks this small gain nothing from a second thread, and lose much on a busy machine.
    torch.set_num_threads(1)
    yield Workbench(tmp_path_factory.mktemp("store"))
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def plant() -> Callable[..., TrialRecord]:
    """Returns a maker of records; figures can be given by name."""
    return plants.plant


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with MLflow's tables, which take seconds to make."""
    from mlflow.tracking import MlflowClient  # after search, which has it report nothing

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A running PostgreSQL server."""
    programs = find_programs()
    if programs is None:
        pytest.skip("there is no PostgreSQL server here: install Debian's package postgresql")
    with running_server(programs) as server:
        yield server
