"""The package keeps the contracts; run with it installed: ``pytest tests/plugin/contracts.py``."""

from __future__ import annotations

from pathlib import Path

import pytest
from cnn_search_example import PARITY, TECHNIQUE

from search.config.data import CustomDataConfig
from search.engine.store import Store
from search.networks import networks
from search.records.bench import Bench
from search.records.network import Network, NetworkSpec
from search.techniques import Technique
from search.testing.benches import make_bench
from search.testing.data import DataContract
from search.testing.techniques import TechniqueContract


class TestLowRank(TechniqueContract):
    @pytest.fixture
    def technique(self) -> Technique:
        return TECHNIQUE

    @pytest.fixture
    def store(self, tmp_path: Path) -> Store:
        return Store(tmp_path)

    @pytest.fixture(params=["cnn", "resnet8"])
    def network(self, request: pytest.FixtureRequest, store: Store) -> Network:
        spec = NetworkSpec(request.param, 16, None, (), None, (1, 28, 28), 10)
        return networks.save(networks.build(spec), spec, store)

    @pytest.fixture
    def setting(self, network: Network) -> Bench:
        return make_bench(network.spec)


class TestParity(DataContract):
    @pytest.fixture
    def config(self) -> CustomDataConfig:
        return CustomDataConfig(**PARITY)  # type: ignore[arg-type]  # a mapping of all sorts
