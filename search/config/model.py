"""Types of ``conf/model``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, Tag
from pydantic.dataclasses import dataclass

from search.config.values import Arguments, Whole, named, strict


@dataclass(frozen=True, config=strict)
class BuiltInModelConfig:
    """One of the project's own networks."""

    name: Literal["cnn", "resnet8", "ds_cnn"]
    title: str
    width: Annotated[Whole, Field(ge=1, le=1024)]
    checkpoint: str | None


@dataclass(frozen=True, config=strict)
class CustomModelConfig:
    """A network of the user's own, or one of a plug-in's."""

    name: str
    title: str
    factory: str
    arguments: Arguments
    checkpoint: str | None


ModelConfig = Annotated[
    Annotated[BuiltInModelConfig, Tag("cnn")]
    | Annotated[BuiltInModelConfig, Tag("resnet8")]
    | Annotated[BuiltInModelConfig, Tag("ds_cnn")]
    | Annotated[CustomModelConfig, Tag("custom")],
    named("models", "custom", "cnn", "resnet8", "ds_cnn", "custom"),
]
