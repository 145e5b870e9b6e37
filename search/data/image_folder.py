"""Folders of images, one a class."""

from __future__ import annotations

import hashlib
import os
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from search.data.source import Labels, Pixels, Shape, Source
from search.errors import ConfigError, one_line

if TYPE_CHECKING:
    from PIL import Image

# Pillow guesses by the content, and hands some formats to other programs.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
SUFFIXES = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)

_opening = threading.Lock()


@dataclass(frozen=True, eq=False)
class FolderImages:
    """Image files that are decoded when asked for.

    Attributes:
        root: Folder that ``files`` are relative to.
        files: One path an image, ``[n]``.
        shape: ``(channels, height, width)`` that every image has, or is scaled to.
        resize: Whether to scale.
        key: Hash of the paths, lengths and times of change, and of what decodes them.
    """

    root: Path
    files: tuple[str, ...]
    shape: Shape
    resize: bool
    key: str

    def __len__(self) -> int:
        """Number of images."""
        return len(self.files)

    def __getitem__(self, index: int, /) -> Pixels:
        """Returns one image, ``[channels, height, width]`` uint8.

        Raises:
            ConfigError: The file cannot be decoded, or its size is not that of the others.
        """
        return _decode(self.root / self.files[index], self.shape, self.resize)


def open_source(root: str, channels: int, image_size: tuple[int, int] | None) -> Source:
    """Lists ``root/train/<class>/*`` and ``root/test/<class>/*`` without decoding them.

    Args:
        root: Folder with ``train`` and ``test``.
        channels: 1 for grey, 3 for colour.
        image_size: Height and width in pixels to scale to; None demands that all are equal.

    Raises:
        ConfigError: Folders are missing or empty, classes or sizes differ, or a file is no image.
    """
    folder = Path(root).expanduser()
    origin = f"data.root={root!r}"
    for needed in (folder, folder / "train", folder / "test"):
        if not needed.is_dir():
            raise ConfigError(
                f"{origin}: found no folder {str(needed)!r}; put the images into "
                "train/<class>/ and test/<class>/ of data.root"
            )
    labels = _classes(folder / "train", origin)
    _check_same_classes(labels, _classes(folder / "test", origin), origin)
    train, train_labels = _list_images(folder, "train", labels, origin)
    test, test_labels = _list_images(folder, "test", labels, origin)
    height, width = image_size or _common_size(folder, [*train, *test])
    shape = (channels, height, width)
    resize = image_size is not None
    return Source(
        FolderImages(folder, train, shape, resize, _key(folder, train, shape, resize)),
        train_labels,
        FolderImages(folder, test, shape, resize, _key(folder, test, shape, resize)),
        test_labels,
        labels,
    )


def _classes(folder: Path, origin: str) -> tuple[str, ...]:
    names = sorted(
        path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")
    )
    if not names:
        raise ConfigError(
            f"{origin}: {str(folder)!r} has no class folders; put the images into one folder a "
            "class, named by it"
        )
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise ConfigError(
                f"{origin}: the name of class folder {os.fsencode(name)!r} is not UTF-8, as the "
                "model's labels must be; rename it in train/ and test/"
            ) from None
    return tuple(names)


def _check_same_classes(train: tuple[str, ...], test: tuple[str, ...], origin: str) -> None:
    only_train, only_test = sorted(set(train) - set(test)), sorted(set(test) - set(train))
    if only_train or only_test:
        raise ConfigError(
            f"{origin}: train/ and test/ have different classes (only in train: {only_train}, "
            f"only in test: {only_test}); give both the same class folders"
        )


def _list_images(
    root: Path, split: str, labels: tuple[str, ...], origin: str
) -> tuple[tuple[str, ...], Labels]:
    """Returns paths relative to ``root`` ``[n]`` and class indices ``[n]``, class by class."""
    files: list[str] = []
    classes: list[int] = []
    for number, label in enumerate(labels):
        found = sorted(_walk(root / split / label))
        if not found:
            raise ConfigError(
                f"{origin}: class folder {str(root / split / label)!r} has no image "
                f"({' '.join(sorted(SUFFIXES))}); add images, or remove the class from train/ and "
                "test/"
            )
        files += [path.relative_to(root).as_posix() for path in found]
        classes += [number] * len(found)
    return tuple(files), np.array(classes, np.int64)


def _walk(folder: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:  # or a folder that cannot be read has no images
        raise error

    # Links are followed because data sets are often put together from them; some lead in circles.
    seen: set[tuple[int, int]] = set()
    for where, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        status = Path(where).stat()
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES:
                yield Path(where, name)


def _key(root: Path, files: tuple[str, ...], shape: Shape, resize: bool) -> str:
    from PIL import __version__

    how = f"{root.resolve()}\0{shape}\0{resize}\0Pillow {__version__}\n"
    digest = hashlib.sha256(os.fsencode(how))
    for file in files:
        status = (root / file).stat()
        times = f"{status.st_mtime_ns}\0{status.st_ctime_ns}"  # copies may keep the first of them
        digest.update(os.fsencode(f"{file}\0{status.st_size}\0{times}\0{status.st_ino}\n"))
    return digest.hexdigest()


def _common_size(root: Path, files: list[str]) -> tuple[int, int]:
    """Returns the height and width that all images share; reads headers only."""
    size = _size(root / files[0])
    for file in files[1:]:
        found = _size(root / file)
        if found != size:
            raise _unequal(root / file, found, size)
    return size


def _size(path: Path) -> tuple[int, int]:
    with _open_image(path) as image:
        return (image.height, image.width)


def _decode(path: Path, shape: Shape, resize: bool) -> Pixels:
    from PIL import Image

    channels, height, width = shape
    with _open_image(path) as image:
        if image.mode.startswith(("I", "F")):
            # Pillow would clip these to 255, and nearly all pixels become white.
            raise ConfigError(
                f"data.root: {str(path)!r} has more than 8 bits a channel (mode {image.mode}); "
                "convert it to 8 bits"
            )
        if not resize and (image.height, image.width) != (height, width):
            raise _unequal(path, (image.height, image.width), (height, width))
        try:
            converted = image.convert("L" if channels == 1 else "RGB")
        except Exception as error:
            raise _unreadable(path, error) from error
    if resize and converted.size != (width, height):
        converted = converted.resize((width, height), Image.Resampling.BILINEAR)
    # Copied because arrays over Pillow's memory are read-only, which other libraries warn about.
    pixels = np.array(converted)
    return pixels[None] if channels == 1 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _open_image(path: Path) -> Image.Image:
    from PIL import Image

    try:
        if path.exists() and not path.is_file():
            raise ValueError("it is no file")  # opening a pipe would never end
        # Several threads decode, but only one at a time may change what warnings do.
        with _opening, warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return Image.open(path, formats=FORMATS)
    # Pillow's decoders raise much else than OSError on damaged files.
    except Exception as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> ConfigError:
    return ConfigError(
        f"data.root: cannot read the image {str(path)!r} ({one_line(error)}); replace or remove it"
    )


def _unequal(path: Path, found: tuple[int, int], needed: tuple[int, int]) -> ConfigError:
    return ConfigError(
        f"data.image_size=null: {str(path)!r} is {found[0]}x{found[1]} pixels (height x width) "
        f"but the images before it are {needed[0]}x{needed[1]}; "
        "set data.image_size=[height,width] to scale all images"
    )
