"""Real data, networks and steps that tests of the stages share; small, so that all stays quick."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from search.config.data import DigitsConfig
from search.config.factory import load_factory, source_sha256
from search.data import describe
from search.devices import stillness
from search.devices.agent.processor import describe_processor
from search.engine.base import Event
from search.engine.driving import drive
from search.engine.inline import InlineEngine
from search.engine.store import Store
from search.recipes.deploying import export
from search.records.device import DeviceProfile
from search.records.files import File
from search.records.network import Network, NetworkSpec, Teacher
from search.records.steps.editing import Edited
from search.records.steps.exporting import Exported, Quantize
from search.records.steps.pruning import Prune
from search.records.steps.step import Step
from search.records.steps.training import FindRate, Finetune, Reestimate, Teach
from tests.deployables import make_quantize
from tests.fakes import PROFILE, lab

R = TypeVar("R")

DIGITS = DigitsConfig(
    name="digits", validation_share=0.2, mean=None, std=None, memory_limit_bytes=4_000_000_000
)
WIDTHS = {"cnn": 8, "resnet8": 8, "ds_cnn": 16}
EPOCHS = {"cnn": 6, "resnet8": 3, "ds_cnn": 7, "custom": 15, "slow": 15}
NETWORKS = (*WIDTHS, "custom")
MOMENTUM = {"custom": 0.1, "slow": 0.01}  # of the custom network's batch normalisation
FACTORY = f"{__name__}:Residual"


class Residual(nn.Module):
    """A user's own network: a residual sum, dropout, and parameters that belong to no layer.

    Args:
        width: Channels of every layer.
        momentum: Of its batch normalisation.
    """

    def __init__(self, width: int, momentum: float = 0.1) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, width, 3, 2, padding=1), nn.BatchNorm2d(width, momentum=momentum)
        )
        self.branch = nn.Sequential(
            nn.Conv2d(width, width, 3, 2, padding=1, bias=False),
            nn.BatchNorm2d(width, momentum=momentum, affine=False),
            nn.ReLU(),
            nn.Conv2d(width, width, 1),
        )
        self.gain = nn.Parameter(torch.ones(1, width, 1, 1))
        self.drop = nn.Dropout(0.1)
        self.head = nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits ``[N, 10]`` of images ``[N, 1, H, W]``."""
        x = F.relu(self.stem(images))
        x = F.relu(self.branch(x) * self.gain + F.max_pool2d(x, 2))
        logits: Tensor = self.head(self.drop(x.mean((2, 3))))
        return logits


@contextmanager
def undisturbed(folder: Path) -> Iterator[None]:
    """Lets work of this process go on while others measure, for what is not about sharing.

    Args:
        folder: Of the lock files that are used instead of the machine's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(stillness, "QUEUE_LOCK", folder / "queue.lock")
        patched.setattr(stillness, "DEVICE_LOCK", folder / "device.lock")
        yield


def here() -> DeviceProfile:
    """This machine as a device, as far as its arithmetic goes."""
    processor = describe_processor()
    return replace(
        PROFILE,
        arch=processor["arch"],
        flags=tuple(processor["flags"]),
        runtime=f"onnxruntime {onnxruntime.__version__}",
    )


class Workbench:
    """A store with an engine, and the steps that tests begin with.

    Args:
        root: Folder of the store.
    """

    def __init__(self, root: Path) -> None:
        self.data = describe(DIGITS)
        self.store = Store(root)
        self.started: list[Step[Any]] = []
        self.engine = InlineEngine(self.store, self._note)

    def _note(self, event: Event) -> None:
        if event.state == "began":
            self.started.append(event.step)

    def do(self, step: Step[R]) -> R:
        """Returns the answer of ``step``, computed at most once."""
        with undisturbed(self.store.root):
            result: R = self.engine.run(step).result
        return result

    def spec(self, name: str) -> NetworkSpec:
        """The unpruned network of that name, in its width of ``WIDTHS``."""
        shape, classes = self.data.image_shape, self.data.classes
        if name in MOMENTUM:
            source = source_sha256(load_factory(FACTORY, "model.factory"))
            given = (("momentum", MOMENTUM[name]), ("width", 16))
            return NetworkSpec("custom", None, FACTORY, given, source, shape, classes)
        return NetworkSpec(name, WIDTHS[name], None, (), None, shape, classes)

    def teach_step(self, name: str) -> Teach:
        """Trains the network of that name far enough to see what compression costs."""
        return Teach(
            spec=self.spec(name),
            data=self.data,
            checkpoint=None,
            epochs=EPOCHS[name],
            batch_size=64,
            learning_rate=0.01,
            weight_decay=0.05,
            precision="float32",
            layout="channels_last",
            device="cpu",
            seed=0,
        )

    def teacher(self, name: str) -> Teacher:
        """The trained network of that name."""
        return self.do(self.teach_step(name))

    def prune(self, name: str, ratio: float, round_to: int = 8) -> Edited:
        """The teacher of that name with a share of its channels removed."""
        return self.do(Prune(self.teacher(name).network, ratio, round_to))

    def reestimate_step(self, network: Network) -> Reestimate:
        """Takes the statistics of a pruned network anew."""
        return Reestimate(network, self.data, 64, "float32", "channels_last", "cpu", seed=0)

    def rate_step(self, name: str) -> FindRate:
        """Finds a learning rate for the half-pruned network of that name."""
        return FindRate(
            start=self.do(self.reestimate_step(self.prune(name, 0.5).network)).network,
            teacher_logits=self.teacher(name).logits,
            data=self.data,
            weight_decay=0.0001,
            batch_size=64,
            precision="float32",
            layout="channels_last",
            device="cpu",
            seed=0,
        )

    def finetune_step(self, name: str, **changes: Any) -> Finetune:
        """One short fine-tuning of the half-pruned network of that name, but for ``changes``."""
        step = Finetune(
            start=self.do(self.reestimate_step(self.prune(name, 0.5).network)).network,
            state=None,
            begin=0.0,
            end=1.0,
            teacher_logits=self.teacher(name).logits,
            data=self.data,
            distill_temperature=2.0,
            distill_weight=0.5,
            optimizer="sgd",
            learning_rate=0.01,
            schedule="constant",
            weight_decay=0.0001,
            epochs=1.0,
            batch_size=64,
            precision="float32",
            layout="channels_last",
            device="cpu",
            seed=0,
        )
        return replace(step, **changes)

    def export(self, network: Network) -> Exported:
        """The float ONNX model of a network, by the recipe of trials."""
        shared = replace(lab().bench, spec=network.spec, data=self.data)
        with undisturbed(self.store.root):
            return drive(export(network, shared), self.engine)

    def quantize_step(self, exported: Exported, bits: int, **changes: Any) -> Quantize:
        """Stores an exported model in ``bits`` for a processor with VNNI, but for ``changes``."""
        step = make_quantize(exported.model, bits, "u8s8", self.data, calibration_images=64, seed=0)
        return replace(step, **changes)

    def content(self, file: File) -> bytes:
        """What a file holds."""
        return self.store.path(file).read_bytes()

    def weights(self, network: Network) -> dict[str, Tensor]:
        """The tensors of a network's file."""
        return load_file(self.store.path(network.weights))
