"""Inference runtimes: the formats that each takes, and the dimensions that it adds.

One file per runtime, found by ``process.registry``; on the device a file of the same name in
``search.devices.agent.drivers`` runs its models.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from search.process import registry
from search.records.deployable import Format
from search.space.dimension import Dimension


@dataclass(frozen=True)
class Runtime:
    """An inference runtime.

    Attributes:
        name: As it is registered, and as the agent's driver is called.
        dimensions: That it adds to the space of studies whose device has it.
        formats: By the value of the dimension ``bits``.
        converter: ``module:function`` that stores a float ONNX model in a format. It is given a
            ``Quantize`` step, the content of its model and a function that yields calibration
            images ``[k, C, H, W]`` in 0..1, and returns the content of the file and the options
            of its session. It is named by a string because it needs ONNX, which the coordinator
            does not.
        integer_operators: Executed operator types that multiply and add integers.
        float_operators: Those that do so in float.
    """

    name: str
    dimensions: tuple[Dimension, ...]
    formats: Mapping[int, Format]
    converter: str
    integer_operators: frozenset[str]
    float_operators: frozenset[str]


def runtimes() -> Mapping[str, Runtime]:
    """Returns all runtimes by name, plug-ins' too."""
    return registry.load_all("runtimes")
