"""Decides where and how to train, by measuring."""

from __future__ import annotations

import itertools
import logging
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from search.devices.stillness import give_way, working
from search.errors import ConfigError
from search.networks import networks
from search.networks.crowding import adapting
from search.networks.optimization import make_optimizer
from search.networks.training import Placement, trying_own_layers
from search.process import activity
from search.process.machine import usable_memory_bytes
from search.records.placement import ChosenPlacement, Layout, Precision
from search.records.steps.step import ArtifactStore
from search.records.steps.training import ChoosePlacement

log = logging.getLogger(__name__)

LAYOUTS: tuple[Layout, ...] = ("channels_last", "contiguous")
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")
# A first look at few images: where the processor lacks an arithmetic, some layers take a hundred
# times as long in it.
GLANCE_IMAGES = 4
HOPELESS = 3.0
WARM_UP_STEPS = 2
TIMED_STEPS = 9
LEAST_TIMED_STEPS = 3
BUDGET_S = 6.0
TRAINING_STEPS = (
    300  # about as many as a student gets; its first one is taken into account on a GPU
)
STEP_S = 1.0  # of what is timed; a slow network's step is shown fewer images


@dataclass(frozen=True)
class Way:
    """How a network may be trained."""

    precision: Precision
    layout: Layout

    def __str__(self) -> str:
        """Names it, such as ``float32 channels_last``."""
        return f"{self.precision} {self.layout}"


def run(step: ChoosePlacement, artifacts: ArtifactStore) -> ChosenPlacement:
    """Does the step.

    Raises:
        ConfigError: When there is no such device, or a training step takes more memory than it has.
    """
    device = choose_device(step.device)
    precisions = PRECISIONS if step.precision == "auto" else (step.precision,)
    ways = [Way(*both) for both in itertools.product(precisions, LAYOUTS)]
    with working(), adapting() as adapt:
        found = compare(step, torch.device(device), ways, adapt)
    best = min(found, key=lambda way: found[way])
    others = {str(way): seconds for way, seconds in found.items() if way != best}
    return ChosenPlacement(device, best.precision, best.layout, found[best], others)


def choose_device(wanted: str) -> str:
    """Resolves ``train.device`` to ``cpu`` or ``cuda``.

    Raises:
        ConfigError: When CUDA is asked for where there is none.
    """
    present = wanted != "cpu" and torch.cuda.is_available()
    if wanted == "cuda" and not present:
        raise ConfigError("train.device='cuda': torch finds no CUDA device; give cpu or auto")
    return "cuda" if present else "cpu"


def compare(
    step: ChoosePlacement,
    device: torch.device,
    ways: list[Way],
    adapt: Callable[[], None] = lambda: None,
) -> dict[Way, float]:
    """Returns the seconds of one optimizer step in every way that is not hopeless.

    They take turns, so that what else the machine does slows all of them. On a GPU a first step
    may take seconds, because kernels are made for its shapes, and every pruned network has others:
    it is spread over the steps of a training.

    Args:
        step: What is trained, and on how many images at a time.
        device: Where.
        ways: To choose from.
        adapt: Called between steps; see ``crowding.adapting``.

    Raises:
        ConfigError: When a step takes more memory than there is.
    """
    few = min(GLANCE_IMAGES, step.batch_size)
    trainings: dict[Way, Training] = {}
    firsts: dict[Way, float] = {}
    glances: dict[Way, float] = {}
    failures = []
    if device.type == "cuda":
        _wake(device)
    for number, way in enumerate(ways):
        activity.tell("way", number, len(ways))
        adapt()
        placement = Placement(device, way.precision, way.layout)
        look = partial(_glance, step, placement, few, number == 0 and device.type == "cpu")
        try:
            training, firsts[way], glances[way] = trying_own_layers(
                partial(_place, step, placement), look
            )
            trainings[way] = training
        except RuntimeError as error:  # such as a layer that lacks an arithmetic
            log.debug("cannot train in %s", way, exc_info=True)
            failures.append(error)
    if not glances:
        raise failures[0]
    least_s = min(glances.values())
    near = [way for way in glances if glances[way] <= HOPELESS * least_s]
    images, quickest = few, trainings[min(glances, key=lambda way: glances[way])]
    while images < step.batch_size:  # by doubling: a few images take far more than their share
        adapt()
        if min(quickest.step(images) for _ in range(2)) > STEP_S / 2:
            break
        images = min(2 * images, step.batch_size)
    seconds: dict[Way, list[float]] = {way: [] for way in near}
    began = time.perf_counter()
    for number in range(WARM_UP_STEPS + TIMED_STEPS):
        activity.tell("round", number, WARM_UP_STEPS + TIMED_STEPS)
        for way in near:
            give_way()
            adapt()
            seconds[way].append(trainings[way].step(images))
        is_enough = number + 1 >= WARM_UP_STEPS + LEAST_TIMED_STEPS
        if is_enough and time.perf_counter() - began > BUDGET_S:
            break
    scale = step.batch_size / images
    found = {way: scale * statistics.median(seconds[way][WARM_UP_STEPS:]) for way in near}
    if device.type == "cuda":
        return {way: found[way] + firsts[way] / TRAINING_STEPS for way in near}
    return found


def _wake(device: torch.device) -> None:
    """Has the GPU's libraries loaded, which the first way would pay for."""
    layer = nn.Conv2d(8, 8, 3, device=device)
    for precision in PRECISIONS:
        with Placement(device, precision, "contiguous").autocast():
            layer(torch.rand(2, 8, 8, 8, device=device)).sum().backward()
    torch.cuda.synchronize(device)


def _glance(
    step: ChoosePlacement, placement: Placement, few: int, checks_memory: bool, module: nn.Module
) -> tuple[Training, float, float]:
    training = Training(step, placement, module)
    if checks_memory:
        check_memory(training.saved_bytes(few) / few, step.batch_size)
    return training, training.step(few), training.step(few)


def _place(step: ChoosePlacement, placement: Placement, own_layers: bool) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        network = networks.build(step.spec)
    return placement.place(network, step.spec.image_shape, own_layers)


class Training:
    """The uncompressed network, trained on random images.

    Args:
        step: With the size of a batch.
        placement: Where the network is.
        module: The network.
    """

    def __init__(self, step: ChoosePlacement, placement: Placement, module: nn.Module) -> None:
        self._placement = placement
        self._module = module.train()
        self._optimizer = make_optimizer(self._module, "adamw", 1e-3, weight_decay=1e-2)
        generator = torch.Generator().manual_seed(0)
        shape = (step.batch_size, *step.spec.image_shape)
        self._images = torch.rand(shape, generator=generator).to(placement.device)
        labels = torch.randint(step.spec.classes, (step.batch_size,), generator=generator)
        self._labels = labels.to(placement.device)

    def step(self, images: int) -> float:
        """Trains on that many images, and returns the seconds."""
        began = time.perf_counter()
        loss = self._loss(images)
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        loss.item()  # waits for a GPU to finish
        return time.perf_counter() - began

    def saved_bytes(self, images: int) -> int:
        """Returns what is held between the forward and the backward pass of that many images."""
        values = itertools.chain(self._module.parameters(), self._module.buffers())
        own = {value.untyped_storage().data_ptr() for value in values}
        saved: dict[int, int] = {}

        def note(value: Tensor) -> Tensor:
            storage = value.untyped_storage()
            if storage.data_ptr() not in own:
                saved[storage.data_ptr()] = storage.nbytes()
            return value

        with torch.autograd.graph.saved_tensors_hooks(note, lambda value: value):
            held = self._loss(images)  # or what is freed is counted twice at the same address
        del held
        return sum(saved.values())

    def _loss(self, images: int) -> Tensor:
        with self._placement.autocast():
            return F.cross_entropy(self._module(self._images[:images]), self._labels[:images])


def check_memory(image_bytes: float, batch_size: int) -> None:
    """Refuses a batch whose activations alone are more than there is.

    Raises:
        ConfigError: If they are.
    """
    usable = usable_memory_bytes()
    if image_bytes * batch_size > usable:
        most = int(usable / image_bytes)
        remedy = f"give at most {most}" if most else "give smaller images"
        raise ConfigError(
            f"train.batch_size={batch_size}: the activations of one training step take about "
            f"{image_bytes * batch_size / 1e9:.1f} GB of {usable / 1e9:.1f} GB; {remedy}"
        )
