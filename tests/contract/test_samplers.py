"""Every sampler keeps the contract that plug-ins are held to."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from pydantic import TypeAdapter

from search.cli.command import CONF
from search.config.study import SamplerConfig
from search.process import registry
from search.testing.samplers import SamplerContract

# They begin to learn early, so that a short search is enough.
EARLY = {"n_startup_trials": 4, "population_size": 2}


def options() -> dict[str, dict[str, Any]]:
    """Our own options of ``conf/``, and those of plug-ins that are installed."""
    own = {
        path.stem: yaml.safe_load(path.read_text())
        for path in sorted((CONF / "sampler").glob("*.yaml"))
    }
    return own | dict(registry.load_all("samplers"))


class TestSamplers(SamplerContract):
    @pytest.fixture(params=options())
    def sampler(self, request: pytest.FixtureRequest) -> SamplerConfig:
        option = options()[request.param]
        early = {key: value for key, value in EARLY.items() if key in option}
        found: SamplerConfig = TypeAdapter(SamplerConfig).validate_python(option | early)
        return found
