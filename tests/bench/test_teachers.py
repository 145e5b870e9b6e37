"""Test accuracy of the networks that the default budget trains, scored as ONNX models."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from search.cli import command as cli
from search.config.commands import SearchConfig
from search.config.parsing import parse
from search.engine.driving import drive
from search.engine.inline import InlineEngine
from search.engine.store import Store
from search.recipes.preparing import prepare
from search.recipes.setup import make_bench
from search.records.bench import Lab
from search.records.steps.recipe import Recipe
from search.records.steps.scoring import Evaluate


@pytest.mark.bench
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("model", ["cnn", "resnet8", "ds_cnn"])
def test_teacher(model: str, tmp_path: Path) -> None:
    with initialize_config_dir(str(cli.CONF), version_base="1.3"):
        raw: Any = OmegaConf.to_container(compose("config", [f"model={model}"]), resolve=True)
    store = Store(tmp_path / "store")
    engine = InlineEngine(store, lambda step: None)
    bench, _ = make_bench(parse(raw, SearchConfig), store, engine)

    def recipe() -> Recipe[tuple[Lab, float]]:
        lab = yield from prepare(bench)
        score = yield Evaluate(lab.reference, bench.data, "test", bench.device)
        return lab, score.accuracy

    started = time.monotonic()
    lab, accuracy = drive(recipe(), engine)
    print(
        f"\n{model}: test {accuracy:.2%}, validation {lab.reference_accuracy:.2%}, "
        f"{lab.placement.precision}, {time.monotonic() - started:.0f} s"
    )
