"""Decoded images in files that are mapped into memory.

Layout under ``mlruns/store/images``: ``<sha256>.u8`` holds the pixels of a sequence of images, one
after the other, and is named by its content; ``<key>.content`` holds that name for images whose
key, such as the files they are decoded from, is known before they are read. Pixels are written
aside in ``parts``, flushed to disk and renamed. Where the disk has no room, the files that were
used least recently go, but for those that a process has mapped: each holds a shared lock on its
file, and removing that would free nothing. Where it is not enough, nothing is kept.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import math
import mmap
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO

import numpy as np

from search.data.image_folder import FolderImages
from search.data.source import Images, Labels, Pixels, Shape, read_image
from search.devices.stillness import give_way, working
from search.process import activity

log = logging.getLogger(__name__)

RESERVE_BYTES = 1 << 30  # of the disk, for what the search itself writes
# Who decodes touches its lock with every chunk: a stopped process's stays as it is.
STALE_S = 60.0
POLL_S = 0.2
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_CHUNK_BYTES = 1 << 24


class MappedImages:
    """Images in a file that is mapped into memory, and stays while it is.

    Args:
        stream: The open file, which holds nothing else; it may be closed afterwards.
        shape: ``(channels, height, width)``.
    """

    def __init__(self, stream: IO[bytes], shape: Shape) -> None:
        # The map has a copy of the descriptor, which holds the lock for as long as the map lives.
        fcntl.flock(stream, fcntl.LOCK_SH)
        self._map = mmap.mmap(stream.fileno(), 0, prot=mmap.PROT_READ)
        self._pixels: Pixels = np.frombuffer(self._map, np.uint8).reshape(-1, *shape)

    def __len__(self) -> int:
        """Number of images."""
        return len(self._pixels)

    def __getitem__(self, index: int, /) -> Pixels:
        """Returns a copy of one image, ``[channels, height, width]`` uint8."""
        return np.array(self._pixels[index])

    def read(self, indices: Labels) -> Pixels:
        """Returns copies of the images at ``indices`` ``[k]``, ``[k, C, H, W]`` uint8."""
        pixels: Pixels = self._pixels[indices]
        # What was read stays in the system's cache, but no longer counts as this process's memory.
        self._map.madvise(mmap.MADV_DONTNEED)
        return pixels


@working()
def keep(
    images: Images, key: str | None, shape: Shape, folder: Path, origin: str
) -> tuple[Images, str]:
    """Decodes images once for all processes and all epochs.

    Args:
        images: To be read, perhaps slowly.
        key: Names the content before it is read; None where nothing does.
        shape: ``(channels, height, width)`` of every image.
        folder: Where decoded images are kept.
        origin: Key and value that the images came from, for messages.

    Returns:
        The images as they are read fastest, and the SHA-256 of their pixels.

    Raises:
        ConfigError: An image cannot be read, or is not as the others.
        OSError: The folder cannot be written, for another reason than a full disk.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if key is None:
        return _keep_unnamed(images, shape, folder, origin)
    with _turn(folder / f"{key}.content") as record:
        record.seek(0)
        known = record.read().decode("ascii", "replace")
        if len(known) == 64:
            found = _find(folder, known, len(images), shape)
            if found is not None:
                return found, known
        else:
            known = ""
        kept, content = _write(images, shape, folder, origin, record)
        content = content or known or read_all(images, shape, origin)
        record.truncate(0)
        record.seek(0)
        record.write(content.encode())
        return images if kept is None else kept, content


def _keep_unnamed(images: Images, shape: Shape, folder: Path, origin: str) -> tuple[Images, str]:
    """Keeps images that are known by their pixels alone.

    Where nothing of their size is kept they are written while they are read; else they are read to
    find out whether that is them.
    """
    size_bytes = len(images) * math.prod(shape)
    if any(_size(path) == size_bytes for path in folder.glob("*.u8")):
        content = read_all(images, shape, origin)
        found = _find(folder, content, len(images), shape)
        if found is not None:
            return found, content
    kept, content = _write(images, shape, folder, origin)
    return images if kept is None else kept, content or read_all(images, shape, origin)


def _size(path: Path) -> int:
    with suppress(FileNotFoundError):  # removed a moment ago
        return path.stat().st_size
    return 0


@working()
def read_all(
    images: Images,
    shape: Shape,
    origin: str,
    take: Callable[[Pixels], object] = lambda pixels: None,
    what: str = "reading images",
) -> str:
    """Reads all images, in their order.

    Args:
        images: To be read.
        shape: ``(channels, height, width)`` of every image.
        origin: Key and value that they came from, for messages.
        take: Given all pixels, ``[k, channels, height, width]`` at a time.
        what: For those who wait.

    Returns:
        The SHA-256 of their pixels.

    Raises:
        ConfigError: An image cannot be read, or is not as the others.
    """
    digest = hashlib.sha256()
    step = max(1, _CHUNK_BYTES // math.prod(shape))
    # Image files are decoded by all cores; of what users wrote nobody knows whether it may be.
    threads = len(os.sched_getaffinity(0)) if isinstance(images, FolderImages) else 1

    def read(index: int) -> Pixels:
        return read_image(images, index, shape, origin)

    with ThreadPoolExecutor(threads) as pool:
        each = map if threads == 1 else pool.map
        for start in range(0, len(images), step):
            give_way()
            activity.tell("image", start, len(images), what=what)
            indices = range(start, min(start + step, len(images)))
            if isinstance(images, np.ndarray):
                pixels = np.ascontiguousarray(images[indices.start : indices.stop])
            else:
                pixels = np.stack(list(each(read, indices)))
            digest.update(pixels.data)
            take(pixels)
    return digest.hexdigest()


def _find(folder: Path, content: str, count: int, shape: Shape) -> MappedImages | None:
    """Returns the images of that content, unless they are missing or damaged."""
    path = folder / f"{content}.u8"
    try:
        stream = path.open("rb")
    except FileNotFoundError:
        return None
    with stream:
        fcntl.flock(stream, fcntl.LOCK_SH)
        status = os.fstat(stream.fileno())
        if status.st_nlink == 0:  # removed a moment ago, to make room
            return None
        if status.st_size == count * math.prod(shape) and _digest(stream) == content:
            with suppress(OSError):  # somebody else's, who shares it
                os.utime(path)  # used now
            return MappedImages(stream, shape)
    log.warning("%s is damaged: the images are decoded again", path)
    path.unlink(missing_ok=True)
    return None


def _digest(stream: IO[bytes]) -> str:
    size_bytes = os.fstat(stream.fileno()).st_size
    digest = hashlib.sha256()
    while chunk := stream.read(_CHUNK_BYTES):
        give_way()
        digest.update(chunk)
        done, whole = stream.tell() >> 20, size_bytes >> 20
        activity.tell("MiB", done, whole, what="checking decoded images")
    return digest.hexdigest()


def _write(
    images: Images, shape: Shape, folder: Path, origin: str, record: IO[bytes] | None = None
) -> tuple[MappedImages | None, str]:
    """Decodes images into a file; without room for it returns None and no content."""
    size_bytes = len(images) * math.prod(shape)
    if not _make_room(folder, size_bytes):
        _tell_no_room(origin, size_bytes, folder)
        return None, ""
    parts = folder.parent / "parts"
    parts.mkdir(exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=parts)
    try:
        with os.fdopen(descriptor, "w+b") as stream:

            def take(pixels: Pixels) -> None:
                stream.write(pixels.data)
                if record is not None:
                    os.utime(record.fileno())  # the others see that it goes on

            content = read_all(images, shape, origin, take, "decoding images")
            stream.flush()
            os.fsync(stream.fileno())
            kept = MappedImages(stream, shape)  # before others can see and remove it
            path = folder / f"{content}.u8"
            Path(name).replace(path)
    except BaseException as error:
        Path(name).unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            _tell_no_room(origin, size_bytes, folder)
            return None, ""
        raise
    log.debug("%s: %d decoded images are kept in %s", origin, len(images), path)
    return kept, content


def _tell_no_room(origin: str, size_bytes: int, folder: Path) -> None:
    log.warning(
        "%s: the disk of %s has no room for %.1f GB of decoded images beside %.1f GB for the "
        "search: they are decoded anew in every epoch, which is slower",
        origin,
        folder,
        size_bytes / 1e9,
        RESERVE_BYTES / 1e9,
    )


def _make_room(folder: Path, size_bytes: int) -> bool:
    """Removes what was used least recently until there is room; nothing if that is not enough.

    What a process has mapped stays: its space would not be free before that process ends.
    """
    needed = size_bytes + RESERVE_BYTES - shutil.disk_usage(folder).free
    if needed <= 0:
        return True
    with ExitStack() as held:
        files = [held.enter_context(file) for path in folder.glob("*.u8") if (file := _claim(path))]
        if sum(_status(file).st_size for file in files) < needed:
            return False
        for file in sorted(files, key=lambda file: _status(file).st_mtime):
            Path(file.name).unlink(missing_ok=True)
            needed -= _status(file).st_size
            if needed <= 0:
                break
    return shutil.disk_usage(folder).free >= size_bytes + RESERVE_BYTES


def _claim(path: Path) -> IO[bytes] | None:
    """Opens a file that nobody has mapped, so that nobody maps it; None where that is not so."""
    try:
        file = path.open("r+b")
    except (FileNotFoundError, PermissionError):  # removed a moment ago, or somebody else's
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def _status(file: IO[bytes]) -> os.stat_result:
    return os.fstat(file.fileno())


@contextmanager
def _turn(path: Path) -> Iterator[IO[bytes]]:
    """Opens a record for one process at a time; it is removed if nothing is written into it."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "r+b", buffering=0) as record:
            _await_turn(record)
            if _status(record).st_nlink == 0:  # the one before failed, and removed it
                continue
            os.utime(descriptor)
            try:
                yield record
            finally:
                if _status(record).st_size == 0:
                    path.unlink(missing_ok=True)
            return


def _await_turn(record: IO[bytes]) -> None:
    """Waits until no other process has the record; one that was stopped is not waited for."""
    unchanged_s, touched = 0.0, _status(record).st_mtime_ns
    while unchanged_s < STALE_S:
        try:
            fcntl.flock(record, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            activity.tell("image", 0, 0, what="waiting for images that another process decodes")
        # Not counted: whoever decodes waits for the same measurement.
        give_way()
        time.sleep(POLL_S)
        before, touched = touched, _status(record).st_mtime_ns
        unchanged_s = unchanged_s + POLL_S if touched == before else 0.0
