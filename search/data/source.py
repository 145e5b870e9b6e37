"""What a data module hands over, and its checks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from search.errors import ConfigError, SearchError, one_line

Pixels: TypeAlias = NDArray[np.uint8]
Labels: TypeAlias = NDArray[np.int64]
Shape: TypeAlias = tuple[int, int, int]

_TO_UINT8 = "scale to 0..255 and convert with .astype('uint8')"


class Images(Protocol):
    """Images that need not lie in memory; an array ``[n, channels, height, width]`` is one.

    An implementation may carry ``fingerprint: str``, which names its content; without it, all
    images are read to find out whether they are the same as before.
    """

    def __len__(self) -> int:
        """Number of images."""

    def __getitem__(self, index: int, /) -> Pixels:
        """Returns one image, ``[channels, height, width]`` uint8."""


@dataclass(frozen=True, eq=False)
class Source:
    """A data set before it is split.

    Attributes:
        train_images: ``[n, channels, height, width]`` uint8, or a lazy sequence of such images.
        train_labels: Indices into ``labels``, ``[n]`` int64.
        test_images: As ``train_images``.
        test_labels: As ``train_labels``.
        labels: Class names, ``[classes]``.
    """

    train_images: Pixels | Images
    train_labels: Labels
    test_images: Pixels | Images
    test_labels: Labels
    labels: tuple[str, ...]


def check_source(source: Source, origin: str) -> tuple[Source, Shape]:
    """Checks what a data module gave.

    Args:
        source: Anything that claims to be a source, possibly the user's own.
        origin: Key and value that it came from, such as ``data.root='pets'``, for messages.

    Returns:
        The source with int64 labels and a tuple of names, and ``(channels, height, width)``.

    Raises:
        ConfigError: Something is of a wrong type, shape or range.
    """
    names = _check_names(source.labels, origin)
    shapes = {}
    labels = {}
    for split in ("train", "test"):
        images, given = getattr(source, f"{split}_images"), getattr(source, f"{split}_labels")
        shapes[split] = _check_images(images, f"{split}_images", origin)
        labels[split] = _check_labels(given, len(images), len(names), split, origin)
    if shapes["train"] != shapes["test"]:
        raise ConfigError(
            f"{origin}: train_images are {_show(shapes['train'])} but test_images "
            f"{_show(shapes['test'])}; scale them to one size"
        )
    checked = replace(
        source, train_labels=labels["train"], test_labels=labels["test"], labels=names
    )
    return checked, shapes["train"]


def read_image(images: Images, index: int, shape: Shape | None, origin: str) -> Pixels:
    """Reads one image of a lazy sequence and checks it.

    Args:
        images: The sequence.
        index: Position in it.
        shape: What the image must be; None accepts any.
        origin: For messages.

    Returns:
        ``[channels, height, width]`` uint8.

    Raises:
        ConfigError: It cannot be read, or is not such an image.
    """
    try:
        image: Any = images[index]
    except SearchError:
        raise
    except Exception as error:
        raise ConfigError(
            f"{origin}: reading image {index} raised {one_line(error)}; correct the sequence"
        ) from error
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
        raise ConfigError(f"{origin}: image {index} is {_type(image)}, not uint8; {_TO_UINT8}")
    if image.ndim != 3 or 0 in image.shape:
        raise ConfigError(
            f"{origin}: image {index} has shape {list(image.shape)}; "
            "give [channels, height, width], each at least 1"
        )
    if shape is not None and image.shape != shape:
        raise ConfigError(
            f"{origin}: image {index} is {_show(image.shape)} but the first one "
            f"{_show(shape)}; scale them to one size"
        )
    return cast(Pixels, image)


def _check_names(given: Any, origin: str) -> tuple[str, ...]:
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise ConfigError(f"{origin}: labels is {_type(given)}; give a tuple of class names")
    names = tuple(given)
    if not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        raise ConfigError(f"{origin}: labels {list(names)} must be distinct strings; rename them")
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise ConfigError(f"{origin}: the label {name!a} is no text; rename it") from None
    if len(names) < 2:
        raise ConfigError(
            f"{origin}: has {len(names)} class{'' if len(names) == 1 else 'es'} in {list(names)}; "
            "a classifier needs at least 2"
        )
    return names


def _check_images(images: Any, name: str, origin: str) -> Shape:
    if not hasattr(images, "__len__") or not hasattr(images, "__getitem__"):
        raise ConfigError(
            f"{origin}: {name} is {_type(images)}; give a uint8 array [n, channels, height, "
            "width], or a sequence of images with __len__ and __getitem__"
        )
    if len(images) == 0:
        raise ConfigError(f"{origin}: {name} is empty; give at least one image")
    if not isinstance(images, np.ndarray):
        shape = read_image(images, 0, None, origin).shape
        return (shape[0], shape[1], shape[2])
    if images.dtype != np.uint8:
        raise ConfigError(f"{origin}: {name} is {_type(images)}, not uint8; {_TO_UINT8}")
    if images.ndim != 4 or 0 in images.shape:
        raise ConfigError(
            f"{origin}: {name} has shape {list(images.shape)}; "
            "give [n, channels, height, width], each at least 1"
        )
    return (images.shape[1], images.shape[2], images.shape[3])


def _check_labels(given: Any, images: int, classes: int, split: str, origin: str) -> Labels:
    name = f"{split}_labels"
    if not isinstance(given, np.ndarray) or not np.issubdtype(given.dtype, np.integer):
        raise ConfigError(
            f"{origin}: {name} is {_type(given)}; give an int64 array of class indices"
        )
    if given.ndim != 1:
        raise ConfigError(
            f"{origin}: {name} has shape {list(given.shape)}; give [n], one class index an image"
        )
    if len(given) != images:
        raise ConfigError(
            f"{origin}: {name} has {len(given)} entries but {split}_images {images}; "
            "give one label an image"
        )
    low, high = int(given.min()), int(given.max())
    if low < 0 or high >= classes:
        raise ConfigError(
            f"{origin}: {name} range from {low} to {high} but there are {classes} class names; "
            f"number the classes from 0 to {classes - 1}, or name all of them in labels"
        )
    return given.astype(np.int64, copy=False)


def _type(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype}"
    return f"of type {type(value).__name__}"


def _show(shape: tuple[int, ...]) -> str:
    return "x".join(str(extent) for extent in shape)
