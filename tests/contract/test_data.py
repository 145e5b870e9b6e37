"""Every data set keeps the contract that plug-ins are held to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from pydantic import TypeAdapter

from search.cli.command import CONF
from search.config.data import DataConfig
from search.process import registry
from search.testing.data import DataContract

CLASSES, IMAGES = ("cat", "dog"), 12


def options() -> dict[str, dict[str, Any]]:
    """Our own options of ``conf/``, and those of plug-ins that are installed."""
    own = {
        path.stem: yaml.safe_load(path.read_text())
        for path in sorted((CONF / "data").glob("*.yaml"))
    }
    return own | dict(registry.load_all("data"))


@pytest.fixture(scope="module")
def pets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of small colour images."""
    root, generator = tmp_path_factory.mktemp("pets"), np.random.default_rng(0)
    for split in ("train", "test"):
        for name in CLASSES:
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(IMAGES):
                pixels = generator.integers(0, 256, (6, 5, 3), np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return root


class TestDataSets(DataContract):
    @pytest.fixture(params=options())
    def config(self, request: pytest.FixtureRequest) -> DataConfig:
        given: dict[str, Any] = {}
        match request.param:
            case "fashion_mnist":
                given = {"root": str(request.getfixturevalue("fashion"))}
            case "image_folder":
                given = {"root": str(request.getfixturevalue("pets"))}
            case "custom":
                given = {"factory": "tests.extras:make_source"}
        option = options()[request.param] | given
        found: DataConfig = TypeAdapter(DataConfig).validate_python(option)
        return found
