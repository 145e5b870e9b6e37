"""The steps that recipes are made of, as frozen values; knows nothing of how they are done.

A step's ``kind`` names the module in ``search.stages`` whose ``run(step, shelf)`` does it, so the
coordinator describes work without importing torch or ONNX. Its hash is the key under which the
store remembers the result; raise ``version`` when a stage begins to answer differently.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, Protocol, TypeVar

from search.config import DeviceConfig
from search.records import (
    Comparison,
    Dataset,
    Deployable,
    DeviceProfile,
    File,
    Measurement,
    Network,
    NetworkSpec,
    Session,
    Shapes,
    Student,
    Teacher,
)

R = TypeVar("R")
Resource = Literal["train", "device", "light"]
Precision = Literal["float32", "bfloat16"]
Layout = Literal["contiguous", "channels_last"]  # of images and weights in memory
# How the teacher is listened to in the recipe that a study begins with.
SOUND_TEMPERATURE, SOUND_WEIGHT = 3.0, 0.9
USUAL_RATE = 0.004  # AdamW's, where none was found


class Shelf(Protocol):
    """Where a stage takes its input files from and leaves its output files.

    Attributes:
        images: Folder of decoded images, for all who read the same data here.
    """

    images: Path

    def path(self, file: File) -> Path:
        """Returns where the content of ``file`` lies; the stage only reads it."""

    def put(self, content: bytes, suffix: str) -> File:
        """Keeps ``content`` for good and returns its name."""

    def put_parts(self, parts: Iterable[bytes], suffix: str) -> File:
        """Keeps the ``parts`` as one content, which need not fit into memory."""


@dataclass(frozen=True)
class Step(Generic[R]):
    """One unit of work whose result depends on its fields alone."""

    kind: ClassVar[str]
    version: ClassVar[int]
    resource: ClassVar[Resource]
    result: ClassVar[type]

    @property
    def key(self) -> str:
        """Hexadecimal SHA-256 of kind, version and fields: the step's identity."""
        identity = {"kind": self.kind, "version": self.version, "inputs": _plain(self)}
        text = json.dumps(identity, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()


def _plain(value: Any) -> Any:
    """Turns nested dataclasses into JSON values, leaving out fields that do not compare."""
    if is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value) if f.compare}
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


@dataclass(frozen=True)
class ChosenPlacement:
    """Where, in which arithmetic and in which layout networks are trained.

    Attributes:
        device: ``cpu`` or ``cuda``.
        precision: The arithmetic.
        layout: Of images and weights in memory.
        step_s: Seconds of one optimizer step of the uncompressed network so.
        others_s: The same of the other ways that were tried, by arithmetic and layout.
    """

    device: str
    precision: Precision
    layout: Layout
    step_s: float
    others_s: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ChoosePlacement(Step[ChosenPlacement]):
    """Resolves ``auto``: a GPU where there is one, and what trains this network fastest there.

    ``machine`` names the processors that the answer holds for.
    """

    kind: ClassVar[str] = "placement"
    version: ClassVar[int] = 4
    resource: ClassVar[Resource] = "train"
    result: ClassVar[type] = ChosenPlacement

    spec: NetworkSpec
    batch_size: int
    device: Literal["auto", "cpu", "cuda"]
    precision: Literal["auto", "float32", "bfloat16"]
    machine: str


@dataclass(frozen=True)
class Teach(Step[Teacher]):
    """Loads or trains the teacher, and notes its logits on the training images.

    ``checkpoint`` is the user's file; when None the network is trained here.
    """

    kind: ClassVar[str] = "teacher"
    version: ClassVar[int] = 4
    resource: ClassVar[Resource] = "train"
    result: ClassVar[type] = Teacher

    spec: NetworkSpec
    data: Dataset
    checkpoint: File | None
    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    precision: Precision
    layout: Layout
    device: str
    seed: int


@dataclass(frozen=True)
class Pruned:
    """A structurally smaller network and the share of prunable channels it lost."""

    network: Network
    channels_removed: float


@dataclass(frozen=True)
class Prune(Step[Pruned]):
    """Removes the least important channels; ``ratio`` is the share of them, 0..0.9."""

    kind: ClassVar[str] = "prune"
    version: ClassVar[int] = 4
    resource: ClassVar[Resource] = "light"
    result: ClassVar[type] = Pruned

    network: Network
    ratio: float
    round_to: int


@dataclass(frozen=True)
class Cut:
    """How much to prune, and the share of the original's multiply-accumulates that it leaves."""

    prune_ratio: float
    macs_share: float


@dataclass(frozen=True)
class Cuts:
    """Cuts that leave different structures, in the order asked for; else why there are none."""

    cuts: tuple[Cut, ...]
    reason: str = ""


@dataclass(frozen=True)
class Sweep(Step[Cuts]):
    """Finds how much to prune for ``shares`` of the original's multiply-accumulates, in order."""

    kind: ClassVar[str] = "sweep"
    version: ClassVar[int] = 2
    resource: ClassVar[Resource] = "light"
    result: ClassVar[type] = Cuts

    network: Network
    shares: tuple[float, ...]
    round_to: int


@dataclass(frozen=True)
class Reestimate(Step[Student]):
    """Takes the statistics of a pruned network's batch normalisation anew, and scores it.

    What is left after this alone is known before anything is trained.
    """

    kind: ClassVar[str] = "reestimate"
    version: ClassVar[int] = 2
    resource: ClassVar[Resource] = "train"
    result: ClassVar[type] = Student

    network: Network
    data: Dataset
    batch_size: int
    precision: Precision
    layout: Layout
    device: str
    seed: int


@dataclass(frozen=True)
class FoundRate:
    """A learning rate that suits a network.

    Attributes:
        learning_rate: Peak of AdamW's with the default batch size.
        tried: Rates of the test with the smoothed loss at each.
    """

    learning_rate: float
    tried: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class FindRate(Step[FoundRate]):
    """Finds the scale of the learning rate by which a pruned network recovers fastest.

    ``start`` is a pruned network whose statistics were re-estimated.
    """

    kind: ClassVar[str] = "rate"
    version: ClassVar[int] = 2
    resource: ClassVar[Resource] = "train"
    result: ClassVar[type] = FoundRate

    start: Network
    teacher_logits: File
    data: Dataset
    weight_decay: float
    batch_size: int
    precision: Precision
    layout: Layout
    device: str
    seed: int


@dataclass(frozen=True)
class Finetune(Step[Student]):
    """Trains a student from one share of its budget to the next, with the teacher's help.

    ``start`` is the pruned network, or the student as the previous rung left it. ``begin`` and
    ``end`` are shares of ``epochs``.
    """

    kind: ClassVar[str] = "finetune"
    version: ClassVar[int] = 4
    resource: ClassVar[Resource] = "train"
    result: ClassVar[type] = Student

    start: Network
    state: File | None
    begin: float
    end: float
    teacher_logits: File
    data: Dataset
    distill_temperature: float
    distill_weight: float
    optimizer: str
    learning_rate: float
    schedule: str
    weight_decay: float
    epochs: float
    batch_size: int
    precision: Precision
    layout: Layout
    device: str
    seed: int


# Of the largest logit; float kernels that sum in another order stay far below.
PARITY_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Graph:
    """The ONNX graph of a structure, before optimisation and with arbitrary weights."""

    model: File


@dataclass(frozen=True)
class Trace(Step[Graph]):
    """Traces a structure into an ONNX graph; slow, and independent of the weights.

    ``shapes`` are a pruned network's; None for the network as it is built.
    """

    kind: ClassVar[str] = "trace"
    version: ClassVar[int] = 2
    resource: ClassVar[Resource] = "light"
    result: ClassVar[type] = Graph

    spec: NetworkSpec
    shapes: Shapes | None
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class Exported:
    """A float ONNX model.

    Attributes:
        model: The file; raw ``[N, C, H, W]`` pixels in 0..1 to logits ``[N, classes]``.
        parity_error: Largest difference from PyTorch's logits relative to the largest logit;
            None when the graph cannot run with these weights at all.
    """

    model: File
    parity_error: float | None

    @property
    def is_faithful(self) -> bool:
        """Whether the model computes what the network computes."""
        return self.parity_error is not None and self.parity_error <= PARITY_TOLERANCE


@dataclass(frozen=True)
class Export(Step[Exported]):
    """Puts a network's weights into a traced graph, optimises it and compares with PyTorch."""

    kind: ClassVar[str] = "export"
    version: ClassVar[int] = 2
    resource: ClassVar[Resource] = "light"
    result: ClassVar[type] = Exported

    graph: Graph
    network: Network
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class Quantize(Step[Deployable]):
    """Stores a float ONNX model in ``bits``, in the format that suits the device."""

    kind: ClassVar[str] = "quantize"
    version: ClassVar[int] = 2
    resource: ClassVar[Resource] = "light"
    result: ClassVar[type] = Deployable

    model: File
    bits: int
    int8_format: str
    data: Dataset
    calibration_images: int
    seed: int


@dataclass(frozen=True)
class Score:
    """Top-1 accuracy over a number of images.

    Attributes:
        accuracy: 0..1.
        images: Number of images in the split.
        right: Which of them were recognised, in order: bits, eight to a byte, in hexadecimal.
    """

    accuracy: float
    images: int
    right: str = ""


@dataclass(frozen=True)
class Evaluate(Step[Score]):
    """Runs a deployable model over a split in onnxruntime."""

    kind: ClassVar[str] = "evaluate"
    version: ClassVar[int] = 2
    resource: ClassVar[Resource] = "light"
    result: ClassVar[type] = Score

    deployable: Deployable
    data: Dataset
    split: Literal["validation", "test"]


@dataclass(frozen=True)
class Probe(Step[DeviceProfile]):
    """Finds out by measuring what is fast on a device; ``device`` is what its processor says."""

    kind: ClassVar[str] = "probe"
    version: ClassVar[int] = 4
    resource: ClassVar[Resource] = "device"
    result: ClassVar[type] = DeviceProfile

    device: DeviceProfile
    connection: DeviceConfig = field(compare=False)


@dataclass(frozen=True)
class Measure(Step[Measurement]):
    """Times a model on the device, taking turns with a reference.

    ``occasion`` tells repetitions of the same comparison apart, which would else be remembered.
    """

    kind: ClassVar[str] = "measure"
    version: ClassVar[int] = 4
    resource: ClassVar[Resource] = "device"
    result: ClassVar[type] = Measurement

    deployable: Deployable
    threads: int
    reference: Deployable
    reference_threads: int
    data: Dataset
    device: DeviceProfile
    connection: DeviceConfig = field(compare=False)
    batch_size: int
    throughput_batch_size: int
    spinning: bool
    memory_limit_bytes: int | None
    launches: int
    budget_s: float
    seed: int
    occasion: str = ""


@dataclass(frozen=True)
class Confirm(Step[Session]):
    """Times several models in one session; ``comparisons`` share their reference."""

    kind: ClassVar[str] = "confirm"
    version: ClassVar[int] = 3
    resource: ClassVar[Resource] = "device"
    result: ClassVar[type] = Session

    comparisons: tuple[Measure, ...]
    launches: int


@dataclass(frozen=True)
class Profile(Step[Comparison]):
    """Finds out what the time of a comparison's two models goes into."""

    kind: ClassVar[str] = "profile"
    version: ClassVar[int] = 3
    resource: ClassVar[Resource] = "device"
    result: ClassVar[type] = Comparison

    comparison: Measure
