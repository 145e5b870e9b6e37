"""Every network keeps the contract that plug-ins are held to."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pytest

from models import NETWORKS
from search.config.factory import load_factory, source_sha256
from search.engine.store import Store
from search.records.network import NetworkSpec
from search.testing.models import ImageShape, ModelContract, Specify

FACTORY = "tests.extras:make_network"


class TestNetworks(ModelContract):
    cases: ClassVar = (
        ((1, 28, 28), 10), ((3, 32, 32), 3), ((1, 8, 8), 2), ((3, 25, 31), 5), ((2, 4, 5), 2),
    )  # fmt: skip

    @pytest.fixture
    def store(self, tmp_path: Path) -> Store:
        return Store(tmp_path)

    @pytest.fixture(params=[*NETWORKS, "custom"])
    def specify(self, request: pytest.FixtureRequest) -> Specify:
        def own(shape: ImageShape, classes: int) -> NetworkSpec:
            return NetworkSpec(request.param, 16, None, (), None, shape, classes)

        def custom(shape: ImageShape, classes: int) -> NetworkSpec:
            given = (("channels", shape[0]), ("classes", classes))
            source = source_sha256(load_factory(FACTORY, "model.factory"))
            return NetworkSpec("custom", None, FACTORY, given, source, shape, classes)

        return custom if request.param == "custom" else own
