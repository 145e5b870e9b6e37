"""What a model's time goes into."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from search.records.deployable import Format

TypedShapes = tuple[tuple[str, tuple[int, ...]], ...]


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer of a network that has weights, as its ONNX model computes it.

    Attributes:
        name: In PyTorch, such as ``stages.0.conv1``.
        inputs: Channels that come in.
        outputs: Channels that go out.
        groups: Of a convolution; 1 where every output is computed from all inputs.
    """

    name: str
    inputs: int
    outputs: int
    groups: int

    @property
    def is_depthwise(self) -> bool:
        """Whether every channel is convolved by itself."""
        return self.groups == self.inputs > 1


@dataclass(frozen=True, slots=True)
class Kernel:
    """An operator as the runtime executes it, after its optimisation of the graph.

    Attributes:
        operator: The runtime's type, such as ``QLinearConv``.
        layer: Name of the layer that it belongs to; empty before the first one.
        microseconds: Of one run, being looked at included.
        inputs: Element type, such as ``uint8``, and shape of each.
        outputs: The same.
    """

    operator: str
    layer: str
    microseconds: float
    inputs: TypedShapes
    outputs: TypedShapes


@dataclass(frozen=True, slots=True)
class ModelProfile:
    """What a model's time goes into.

    Attributes:
        format: How the weights are stored.
        threads: With which it was profiled.
        layers: In the order of the model.
        kernels: In the order of execution.
        latency_ms: Median of single runs by number of threads, nobody looking.
        cold_start_ms: Session creation and first run in a fresh process.
    """

    format: Format
    threads: int
    layers: tuple[Layer, ...]
    kernels: tuple[Kernel, ...]
    latency_ms: Mapping[int, float]
    cold_start_ms: float

    @property
    def own_latency_ms(self) -> float:
        """Latency with the threads that it was profiled with."""
        return self.latency_ms[self.threads]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two models profiled in the same minutes.

    Attributes:
        candidate: The model in question.
        original: The uncompressed network.
        call_ms: Latency of a model that computes nothing.
        looking_us: What the runtime's profile says its only kernel takes.
    """

    candidate: ModelProfile
    original: ModelProfile
    call_ms: float
    looking_us: float
