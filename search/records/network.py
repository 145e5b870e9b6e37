"""Networks: how they are built, and with which weights."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from search.records.files import File

Shapes = tuple[tuple[str, tuple[int, ...]], ...]


@dataclass(frozen=True, slots=True)
class NetworkSpec:
    """How to build the unpruned network.

    Attributes:
        name: Registered name, or ``custom``.
        width: Channels of the first layer; None for ``custom``.
        factory: ``package.module:function`` of a custom network.
        arguments: Keyword arguments of the factory, sorted by name.
        source_sha256: Digest of the custom factory's source file.
        image_shape: ``(channels, height, width)`` of its input.
        classes: Number of logits.
    """

    name: str
    width: int | None
    factory: str | None
    arguments: tuple[tuple[str, Any], ...]
    source_sha256: str | None
    image_shape: tuple[int, int, int]
    classes: int


@dataclass(frozen=True, slots=True)
class Edit:
    """A change of a network that its weights' shapes do not show.

    Attributes:
        apply: Reference ``module:function`` of what makes it: given a module and the ``values``,
            it returns the changed module, whose weights are then loaded.
        values: What to change, sorted by name, as JSON values.
    """

    apply: str
    values: tuple[tuple[str, Any], ...]


@dataclass(frozen=True, slots=True)
class Network:
    """A network with weights; pruning shows only in the weights' shapes.

    Rebuilding it is building its spec, making its edits in order, and giving its layers the shapes.

    Attributes:
        spec: The unpruned network.
        shapes: ``(parameter name, shape)`` of every tensor: the structure.
        weights: Safetensors file of the state dict.
        macs: Multiply-accumulates of one image.
        parameters: Number of trainable values.
        edits: In the order in which they were made.
    """

    spec: NetworkSpec
    shapes: Shapes
    weights: File
    macs: int
    parameters: int
    edits: tuple[Edit, ...] = ()

    @property
    def structure(self) -> str:
        """Hexadecimal digest of what it computes with, whatever its weights."""
        named = repr((self.spec, self.shapes, self.edits))
        return hashlib.sha256(named.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Teacher:
    """The accurate network that the search starts from.

    Attributes:
        network: Its weights.
        logits: File of its logits, ``[train images, classes]`` float16 in little-endian order.
        val_accuracy: PyTorch accuracy on the validation split, 0..1.
    """

    network: Network
    logits: File
    val_accuracy: float


@dataclass(frozen=True, slots=True)
class Student:
    """A network in the middle of, or after, its fine-tuning.

    Attributes:
        network: Its weights.
        state: Optimizer and schedule state to go on from; None after the last rung.
        val_accuracy: PyTorch accuracy on the validation split, 0..1.
    """

    network: Network
    state: File | None
    val_accuracy: float
