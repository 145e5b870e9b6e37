"""The steps that score a model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from search.config.device import DeviceConfig
from search.records.data import Dataset
from search.records.deployable import Deployable
from search.records.device import DeviceProfile
from search.records.score import Score
from search.records.steps.step import Resource, Step


@dataclass(frozen=True)
class Evaluate(Step[Score]):
    """Runs a deployable model over a split on this machine, which is the ``device`` itself."""

    kind: ClassVar[str] = "evaluate"
    version: ClassVar[int] = 4
    resource: ClassVar[Resource] = "light"
    result: ClassVar[type] = Score

    deployable: Deployable
    data: Dataset
    split: Literal["validation", "test"]
    device: DeviceProfile


@dataclass(frozen=True)
class EvaluateOnDevice(Step[Score]):
    """Runs a deployable model over a split on the device, whose arithmetic may be another."""

    kind: ClassVar[str] = "evaluate_on_device"
    version: ClassVar[int] = 1
    resource: ClassVar[Resource] = "device"
    result: ClassVar[type] = Score

    deployable: Deployable
    data: Dataset
    split: Literal["validation", "test"]
    device: DeviceProfile
    connection: DeviceConfig = field(compare=False)
