"""Types and ranges of ``conf/``; knows no defaults (the YAML files hold them) and no meaning."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationInfo,
    field_validator,
)
from pydantic.dataclasses import dataclass

from search.errors import SECRET, hide_passwords

T = TypeVar("T")


def _not_bool(value: T) -> T:
    """Refuses true and false, which Python takes for 1 and 0."""
    if isinstance(value, bool):
        raise ValueError("input should be a number")
    return value


# A folder or a study may well be called 2024.
strict = ConfigDict(extra="forbid", allow_inf_nan=False, coerce_numbers_to_str=True)
Whole = Annotated[int, BeforeValidator(_not_bool)]
Number = Annotated[float, BeforeValidator(_not_bool)]
Share = Annotated[Number, Field(gt=0, lt=1)]
Positive = Annotated[Number, Field(gt=0)]
NonNegative = Annotated[Number, Field(ge=0)]
Count = Annotated[Whole, Field(ge=1)]
# The data's own check explains these better, NaN and infinity as well.
Statistic = Annotated[float, Field(allow_inf_nan=True), BeforeValidator(_not_bool)]
Statistics = tuple[Statistic, ...] | None


SECRET_NAME = re.compile(rf"(?i)(.*[_.-])?({SECRET})")


def _keep_no_secret(arguments: Mapping[str, Any]) -> Mapping[str, Any]:
    """Refuses what looks like a secret, because arguments are kept with the study, in clear."""
    for name, value in arguments.items():
        _hold_no_secret(name, value)
    return arguments


def _hold_no_secret(name: str, value: Any) -> None:
    if isinstance(value, Mapping):
        _keep_no_secret(value)
    elif isinstance(value, list | tuple):
        for item in value:
            _hold_no_secret(name, item)
    elif value is not None and not isinstance(value, bool):
        is_named = SECRET_NAME.fullmatch(str(name)) is not None
        if is_named or hide_passwords(str(value)) != str(value):
            raise ValueError(
                f"{name} {'looks like' if is_named else 'seems to hold'} a secret, and arguments "
                "are written down with the study; have the function read it from the environment"
            )


Arguments = Annotated[Mapping[str, Any], AfterValidator(_keep_no_secret)]


@dataclass(frozen=True, config=strict)
class BuiltInModelConfig:
    """One of the project's own networks."""

    name: Literal["cnn", "resnet8", "ds_cnn"]
    title: str
    width: Annotated[Whole, Field(ge=1, le=1024)]
    checkpoint: str | None


@dataclass(frozen=True, config=strict)
class CustomModelConfig:
    """A network of the user's own."""

    name: Literal["custom"]
    title: str
    factory: str
    arguments: Arguments
    checkpoint: str | None


ModelConfig = Annotated[BuiltInModelConfig | CustomModelConfig, Field(discriminator="name")]


@dataclass(frozen=True, config=strict)
class _SplitConfig:
    """What every data set shares."""

    validation_share: Share
    mean: Statistics
    std: Statistics
    memory_limit_bytes: Annotated[Whole, Field(ge=0)]


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
    arguments: Arguments


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
    population_size: Annotated[Whole, Field(ge=2)]


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


def _distinct(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(names)) < len(names):
        raise ValueError("has a name twice; give each once")
    return names


@dataclass(frozen=True, config=strict)
class ObjectiveConfig:
    """What the front trades, and the limits a point must keep."""

    names: Annotated[tuple[ObjectiveName, ...], Field(min_length=2), AfterValidator(_distinct)]
    min_accuracy_share: Annotated[Number, Field(ge=0, lt=1)]
    max_accuracy_drop: Annotated[Number, Field(ge=0, le=1)] | None
    max_latency_ms: Positive | None
    max_size_bytes: Annotated[Whole, Field(gt=0)] | None
    max_memory_bytes: Annotated[Whole, Field(gt=0)] | None


@dataclass(frozen=True, config=strict)
class _MeasuringConfig:
    """How models are measured, whatever the device."""

    batch_size: Count
    throughput_batch_size: Count
    budget_s: Positive
    timeout_s: Positive
    spinning: bool
    memory_limit_bytes: Annotated[Whole, Field(gt=0)] | None
    canary_every: Count | None
    probe: bool

    @field_validator("timeout_s")
    @classmethod
    def _leave_time_to_measure(cls, timeout_s: float, others: ValidationInfo) -> float:
        budget_s = others.data.get("budget_s", 0.0)
        if timeout_s < 3 * budget_s:  # a second attempt may follow, and loading takes its time
            raise ValueError(f"input should be at least 3 times device.budget_s={budget_s:g}")
        return timeout_s


@dataclass(frozen=True, config=strict)
class LocalDeviceConfig(_MeasuringConfig):
    """This machine."""

    name: Literal["local"]


def _name_a_host(host: str) -> str:
    if not host or "@" in host or (":" in host and host.count(":") == 1):
        raise ValueError(
            "input should be a name or address; give device.user and device.port apart"
        )
    return host


@dataclass(frozen=True, config=strict)
class SshDeviceConfig(_MeasuringConfig):
    """Another machine, reached through its ssh server."""

    name: Literal["ssh"]
    host: Annotated[str, AfterValidator(_name_a_host)]
    port: Annotated[Whole, Field(ge=1, le=65535)]
    user: str | None
    key: str | None
    known_hosts: str
    python: str
    folder: str
    retry_s: NonNegative


DeviceConfig = Annotated[LocalDeviceConfig | SshDeviceConfig, Field(discriminator="name")]


def _rise_to_one(rungs: tuple[float, ...]) -> tuple[float, ...]:
    if list(rungs) != sorted(set(rungs)) or rungs[-1] != 1:
        raise ValueError("input should rise and end with 1, such as [0.5, 1.0]")
    return rungs


Rung = Annotated[Number, Field(gt=0, le=1)]


def _count_or_auto(value: object) -> object:
    is_count = isinstance(value, int) and not isinstance(value, bool) and value >= 1
    if value != "auto" and not is_count:
        raise ValueError("input should be a whole number from 1 on, or auto")
    return value


@dataclass(frozen=True, config=strict)
class TrainConfig:
    """Training of the teacher, fine-tuning and calibration of the students."""

    device: Literal["auto", "cpu", "cuda"]
    precision: Literal["auto", "float32", "bfloat16"]
    batch_size: Annotated[int | Literal["auto"], PlainValidator(_count_or_auto)]
    epochs: Positive
    rungs: Annotated[tuple[Rung, ...], Field(min_length=1), AfterValidator(_rise_to_one)]
    weight_decay: NonNegative
    teacher_epochs: Count
    teacher_learning_rate: Positive
    teacher_weight_decay: NonNegative
    calibration_images: Count


@dataclass(frozen=True, config=strict)
class PolicyConfig:
    """What the search does to save training."""

    latency_first: bool
    eta: Annotated[Number, Field(gt=1)] | None
    deployments: Annotated[Whole, Field(ge=0)]


MOST_FINALISTS = 12


@dataclass(frozen=True, config=strict)
class FinalistsConfig:
    """The closing round."""

    count: Annotated[Whole, Field(ge=0, le=MOST_FINALISTS)]
    epochs: NonNegative
    budget_s: Positive


@dataclass(frozen=True, config=strict)
class InlineEngineConfig:
    """Steps run in the search's own process."""

    name: Literal["inline"]


# With less, a worker could hardly import PyTorch.
LEAST_WORKER_BYTES = 2**29


@dataclass(frozen=True, config=strict)
class LocalEngineConfig:
    """Steps run in worker processes of this machine."""

    name: Literal["local"]
    workers: Count
    threads: Count | None
    memory_limit_bytes: Annotated[Whole, Field(ge=LEAST_WORKER_BYTES)] | None


@dataclass(frozen=True, config=strict)
class RayEngineConfig:
    """Steps run on the nodes of a Ray cluster."""

    name: Literal["ray"]
    address: str | None
    workers: Count
    threads: Count
    gpus: NonNegative
    device_resource: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,63}$")]


EngineConfig = Annotated[
    InlineEngineConfig | LocalEngineConfig | RayEngineConfig, Field(discriminator="name")
]


def is_loopback(host: str) -> bool:
    """Tells whether only this machine reaches an address; names but ``localhost`` may be any."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


DATABASE_URL = re.compile(r"postgres(ql)?(\+psycopg)?://[^\s'\"@]*(@[^\s'\"@]*)?\Z")


def _has_form(address: str, form: re.Pattern[str]) -> bool:
    try:
        urlsplit(address).port  # noqa: B018 - raises when it is no number
    except ValueError:
        return False
    return form.match(address) is not None


def _name_a_database(url: str) -> str:
    if not _has_form(url, DATABASE_URL):
        raise ValueError(
            "input should be a database such as postgresql://user@host:5432/name, special "
            "characters of its password in percent form, such as %40 for @"
        )
    return url


@dataclass(frozen=True, config=strict)
class JournalStorageConfig:
    """Studies are files."""

    name: Literal["journal"]


@dataclass(frozen=True, config=strict)
class PostgresStorageConfig:
    """Studies are in a PostgreSQL database."""

    name: Literal["postgres"]
    url: Annotated[str, AfterValidator(_name_a_database)]
    retry_s: NonNegative


StorageConfig = Annotated[JournalStorageConfig | PostgresStorageConfig, Field(discriminator="name")]
TRACKING_URI = re.compile(
    r"(https?|(sqlite|postgresql|mysql|mssql)(\+\w+)?)://[^/\s'\"][^\s'\"]*\Z|sqlite:///."
)


def _trackable(uri: str) -> str:
    if not _has_form(uri, TRACKING_URI):
        raise ValueError(
            "input should be a server such as http://host:5000, a database such as "
            "sqlite:///folder/mlflow.db, or null for mlruns/mlflow.db"
        )
    return uri


@dataclass(frozen=True, config=strict)
class TrackingConfig:
    """Where finished trials are shown."""

    uri: Annotated[str, AfterValidator(_trackable)] | None
    timeout_s: Positive


def _name_a_file(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        raise ValueError(
            "input should be 1 to 100 letters, digits, dots, underscores and hyphens, of which "
            "the first is a letter or digit"
        )
    return name


@dataclass(frozen=True, config=strict)
class StudyConfig:
    """Name and budgets of the study."""

    name: Annotated[str, AfterValidator(_name_a_file)]
    n_trials: Annotated[Whole, Field(ge=0)] | None
    timeout_s: Positive | None
    warm_start: tuple[Annotated[str, AfterValidator(_name_a_file)], ...]
    seed: Annotated[Whole, Field(ge=0, lt=2**32)]

    @field_validator("timeout_s")
    @classmethod
    def _end(cls, timeout_s: float | None, others: ValidationInfo) -> float | None:
        if timeout_s is None and others.data.get("n_trials", 1) is None:
            raise ValueError("with study.n_trials=null too the study never ends; give one of them")
        return timeout_s


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
