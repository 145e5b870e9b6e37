"""Steps that measure on the device."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from search.config.device import DeviceConfig
from search.records.data import Dataset
from search.records.deployable import Deployable
from search.records.device import DeviceProfile
from search.records.measurement import Measurement, Session
from search.records.profile import Comparison
from search.records.steps.step import Resource, Step


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
    version: ClassVar[int] = 4
    resource: ClassVar[Resource] = "device"
    result: ClassVar[type] = Comparison

    comparison: Measure
