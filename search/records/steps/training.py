"""Steps that train networks, or find out how to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from search.records.data import Dataset
from search.records.files import File
from search.records.network import Network, NetworkSpec, Student, Teacher
from search.records.placement import ChosenPlacement, Layout, Precision
from search.records.steps.step import Resource, Step
from search.records.survey import FoundRate


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
