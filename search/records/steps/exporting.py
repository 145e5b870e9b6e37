"""Steps that turn networks into deployable models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from search.process import registry
from search.records.data import Dataset
from search.records.deployable import Deployable, Format
from search.records.files import File
from search.records.network import Edit, Network, NetworkSpec, Shapes
from search.records.steps.step import Resource, Step

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
    edits: tuple[Edit, ...] = ()


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
    """Stores a float ONNX model in a format of a runtime.

    ``int8_format`` is the kind of 8-bit integers that suits the device.
    """

    kind: ClassVar[str] = "quantize"
    version: ClassVar[int] = 3
    resource: ClassVar[Resource] = "light"
    result: ClassVar[type] = Deployable

    model: File
    runtime: str
    format: Format
    int8_format: str
    data: Dataset
    calibration_images: int
    seed: int

    @property
    def calls(self) -> tuple[str, ...]:
        """The runtime's converter, where there is such a runtime here."""
        runtime = registry.load_all("runtimes").get(self.runtime)
        return () if runtime is None else (runtime.converter,)
