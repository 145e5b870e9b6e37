"""Types of ``conf/data``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, Tag
from pydantic.dataclasses import dataclass

from search.config.values import Arguments, Count, Share, Statistics, Whole, named, strict


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
    """Any Python source of images, or one of a plug-in's."""

    name: str
    factory: str
    arguments: Arguments


DataConfig = Annotated[
    Annotated[FashionMnistConfig, Tag("fashion_mnist")]
    | Annotated[DigitsConfig, Tag("digits")]
    | Annotated[ImageFolderConfig, Tag("image_folder")]
    | Annotated[CustomDataConfig, Tag("custom")],
    named("data", "custom", "fashion_mnist", "digits", "image_folder", "custom"),
]
