"""Types and ranges of ``conf/``; knows no defaults (the YAML files hold them) and no meaning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from search.errors import ConfigError

strict = ConfigDict(extra="forbid")
Share = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Statistics = tuple[float, ...] | None


@dataclass(frozen=True, config=strict)
class BuiltInModelConfig:
    """One of the project's own networks."""

    name: Literal["cnn", "resnet8", "ds_cnn"]
    title: str
    width: Annotated[int, Field(ge=1, le=1024)]
    checkpoint: str | None


@dataclass(frozen=True, config=strict)
class CustomModelConfig:
    """A network of the user's own."""

    name: Literal["custom"]
    title: str
    factory: str
    arguments: Mapping[str, Any]
    checkpoint: str | None


ModelConfig = Annotated[BuiltInModelConfig | CustomModelConfig, Field(discriminator="name")]


@dataclass(frozen=True, config=strict)
class _SplitConfig:
    """What every data set shares."""

    validation_share: Share
    mean: Statistics
    std: Statistics
    memory_limit_bytes: Annotated[int, Field(ge=0)]


@dataclass(frozen=True, config=strict)
class FashionMnistConfig(_SplitConfig):
    """Fashion-MNIST."""

    name: Literal["fashion_mnist"]
    root: str | None


@dataclass(frozen=True, config=strict)
class DigitsConfig(_SplitConfig):
    """scikit-learn's digits."""

    name: Literal["digits"]


@dataclass(frozen=True, config=strict)
class ImageFolderConfig(_SplitConfig):
    """The user's own folders of images."""

    name: Literal["image_folder"]
    root: str
    channels: Literal[1, 3]
    image_size: tuple[Count, Count] | None


@dataclass(frozen=True, config=strict)
class CustomDataConfig(_SplitConfig):
    """Any Python source of images."""

    name: Literal["custom"]
    factory: str
    arguments: Mapping[str, Any]


DataConfig = Annotated[
    FashionMnistConfig | DigitsConfig | ImageFolderConfig | CustomDataConfig,
    Field(discriminator="name"),
]


@dataclass(frozen=True, config=strict)
class TpeConfig:
    """Multi-objective TPE."""

    name: Literal["tpe"]
    n_startup_trials: Count
    multivariate: bool


@dataclass(frozen=True, config=strict)
class NsgaConfig:
    """NSGA-II."""

    name: Literal["nsga2"]
    population_size: Annotated[int, Field(ge=2)]


@dataclass(frozen=True, config=strict)
class GpConfig:
    """Gaussian processes."""

    name: Literal["gp"]
    n_startup_trials: Count


@dataclass(frozen=True, config=strict)
class RandomConfig:
    """Independent random points."""

    name: Literal["random"]


SamplerConfig = Annotated[
    TpeConfig | NsgaConfig | GpConfig | RandomConfig, Field(discriminator="name")
]
ObjectiveName = Literal["accuracy", "latency", "size", "cpu", "memory"]


@dataclass(frozen=True, config=strict)
class ObjectiveConfig:
    """What the front trades, and the limits a point must keep."""

    names: Annotated[tuple[ObjectiveName, ...], Field(min_length=2)]
    max_accuracy_drop: Annotated[float, Field(ge=0, le=1)] | None
    max_latency_ms: Positive | None
    max_size_bytes: Annotated[int, Field(gt=0)] | None

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if len(set(self.names)) < len(self.names):
            raise ValueError("names an objective twice")
        return self


@dataclass(frozen=True, config=strict)
class DeviceConfig:
    """The device that latency is measured on."""

    name: Literal["local"]
    batch_size: Count
    budget_s: Positive
    timeout_s: Positive

    @model_validator(mode="after")
    def _time_out_after_budget(self) -> Self:
        if self.timeout_s <= self.budget_s:
            raise ValueError("timeout_s must be above budget_s")
        return self


@dataclass(frozen=True, config=strict)
class TrainConfig:
    """Training of the teacher, fine-tuning and calibration of the students."""

    device: Literal["auto", "cpu", "cuda"]
    precision: Literal["auto", "float32", "bfloat16"]
    batch_size: Count
    epochs: Positive
    rungs: Annotated[tuple[Annotated[float, Field(gt=0, le=1)], ...], Field(min_length=1)]
    weight_decay: NonNegative
    teacher_epochs: Count
    teacher_learning_rate: Positive
    teacher_weight_decay: NonNegative
    calibration_images: Count

    @model_validator(mode="after")
    def _rungs_rise_to_one(self) -> Self:
        if list(self.rungs) != sorted(set(self.rungs)) or self.rungs[-1] != 1.0:
            raise ValueError(f"rungs {list(self.rungs)} must rise and end with 1, like [0.5, 1.0]")
        return self


@dataclass(frozen=True, config=strict)
class EngineConfig:
    """Where steps run."""

    name: Literal["inline"]


@dataclass(frozen=True, config=strict)
class TrackingConfig:
    """Where finished trials are shown."""

    uri: str | None
    timeout_s: Positive


@dataclass(frozen=True, config=strict)
class StudyConfig:
    """Name and budgets of the study."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
    n_trials: Count | None
    timeout_s: Positive | None
    seed: Annotated[int, Field(ge=0, lt=2**32)]

    @model_validator(mode="after")
    def _ends(self) -> Self:
        if self.n_trials is None and self.timeout_s is None:
            raise ValueError("never ends; set n_trials or timeout_s")
        return self


@dataclass(frozen=True, config=strict)
class SearchConfig:
    """The whole configuration of ``search.run``."""

    model: ModelConfig
    data: DataConfig
    space: Mapping[str, Any]
    sampler: SamplerConfig
    objective: ObjectiveConfig
    device: DeviceConfig
    train: TrainConfig
    engine: EngineConfig
    tracking: TrackingConfig
    study: StudyConfig


def parse(raw: object) -> SearchConfig:
    """Checks a composed configuration.

    Args:
        raw: Nested dictionaries and lists, interpolations resolved.

    Raises:
        ConfigError: With every fault by its dotted key, joined in one line.
    """
    try:
        return TypeAdapter(SearchConfig).validate_python(raw)
    except ValidationError as error:
        faults = [_describe(fault) for fault in error.errors(include_url=False)]
        raise ConfigError("; ".join(faults)) from None


def _describe(fault: Any) -> str:
    # The discriminator's value stands in the location ("model", "cnn", "width"): not a key.
    location = [str(part) for part in fault["loc"]]
    if len(location) > 1 and location[0] in ("model", "data", "sampler") and len(location) > 2:
        del location[1]
    message = fault["msg"].removeprefix("Value error, ")
    given = fault["input"]
    shown = "" if isinstance(given, dict) else f"={given!r}"
    return f"{'.'.join(location)}{shown}: {message[0].lower()}{message[1:]}"
