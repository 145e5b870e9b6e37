"""Decoded images are kept for all epochs and processes, whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import multiprocessing
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from search.config import ImageFolderConfig
from search.data import Split, describe, image_folder, kept, load, loading
from search.data.kept import MappedImages
from search.data.splits import View
from search.errors import ConfigError

SHAPE = (3, 6, 5)


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """No data set is loaded yet."""
    loading._opened.clear()
    yield
    loading._opened.clear()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes with eight training and three test images each, 6x5 pixels."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 8), ("test", 3)):
        for label in ("cat", "dog"):
            (tmp_path / "data" / part / label).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (6, 5, 3), np.uint8)
                Image.fromarray(pixels).save(tmp_path / "data" / part / label / f"{number}.png")
    return tmp_path / "data"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store" / "images"


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Image files that are decoded, in order."""
    found: list[Path] = []
    decode = image_folder._decode

    def noting(path: Path, *arguments: Any) -> Any:
        found.append(path)
        return decode(path, *arguments)

    monkeypatch.setattr(image_folder, "_decode", noting)
    return found


def config(root: Path, **changes: Any) -> ImageFolderConfig:
    values: dict[str, Any] = {
        "name": "image_folder",
        "root": str(root),
        "channels": 3,
        "image_size": None,
        "validation_share": 0.25,
        "mean": None,
        "std": None,
        "memory_limit_bytes": 0,
    }
    return ImageFolderConfig(**(values | changes))


def all_pixels(split: Split) -> Any:
    return split.read(np.arange(len(split)))


def images_of(split: Split) -> Any:
    assert isinstance(split.images, View)
    return split.images.images


def test_images_are_decoded_once_and_then_mapped(
    root: Path, folder: Path, decoded: list[Path]
) -> None:
    plain = describe(config(root, memory_limit_bytes=10**9))
    expected = all_pixels(load(plain).train)
    loading._opened.clear()
    dataset = describe(config(root), folder)
    assert dataset == plain
    decoded.clear()
    loading._opened.clear()  # as in another process
    splits = load(dataset, folder)
    for split in (splits.train, splits.validation, splits.test):
        assert isinstance(images_of(split), MappedImages)
    for _ in range(2):
        assert np.array_equal(all_pixels(splits.train), expected)
    assert len(decoded) == 2, "of each folder the first, for its shape"
    assert {path.suffix for path in folder.iterdir()} == {".u8", ".content"}
    assert list((folder.parent / "parts").iterdir()) == []


def test_a_kept_file_is_named_by_its_content(root: Path, folder: Path) -> None:
    describe(config(root), folder)
    files = sorted(folder.glob("*.u8"))
    assert sorted(path.stat().st_size for path in files) == [6 * 90, 16 * 90]
    for path in files:
        assert path.stem == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "gone", "record"])
def test_what_is_damaged_is_decoded_again(root: Path, folder: Path, damage: str) -> None:
    before = describe(config(root), folder)
    expected = all_pixels(load(before, folder).train)
    path = max(folder.glob("*.u8"), key=lambda file: file.stat().st_size)
    content = path.read_bytes()
    match damage:
        case "flip":
            path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        case "cut":
            path.write_bytes(content[:-90])
        case "empty":
            path.write_bytes(b"")
        case "gone":
            path.unlink()
        case "record":
            for record in folder.glob("*.content"):
                record.write_bytes(b"\xff" * 64 if record.stat().st_ino % 2 else b"junk")
    loading._opened.clear()
    assert describe(config(root), folder) == before
    assert np.array_equal(all_pixels(load(before, folder).train), expected)
    assert path.read_bytes() == content


def test_changed_files_are_decoded_anew_though_their_time_is_set_back(
    root: Path, folder: Path
) -> None:
    before = describe(config(root), folder)
    file = root / "train" / "cat" / "0.png"
    status, other = file.stat(), (root / "train" / "dog" / "1.png").read_bytes()
    file.write_bytes(other[: status.st_size].ljust(status.st_size, b"\0"))
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    loading._opened.clear()
    assert describe(config(root), folder).fingerprint != before.fingerprint


def test_without_room_images_are_decoded_every_time(
    root: Path,
    folder: Path,
    decoded: list[Path],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kept, "RESERVE_BYTES", 2**60)
    roomy = describe(config(root, memory_limit_bytes=10**9))
    with caplog.at_level(logging.WARNING):
        dataset = describe(config(root), folder)
    assert dataset == roomy
    assert "has no room" in caplog.text
    assert list(folder.glob("*.u8")) == []
    loading._opened.clear()
    decoded.clear()
    splits = load(dataset, folder)
    assert len(decoded) <= 2, "what the files hold is remembered, and only their shape is read"
    assert isinstance(splits.train.images, View)
    assert not splits.train.images.is_decoded
    before = len(decoded)
    all_pixels(splits.train)
    all_pixels(splits.train)
    assert len(decoded) == before + 2 * len(splits.train)


def test_a_disk_that_fills_up_meanwhile(
    root: Path, folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    dataset = describe(config(root, memory_limit_bytes=10**9), folder)
    assert "has no room" in caplog.text
    assert load(dataset, folder).train.in_memory
    assert list((folder.parent / "parts").iterdir()) == []


def test_what_was_used_least_recently_makes_room(
    root: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.mkdir(parents=True)
    old, new = folder / f"{'0' * 64}.u8", folder / f"{'1' * 64}.u8"
    for path, age_s in ((old, 2000), (new, 1000)):
        path.write_bytes(bytes(1000))
        os.utime(path, (time.time() - age_s,) * 2)

    class Usage:
        """A disk of 4 500 bytes that holds these files alone."""

        @property
        def free(self) -> int:
            return 4500 - sum(path.stat().st_size for path in folder.glob("*.u8"))

    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage())
    monkeypatch.setattr(kept, "RESERVE_BYTES", 1500)
    describe(config(root), folder)  # 1 440 and 540 bytes
    assert not old.exists()
    assert new.exists()
    assert len(list(folder.glob("*.u8"))) == 3


def test_a_broken_image_is_named_before_anything_is_trained(root: Path, folder: Path) -> None:
    (root / "train" / "dog" / "3.png").write_bytes(b"no image")
    with pytest.raises(ConfigError, match=r"cannot read the image '.*dog/3\.png'"):
        describe(config(root, image_size=(4, 4)), folder)
    assert list((folder.parent / "parts").iterdir()) == []


def test_images_that_name_themselves_are_read_once(folder: Path) -> None:
    class Named:
        fingerprint = "first edition"
        reads = 0

        def __len__(self) -> int:
            return 7

        def __getitem__(self, index: int) -> Any:
            self.reads += 1
            return np.full(SHAPE, index, np.uint8)

    images = Named()
    first, content = kept.keep(images, "named", SHAPE, folder, "here")
    again, _ = kept.keep(images, "named", SHAPE, folder, "here")
    assert images.reads == 7
    assert isinstance(again, MappedImages)
    assert again[3].tolist() == np.full(SHAPE, 3).tolist()
    # Without a key they are read to be known, but not written twice.
    unnamed, same = kept.keep(images, None, SHAPE, folder, "here")
    assert (same, len(list(folder.glob("*.u8")))) == (content, 1)
    assert isinstance(unnamed, MappedImages)
    assert len(first) == 7


def describe_in_a_process(root: Path, folder: Path, answers: Any) -> None:
    answers.put(describe(config(root), folder).fingerprint)


def test_processes_share_what_one_of_them_decodes(root: Path, folder: Path) -> None:
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    processes = [
        context.Process(target=describe_in_a_process, args=(root, folder, answers))
        for _ in range(2)
    ]
    for process in processes:
        process.start()
    found = {answers.get(timeout=60) for _ in processes}
    for process in processes:
        process.join()
    assert len(found) == 1
    assert len(list(folder.glob("*.u8"))) == 2


def test_a_stopped_process_is_not_waited_for(
    root: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = describe(config(root), folder)
    for path in folder.glob("*.u8"):
        path.unlink()
    loading._opened.clear()
    records = [path.open("rb") for path in folder.glob("*.content")]
    for record in records:
        fcntl.flock(record, fcntl.LOCK_EX)
    monkeypatch.setattr(kept, "STALE_S", 0.5)
    assert describe(config(root), folder) == dataset
    for record in records:
        record.close()
