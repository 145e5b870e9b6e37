"""A data set as stages need to know it."""

from __future__ import annotations

from dataclasses import dataclass, field

from search.config.data import DataConfig


@dataclass(frozen=True, slots=True)
class Dataset:
    """What stages need to know of a data set without holding it.

    Attributes:
        config: How to load it.
        fingerprint: Hash of the content, the identity of the data.
        image_shape: ``(channels, height, width)``.
        labels: Class names, ``[classes]``.
        mean: Per-channel mean of the training pixels in 0..1, ``[channels]``.
        std: Per-channel standard deviation of the same, ``[channels]``.
        sizes: Number of images in train, validation and test.
        chances: Accuracy of guessing in train, validation and test, 0..1: the largest class's
            share, which is got without a look at the images.
    """

    config: DataConfig = field(compare=False)
    fingerprint: str
    image_shape: tuple[int, int, int]
    labels: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    sizes: tuple[int, int, int]
    chances: tuple[float, float, float] = field(compare=False)

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.labels)
