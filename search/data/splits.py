"""Splits and how they are cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from search.data.kept import MappedImages
from search.data.source import Images, Labels, Pixels, Shape, read_image
from search.errors import ConfigError

# One seed for good: figures compare between studies only if they select on the same images.
SEED = 0


class Subset:
    """Some images of a larger set, read whenever they are asked for.

    Args:
        images: The set: an array, perhaps mapped from a file, or a lazy sequence.
        indices: Which of them, ``[n]``.
        shape: ``(channels, height, width)`` that every image must have.
        origin: Key and value that they came from, for messages.
    """

    def __init__(self, images: Pixels | Images, indices: Labels, shape: Shape, origin: str) -> None:
        self.images = images
        self.indices = indices
        self.shape = shape
        self.origin = origin

    def __len__(self) -> int:
        """Number of images."""
        return len(self.indices)

    @property
    def is_decoded(self) -> bool:
        """Whether reading is copying; else every image is decoded anew."""
        return isinstance(self.images, np.ndarray | MappedImages)

    def __getitem__(self, index: int, /) -> Pixels:
        """Returns one image, ``[channels, height, width]`` uint8.

        Raises:
            ConfigError: It cannot be read, or its shape is not the data set's.
        """
        return read_image(self.images, int(self.indices[index]), self.shape, self.origin)

    def read(self, indices: Labels) -> Pixels:
        """Returns copies of the images at ``indices`` ``[k]``, ``[k, C, H, W]`` uint8."""
        if isinstance(self.images, MappedImages):
            return self.images.read(self.indices[indices])
        if isinstance(self.images, np.ndarray):
            return np.asarray(self.images[self.indices[indices]])
        pixels = np.empty((len(indices), *self.shape), np.uint8)
        for row, index in enumerate(indices):
            pixels[row] = self[int(index)]
        return pixels


@dataclass(frozen=True, eq=False)
class Split:
    """Images with their labels; shared by all callers in the process, so never changed.

    Attributes:
        images: ``[n, C, H, W]`` uint8, or a view of images that this process does not hold.
        labels: Class indices, ``[n]`` int64.
    """

    images: Pixels | Subset
    labels: Labels

    def __len__(self) -> int:
        """Number of images."""
        return len(self.labels)

    @property
    def in_memory(self) -> bool:
        """Whether ``images`` is an array."""
        return isinstance(self.images, np.ndarray)

    def read(self, indices: Sequence[int] | NDArray[Any]) -> Pixels:
        """Returns copies of the images at ``indices`` ``[k]``, ``[k, C, H, W]`` uint8."""
        wanted = np.asarray(indices, np.int64)
        if isinstance(self.images, np.ndarray):
            return self.images[wanted]
        return self.images.read(wanted)


@dataclass(frozen=True, eq=False)
class Splits:
    """The three parts of a data set: to fit, to select, and to report once."""

    train: Split
    validation: Split
    test: Split


def stratify(labels: Labels, names: tuple[str, ...], share: float) -> tuple[Labels, Labels]:
    """Cuts a share of every class off, always the same way.

    Each class is drawn on its own, so that more images of one class leave the others' split alone.

    Args:
        labels: Class indices, ``[n]``.
        names: Class names, ``[classes]``.
        share: Share to cut off, above 0 and below 1; met within one image in each class.

    Returns:
        Indices that stay ``[n - k]`` and indices that were cut off ``[k]``, both rising.

    Raises:
        ConfigError: A class has fewer than two images, so that one side would lack it.
    """
    cut = np.zeros(len(labels), bool)
    for number, name in enumerate(names):
        members = np.flatnonzero(labels == number)
        if len(members) < 2:
            raise ConfigError(
                f"data.validation_share={share:g}: class {name!r} has {len(members)} training "
                f"image{'' if len(members) == 1 else 's'} but needs 2, one to train on and one to "
                "validate on; add images, or leave the class out"
            )
        wanted = min(max(round(len(members) * share), 1), len(members) - 1)
        shuffled = np.random.default_rng([SEED, number]).permutation(members)
        cut[shuffled[:wanted]] = True
    return np.flatnonzero(~cut), np.flatnonzero(cut)
