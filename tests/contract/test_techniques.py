"""Every technique keeps the contract that plug-ins are held to."""

from __future__ import annotations

import pytest

from search.engine.store import Store
from search.records.bench import Bench
from search.records.network import Network
from search.techniques import Technique, techniques
from search.testing.benches import make_bench
from search.testing.techniques import TechniqueContract
from tests.workbench import Workbench


class TestTechniques(TechniqueContract):
    @pytest.fixture(params=techniques(), ids=lambda one: one.name)
    def technique(self, request: pytest.FixtureRequest) -> Technique:
        found: Technique = request.param
        return found

    @pytest.fixture(params=["cnn", "resnet8", "ds_cnn"])
    def network(self, request: pytest.FixtureRequest, bench: Workbench) -> Network:
        return bench.teacher(request.param).network

    @pytest.fixture
    def store(self, bench: Workbench) -> Store:
        return bench.store

    @pytest.fixture
    def setting(self, network: Network) -> Bench:
        return make_bench(network.spec)
