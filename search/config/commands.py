"""What each command line takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Field,
)
from pydantic.dataclasses import dataclass

from search.config.data import DataConfig
from search.config.device import DeviceConfig
from search.config.engine import EngineConfig
from search.config.model import ModelConfig
from search.config.places import StorageConfig, TrackingConfig
from search.config.study import (
    FinalistsConfig,
    ObjectiveConfig,
    PolicyConfig,
    SamplerConfig,
    StudyConfig,
    _name_a_file,
)
from search.config.train import TrainConfig
from search.config.values import Count, Number, Positive, Whole, strict


@dataclass(frozen=True, config=strict)
class SearchConfig:
    """The whole configuration of ``search.run``."""

    model: ModelConfig
    data: DataConfig
    space: Mapping[str, Any]
    sampler: SamplerConfig
    policy: PolicyConfig
    finalists: FinalistsConfig
    objective: ObjectiveConfig
    device: DeviceConfig
    train: TrainConfig
    engine: EngineConfig
    storage: StorageConfig
    tracking: TrackingConfig
    study: StudyConfig


@dataclass(frozen=True, config=strict)
class RegistrationConfig:
    """A whole configuration of ``search.device``."""

    device: DeviceConfig


Preference = Literal["accuracy", "latency", "size", "knee"]


@dataclass(frozen=True, config=strict)
class PickConfig:
    """The whole configuration of ``search.pick``."""

    study: Annotated[str, AfterValidator(_name_a_file)] | None
    trial: Annotated[Whole, Field(ge=0)] | None
    prefer: Preference | None
    max_latency_ms: Positive | None
    max_p99_ms: Positive | None
    min_accuracy: Annotated[Number, Field(ge=0, le=1)] | None
    max_accuracy_drop: Annotated[Number, Field(ge=0, le=1)] | None
    max_size_bytes: Annotated[Whole, Field(gt=0)] | None
    out: str | None
    dry_run: bool
    promote: bool
    force: bool
    reason: str | None
    storage: StorageConfig
    tracking: TrackingConfig


@dataclass(frozen=True, config=strict)
class ExplainConfig:
    """A whole configuration of ``search.explain``."""

    study: Annotated[str, AfterValidator(_name_a_file)] | None
    trial: Annotated[Whole, Field(ge=0)] | None
    top: Count
    storage: StorageConfig


@dataclass(frozen=True, config=strict)
class SyncConfig:
    """A whole configuration of ``search.sync``."""

    study: Annotated[str, AfterValidator(_name_a_file)] | None
    storage: StorageConfig
    tracking: TrackingConfig
