"""What tests of several rooms share."""

from __future__ import annotations

import functools
import gc
import logging
import os
import signal
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path

# Test processes measure independently of one another: no figure of theirs matters. Before search
# is imported, which reads it.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["CNN_SEARCH_LOCKS"] = tempfile.mkdtemp(prefix="locks-")

import hypothesis
import pytest
import torch
from torch.onnx._internal.exporter._registration import ONNXRegistry

from search.data import fashion_mnist
from tests.postgres_server import PostgresServer, find_programs, running_server
from tests.shared import common_folder, once
from tests.workbench import Workbench


def pytest_configure() -> None:
    """Has programs that are started heed Ctrl-C, which whatever a script runs behind ignores."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Returns how many test processes there are: more than cores, because tests wait a lot."""
    return max(3, os.cpu_count() or 1)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Has reports of several processes hold what can be sent: some tests log what is no text."""
    report = yield
    report.sections = [
        (name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections
    ]
    return report


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


@pytest.fixture(autouse=True)
def left_as_found() -> Iterator[None]:
    """Restores what some tests change for their whole process, so that no order matters."""
    loggers = [logging.getLogger(), logging.getLogger("search")]
    before = [(one.handlers[:], one.filters[:], one.level, one.propagate) for one in loggers]
    yield
    for logger, found in zip(loggers, before, strict=True):
        logger.handlers[:], logger.filters[:], level, logger.propagate = found
        logger.setLevel(level)
    torch.set_flush_denormal(False)  # which a session of onnxruntime sets in its thread


# A busy machine is no bug.
# Without a database: examples of an earlier run do not fit the journals of this one.
hypothesis.settings.register_profile("patient", deadline=None, database=None)
hypothesis.settings.load_profile("patient")


@pytest.fixture(scope="session")
def common(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all processes of this test run share."""
    return common_folder(pytestconfig, tmp_path_factory)


@pytest.fixture(scope="session")
def bench(common: Path) -> Iterator[Workbench]:
    """A store that remembers teachers and graphs for the whole test run."""
    threads = torch.get_num_threads()
    # Networks this small gain nothing from a second thread, and lose much on a busy machine.
    torch.set_num_threads(1)
    store = common / "store"
    store.mkdir(exist_ok=True)
    yield Workbench(store)
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def empty_database(common: Path) -> Path:
    """A database with MLflow's tables, which take seconds to make."""
    from mlflow.tracking import MlflowClient  # after search, which has it report nothing

    folder = common / "mlflow"

    def make() -> Path:
        path = folder / "mlflow.db"
        MlflowClient(f"sqlite:///{path}").search_experiments()
        return path

    return once(folder, make)


@pytest.fixture(scope="session")
def fashion_home(common: Path) -> Path:
    """The working directory of a study that has fetched Fashion-MNIST, once for all processes."""
    home = common / "fashion"

    def fetch() -> Path:
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(home)
            fashion_mnist.open_source(None)
        return home

    return once(home, fetch)


@pytest.fixture(scope="session")
def fashion(fashion_home: Path) -> Path:
    """A folder with the four original files of Fashion-MNIST."""
    kept = fashion_home / fashion_mnist.CACHE
    return kept if kept.is_dir() else fashion_mnist.INSTALLED


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A running PostgreSQL server."""
    programs = find_programs()
    if programs is None:
        pytest.skip("there is no PostgreSQL server here: install Debian's package postgresql")
    with running_server(programs) as server:
        yield server
