"""Mean, deviation and identity of pixels."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator

import numpy as np

from search.data.source import Labels, Pixels, Shape, Source
from search.data.splits import Split

# Enough for two sure digits of mean and deviation; reading more of a large folder takes minutes.
_SAMPLE = 5000
_CHUNK_BYTES = 1 << 22


def channel_statistics(
    split: Split, shape: Shape, is_lazy: bool
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Computes mean and standard deviation of the pixels, scaled to 0..1.

    Counting the 256 levels is exact, and spares a float copy of the whole set. Images of a lazy
    source are estimated from at most 5 000 evenly spaced ones, also where this process holds them:
    the figures are settings of a study, and must not depend on how full a disk is.

    Args:
        split: The images.
        shape: ``(channels, height, width)``.
        is_lazy: Whether the source gave images that did not lie in memory.

    Returns:
        Mean and standard deviation, ``[channels]`` each.
    """
    chosen = np.arange(len(split))
    if is_lazy and len(split) > _SAMPLE:
        chosen = np.linspace(0, len(split) - 1, _SAMPLE).astype(np.int64)
    counts = np.zeros((shape[0], 256), np.int64)
    for pixels in _chunks(split, chosen, shape):
        for channel in range(shape[0]):
            counts[channel] += np.bincount(pixels[:, channel].reshape(-1), minlength=256)
    levels = np.arange(256) / 255
    weights = counts / counts.sum(axis=1, keepdims=True)
    mean = (weights * levels).sum(axis=1)
    variance = (weights * (levels - mean[:, None]) ** 2).sum(axis=1)
    return tuple(map(float, mean)), tuple(map(float, np.sqrt(variance)))


def chance(split: Split) -> float:
    """Returns the accuracy, 0..1, of answering with a split's largest class every time."""
    return float(np.bincount(split.labels).max() / len(split))


def fingerprint(source: Source, contents: tuple[str, str], shape: Shape, cut: Labels) -> str:
    """Returns a hash of names, images, labels and of how they are split.

    Args:
        source: The data before they are split.
        contents: What names the pixels of the training and the test images, such as their hash.
        shape: ``(channels, height, width)``.
        cut: Training images that are validated on, ``[k]``.
    """
    digest = hashlib.sha256()
    known = {"shape": shape, "labels": source.labels, "contents": contents}
    digest.update(json.dumps(known).encode())
    for part in (source.train_labels, source.test_labels, cut):
        digest.update(len(part).to_bytes(8) + part.tobytes())
    return digest.hexdigest()


def _chunks(split: Split, indices: Labels, shape: Shape) -> Iterator[Pixels]:
    step = max(1, _CHUNK_BYTES // (shape[0] * shape[1] * shape[2]))
    for start in range(0, len(indices), step):
        yield split.read(indices[start : start + step])
