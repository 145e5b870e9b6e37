"""What a study searches for, how, and when it ends."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    Field,
    Tag,
    ValidationInfo,
    field_validator,
)
from pydantic.dataclasses import dataclass

from search.config.values import (
    Arguments,
    Count,
    NonNegative,
    Number,
    Positive,
    Whole,
    named,
    strict,
)


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


@dataclass(frozen=True, config=strict)
class PluginSamplerConfig:
    """A sampler of a plug-in's; ``factory`` names what returns it."""

    name: str
    factory: str
    arguments: Arguments


SamplerConfig = Annotated[
    Annotated[TpeConfig, Tag("tpe")]
    | Annotated[NsgaConfig, Tag("nsga2")]
    | Annotated[GpConfig, Tag("gp")]
    | Annotated[RandomConfig, Tag("random")]
    | Annotated[PluginSamplerConfig, Tag("plug-in")],
    named("samplers", "plug-in", "tpe", "nsga2", "gp", "random"),
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
