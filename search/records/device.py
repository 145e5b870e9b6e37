"""The device that latency is measured on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from search.records.deployable import Int8Format
from search.records.measurement import Interval


@dataclass(frozen=True, slots=True)
class DeviceProfile:
    """The device that latency is measured on.

    Attributes:
        name: What the user calls it.
        cpu: Processor model.
        arch: Machine architecture as ``platform.machine()`` gives it.
        flags: Instruction sets that matter here, sorted.
        usable_cores: Cores that affinity and quota leave.
        runtime: ``onnxruntime`` with its version.
        round_to: Channels are kept in multiples of this.
        int8_format: Static 8-bit format that suits the processor.
        speeds: Latency of each format over float's on the probe network, with its interval; empty
            where the device was not probed.
        probe_ms: Latency of the probe network in float; None where it was not probed.
    """

    name: str
    cpu: str
    arch: str
    flags: tuple[str, ...]
    usable_cores: int
    runtime: str
    round_to: int
    int8_format: Int8Format
    speeds: Mapping[str, Interval] = field(default_factory=dict, compare=False)
    probe_ms: float | None = field(default=None, compare=False)

    @property
    def runtime_name(self) -> str:
        """Name of the runtime, without its version."""
        return self.runtime.partition(" ")[0]
