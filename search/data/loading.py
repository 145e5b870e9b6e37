"""Opens the configured data set, splits and describes it."""

from __future__ import annotations

import hashlib
import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

import numpy as np
from numpy.typing import NDArray

from search.config.data import (
    CustomDataConfig,
    DataConfig,
    DigitsConfig,
    FashionMnistConfig,
    ImageFolderConfig,
)
from search.data import custom, digits, fashion_mnist, image_folder
from search.data.image_folder import FolderImages
from search.data.kept import MappedImages, keep, read_all
from search.data.source import Images, Labels, Pixels, Shape, Source, check_source
from search.data.splits import Split, Splits, Subset, stratify
from search.data.statistics import chance, channel_statistics, fingerprint
from search.errors import ConfigError
from search.records.data import Dataset


@dataclass(frozen=True, eq=False)
class _Opened:
    """A data set that was loaded, checked and split.

    ``is_lazy`` says whether its source gave training images that did not lie in memory, wherever
    they are held now.
    """

    fingerprint: str
    shape: Shape
    labels: tuple[str, ...]
    splits: Splits
    is_lazy: bool


Check = Callable[[Shape, int], None]
SAMPLES = 8
BATCH_BYTES = 1 << 24  # of pixels in float32
# A study uses one data set; a second place spares reloading where two are compared.
_PLACES = 2
_opened: OrderedDict[str, _Opened] = OrderedDict()


def describe(
    config: DataConfig, kept: Path | None = None, check: Check = lambda shape, classes: None
) -> Dataset:
    """Loads a data set, checks it, and says what stages need to know of it.

    Args:
        config: Which one.
        kept: Where decoded images are kept for other processes; None keeps them nowhere.
        check: Told the images' shape and the number of classes before any image is kept; may raise.

    Raises:
        ConfigError: It cannot be found or read, or cannot serve as a data set.
    """
    _check_given(config)

    def check_all(shape: Shape, classes: int) -> None:
        _check_statistics(config.mean, config.std, shape[0])
        check(shape, classes)

    opened = _open(config, kept, check_all)
    _remember(opened)
    mean, std = config.mean, config.std
    if mean is None or std is None:
        computed_mean, computed_std = channel_statistics(
            opened.splits.train, opened.shape, opened.is_lazy
        )
        mean = computed_mean if mean is None else mean
        std = computed_std if std is None else std
    _check_statistics(mean, std, opened.shape[0])
    splits = opened.splits
    return Dataset(
        config=config,
        fingerprint=opened.fingerprint,
        image_shape=opened.shape,
        labels=opened.labels,
        mean=mean,
        std=std,
        sizes=(len(splits.train), len(splits.validation), len(splits.test)),
        chances=(chance(splits.train), chance(splits.validation), chance(splits.test)),
    )


def outline(config: DataConfig) -> tuple[Shape, int] | None:
    """Returns shape and number of classes where they are known before anything is fetched."""
    if isinstance(config, FashionMnistConfig):
        return fashion_mnist.IMAGE_SHAPE, len(fashion_mnist.LABELS)
    return None


def load(dataset: Dataset, kept: Path | None = None) -> Splits:
    """Returns the splits of a described data set; this process loads them only once.

    Args:
        dataset: What was described.
        kept: Where decoded images are kept for other processes; None keeps them nowhere.

    Raises:
        ConfigError: The data can no longer be read, or are not those that were described.
    """
    opened = _opened.get(dataset.fingerprint)
    if opened is None:
        opened = _open(dataset.config, kept)
        if opened.fingerprint != dataset.fingerprint:
            raise ConfigError(
                f"{_origin(dataset.config)}: the images changed while they were in use "
                f"(fingerprint {opened.fingerprint[:12]}, was {dataset.fingerprint[:12]}); "
                "start the study again"
            )
    _remember(opened)
    return opened.splits


def _remember(opened: _Opened) -> None:
    _opened[opened.fingerprint] = opened
    _opened.move_to_end(opened.fingerprint)
    while len(_opened) > _PLACES:
        _opened.popitem(last=False)


def _open(
    config: DataConfig, kept: Path | None, check: Check = lambda shape, classes: None
) -> _Opened:
    origin = _origin(config)
    try:
        source, shape = check_source(_open_source(config), origin)
    except OSError as error:
        raise ConfigError(
            f"{origin}: cannot read {str(error.filename)!r} ({error.strerror}); make it readable, "
            "or remove it"
        ) from error
    check(shape, len(source.labels))
    rest, cut = stratify(source.train_labels, source.labels, config.validation_share)
    images = len(source.train_labels) + len(source.test_labels)
    may_hold = images * math.prod(shape) <= config.memory_limit_bytes
    train, train_content = _hold(source.train_images, shape, origin, kept, may_hold)
    test, test_content = _hold(source.test_images, shape, origin, kept, may_hold)
    everything = np.arange(len(source.test_labels))
    splits = Splits(
        train=_cut(train, source.train_labels, rest, shape, origin),
        validation=_cut(train, source.train_labels, cut, shape, origin),
        test=_cut(test, source.test_labels, everything, shape, origin),
    )
    identity = fingerprint(source, (train_content, test_content), shape, cut)
    return _Opened(identity, shape, source.labels, splits, not _in_memory(source.train_images))


def _hold(
    images: Pixels | Images, shape: Shape, origin: str, kept: Path | None, may_hold: bool
) -> tuple[Pixels | Images, str]:
    """Returns images as they are read fastest, and what names their content.

    Args:
        images: As the source gave them.
        shape: Of each.
        origin: For messages.
        kept: Where decoded images are kept.
        may_hold: Whether this process may hold them all, where they cannot be kept.
    """
    if isinstance(images, np.ndarray):
        return images, read_all(images, shape, origin)
    name = getattr(images, "fingerprint", None)
    content = name if isinstance(name, str) else None
    if kept is not None:
        key = images.key if isinstance(images, FolderImages) else None
        if content is not None:
            key = hashlib.sha256(
                f"{origin}\0{shape}\0{len(images)}\0{content}".encode()
            ).hexdigest()
        found, pixels = keep(images, key, shape, kept, origin)
        content = pixels if content is None else content
        if isinstance(found, MappedImages):
            return found, content
    if may_hold:
        held, pixels = _read_into_memory(images, shape, origin)
        return held, pixels if content is None else content
    return images, read_all(images, shape, origin) if content is None else content


def _read_into_memory(images: Images, shape: Shape, origin: str) -> tuple[Pixels, str]:
    """Returns all images ``[n, C, H, W]``, and the SHA-256 of their pixels."""
    held = np.empty((len(images), *shape), np.uint8)
    done = 0

    def take(pixels: Pixels) -> None:
        nonlocal done
        held[done : done + len(pixels)] = pixels
        done += len(pixels)

    return held, read_all(images, shape, origin, take)


def _in_memory(images: Pixels | Images) -> TypeGuard[Pixels]:
    # A memory-mapped file is an array to numpy, but copying it would read it whole.
    return isinstance(images, np.ndarray) and not isinstance(images, np.memmap)


def _cut(
    images: Pixels | Images, labels: Labels, indices: Labels, shape: Shape, origin: str
) -> Split:
    if _in_memory(images):
        whole = len(indices) == len(images)
        return Split(images if whole else images[indices], labels[indices])
    return Split(Subset(images, indices, shape, origin), labels[indices])


def _open_source(config: DataConfig) -> Source:
    match config:
        case FashionMnistConfig():
            return fashion_mnist.open_source(config.root)
        case DigitsConfig():
            return digits.open_source()
        case ImageFolderConfig():
            return image_folder.open_source(config.root, config.channels, config.image_size)
        case CustomDataConfig():
            return custom.open_source(config.factory, config.arguments)


def _origin(config: DataConfig) -> str:
    match config:
        case FashionMnistConfig() | ImageFolderConfig():
            return f"data.root={config.root!r}"
        case DigitsConfig():
            return "data=digits"
        case CustomDataConfig():
            return f"data.factory={config.factory!r}"


def _check_given(config: DataConfig) -> None:
    """Checks what can be checked before minutes of loading."""
    for value in config.mean or ():
        # NaN fails this comparison too.
        if not 0 <= value <= 1:
            raise ConfigError(
                f"data.mean={list(config.mean or ())}: must lie in 0..1; "
                "divide figures for pixels in 0..255 by 255"
            )
    for value in config.std or ():
        if not 0 < value < math.inf:
            raise ConfigError(
                f"data.std={list(config.std or ())}: must be above 0 and finite; "
                "set null to compute it"
            )
    known = outline(config)
    if known is not None:
        _check_statistics(config.mean, config.std, known[0][0])


def _check_statistics(
    mean: tuple[float, ...] | None, std: tuple[float, ...] | None, channels: int
) -> None:
    for key, values in (("data.mean", mean), ("data.std", std)):
        if values is not None and len(values) != channels:
            raise ConfigError(
                f"{key}={list(values)}: has {len(values)} value{'' if len(values) == 1 else 's'} "
                f"but images have {channels} channel{'' if channels == 1 else 's'}; give one a "
                "channel, or null to compute it"
            )
    if std is not None and 0.0 in std:
        raise ConfigError(
            f"data.std=null: channel {std.index(0.0)} is the same in all training pixels, so its "
            "deviation is 0; correct the images, or set data.std"
        )


def batch_of(image_shape: Sequence[int], most: int, most_bytes: int = BATCH_BYTES) -> int:
    """Returns how many images of that shape to answer at a time, at most ``most``.

    Not more than a few megabytes, because what a network holds meanwhile is many times as large.
    """
    return max(1, min(most, most_bytes // (4 * math.prod(image_shape))))


def read_samples(data: Dataset, kept: Path | None = None) -> NDArray[np.float32]:
    """Reads a few real images ``[8, C, H, W]`` in 0..1: zeros would make some kernels faster."""
    images = load(data, kept).validation.read(np.arange(min(SAMPLES, data.sizes[1])))
    return np.asarray(images, dtype=np.float32) / np.float32(255)
