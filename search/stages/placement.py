"""Decides where and in which arithmetic to train, by measuring; knows nothing of accuracy."""

from __future__ import annotations

import statistics
import time

import torch
from torch.nn import functional as F

from search import networks
from search.benchmark.stillness import working
from search.errors import ConfigError
from search.steps import ChoosePlacement, ChosenPlacement, Precision, Shelf
from search.training import Placement

WARM_UP_STEPS = 3
TIMED_STEPS = 9


def run(step: ChoosePlacement, shelf: Shelf) -> ChosenPlacement:
    """Does the step."""
    device = choose_device(step.device)
    if step.precision != "auto":
        return ChosenPlacement(device, step.precision, None, None)
    float32_s = time_training(step, device, "float32")
    bfloat16_s = time_training(step, device, "bfloat16")
    fastest: Precision = "bfloat16" if bfloat16_s < float32_s else "float32"
    return ChosenPlacement(device, fastest, float32_s, bfloat16_s)


def choose_device(wanted: str) -> str:
    """Resolves ``train.device`` to ``cpu`` or ``cuda``.

    Raises:
        ConfigError: When CUDA is asked for where there is none.
    """
    present = wanted != "cpu" and torch.cuda.is_available()
    if wanted == "cuda" and not present:
        raise ConfigError("train.device='cuda': torch finds no CUDA device; give cpu or auto")
    return "cuda" if present else "cpu"


def time_training(step: ChoosePlacement, device: str, precision: Precision) -> float:
    """Returns the median seconds of one optimizer step on random images."""
    placement = Placement(torch.device(device), precision)
    generator = torch.Generator().manual_seed(0)
    shape = (step.batch_size, *step.spec.image_shape)
    images = torch.rand(shape, generator=generator).to(placement.device)
    images = images.to(memory_format=torch.channels_last)
    labels = torch.randint(step.spec.classes, (step.batch_size,), generator=generator)
    labels = labels.to(placement.device)
    module = placement.place(networks.build(step.spec), step.spec.image_shape).train()
    optimizer = torch.optim.AdamW(module.parameters(), fused=True)
    seconds = []
    with working():
        for _ in range(WARM_UP_STEPS + TIMED_STEPS):
            started = time.perf_counter()
            with placement.autocast():
                loss = F.cross_entropy(module(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss.item()  # waits for a GPU to finish
            seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[WARM_UP_STEPS:])
