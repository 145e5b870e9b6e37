"""Every runtime keeps the contract that plug-ins are held to."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from search.engine.store import Store
from search.process import registry
from search.records.data import Dataset
from search.records.files import File
from search.runtimes import Runtime
from search.testing.runtimes import RuntimeContract
from tests.workbench import Workbench, undisturbed


class TestRuntimes(RuntimeContract):
    @pytest.fixture(autouse=True)
    def alone(self, tmp_path: Path) -> Iterator[None]:
        with undisturbed(tmp_path / "locks"):
            yield

    @pytest.fixture(params=registry.load_all("runtimes"))
    def runtime(self, request: pytest.FixtureRequest) -> Runtime:
        found: Runtime = registry.load_all("runtimes")[request.param]
        return found

    @pytest.fixture
    def driver(self, runtime: Runtime) -> ModuleType:
        return importlib.import_module(f"search.devices.agent.drivers.{runtime.name}")

    @pytest.fixture(params=["cnn", "resnet8"])
    def exported(self, request: pytest.FixtureRequest, bench: Workbench) -> File:
        return bench.export(bench.teacher(request.param).network).model

    @pytest.fixture
    def dataset(self, bench: Workbench) -> Dataset:
        return bench.data

    @pytest.fixture
    def store(self, bench: Workbench) -> Store:
        return bench.store
