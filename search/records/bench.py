"""What all trials of a study share."""

from __future__ import annotations

from dataclasses import dataclass

from search.config.device import DeviceConfig
from search.config.study import ObjectiveConfig
from search.config.train import TrainConfig
from search.records.baseline import Baseline, least_accuracy
from search.records.data import Dataset
from search.records.deployable import Deployable
from search.records.device import DeviceProfile
from search.records.files import File
from search.records.network import Network, NetworkSpec, Teacher
from search.records.placement import ChosenPlacement
from search.records.survey import Cut, FoundRate

# Of one optimizer step: statistics of fewer images are poor, and more images are not faster each.
SMALLEST_BATCH, LARGEST_BATCH = 16, 128
ENOUGH_STEPS = 300


@dataclass(frozen=True)
class Bench:
    """What every trial of a study shares before anything is computed.

    ``prunes`` says whether any trial may lose channels, and so be trained: not where the space or
    the network forbids it. ``is_here`` says whether the device is the machine that steps run on,
    whose arithmetic is then the device's, as scoring checks.
    """

    spec: NetworkSpec
    checkpoint: File | None
    data: Dataset
    device: DeviceProfile
    thread_counts: tuple[int, ...]
    measuring: DeviceConfig
    train: TrainConfig
    limits: ObjectiveConfig
    machine: str
    seed: int
    prunes: bool = True
    is_here: bool = True

    def batch_size(self, epochs: float) -> int:
        """Returns how many images an optimizer step takes in a training of ``epochs`` passes.

        Where the user leaves it open, it is the largest power of two that gives the training
        ``ENOUGH_STEPS``: on few images steps are what a short training lacks.
        """
        if self.train.batch_size != "auto":
            return self.train.batch_size
        size = LARGEST_BATCH
        while size > SMALLEST_BATCH and self.data.sizes[0] * epochs < ENOUGH_STEPS * size:
            size //= 2
        return size

    def steps(self, epochs: float) -> int:
        """Returns how many optimizer steps a student takes in ``epochs`` passes."""
        per_epoch = self.data.sizes[0] / self.batch_size(self.train.epochs)
        return max(1, round(epochs * max(1.0, per_epoch))) if epochs else 0


@dataclass(frozen=True)
class Lab:
    """A bench with its teacher trained and the uncompressed network measured.

    Attributes:
        cuts: How much to prune for each share of ``SWEEP``; none where nothing is pruned.
        rate: The learning rate for what the first of them leaves; None where there is none.
    """

    bench: Bench
    placement: ChosenPlacement
    teacher: Teacher
    reference: Deployable
    reference_accuracy: float
    baseline: Baseline
    cuts: tuple[Cut, ...] = ()
    rate: FoundRate | None = None

    @property
    def least_accuracy(self) -> float:
        """Below this on validation a network is little better than guessing."""
        chance, share = self.bench.data.chances[1], self.bench.limits.min_accuracy_share
        return least_accuracy(chance, self.reference_accuracy, share)

    def is_changed(self, network: Network) -> bool:
        """Tells whether a technique changed the teacher's network, so that it has to recover."""
        own = self.teacher.network
        return (network.structure, network.weights) != (own.structure, own.weights)
