"""Decoded images are kept for all epochs and processes, whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import multiprocessing
import os
import shutil
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from search.config.data import ImageFolderConfig
from search.data import Split, describe, image_folder, kept, load, loading, statistics
from search.data.kept import MappedImages
from search.data.splits import Subset
from search.devices import stillness
from search.devices.agent.locks import lock_until, open_lock
from search.devices.stillness import working
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
    assert isinstance(split.images, Subset)
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
    assert isinstance(splits.train.images, Subset)
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


class Disk:
    """A disk that holds these files alone."""

    def __init__(self, folder: Path, size_bytes: int) -> None:
        self._folder = folder
        self._size_bytes = size_bytes

    @property
    def free(self) -> int:
        return self._size_bytes - sum(path.stat().st_size for path in self._folder.glob("*.u8"))


def fill(path: Path, age_s: float) -> Path:
    path.write_bytes(bytes(1000))
    os.utime(path, (time.time() - age_s,) * 2)
    return path


def test_what_was_used_least_recently_makes_room(
    root: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.mkdir(parents=True)
    old, new = fill(folder / f"{'0' * 64}.u8", 2000), fill(folder / f"{'1' * 64}.u8", 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Disk(folder, 4500))
    monkeypatch.setattr(kept, "RESERVE_BYTES", 1500)
    describe(config(root), folder)  # 1 440 and 540 bytes
    assert not old.exists()
    assert new.exists()
    assert len(list(folder.glob("*.u8"))) == 3


def test_what_is_mapped_makes_no_room(
    root: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.mkdir(parents=True)
    used, unused = fill(folder / f"{'0' * 64}.u8", 2000), fill(folder / f"{'1' * 64}.u8", 1000)
    with used.open("rb") as stream:
        mapped = MappedImages(stream, (1, 10, 10))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Disk(folder, 4500))
    monkeypatch.setattr(kept, "RESERVE_BYTES", 1500)
    describe(config(root), folder)
    assert used.exists()
    assert not unused.exists()
    assert len(mapped) == 10
    assert not kept._make_room(folder, 1000), "all is in use, what was just decoded too"
    del mapped
    assert kept._make_room(folder, 1000)
    assert not used.exists()


def test_a_file_that_is_just_being_removed_counts_as_gone(folder: Path) -> None:
    """Another process makes room between the opening and the lock."""
    images = np.arange(2 * 90, dtype=np.uint8).reshape(2, *SHAPE)
    content = kept.keep(images, "named", SHAPE, folder, "here")[1]  # and nothing stays mapped
    path = folder / f"{content}.u8"
    found: list[MappedImages | None] = []
    with path.open("r+b") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        finder = threading.Thread(
            target=lambda: found.append(kept._find(folder, content, 2, SHAPE))
        )
        finder.start()
        time.sleep(0.2)
        path.unlink()
    finder.join()
    assert found == [None]


def test_a_broken_image_is_named_before_anything_is_trained(root: Path, folder: Path) -> None:
    (root / "train" / "dog" / "3.png").write_bytes(b"no image")
    with pytest.raises(ConfigError, match=r"cannot read the image '.*dog/3\.png'"):
        describe(config(root, image_size=(4, 4)), folder)
    assert [path for path in folder.parent.rglob("*") if path.is_file()] == []


def test_an_image_that_is_cut_off_leaves_nothing(root: Path, folder: Path) -> None:
    path = root / "train" / "dog" / "3.png"
    path.write_bytes(path.read_bytes()[:-40])  # its header, and so its size, can be read
    with pytest.raises(ConfigError, match=r"cannot read the image '.*dog/3\.png'"):
        describe(config(root), folder)
    assert [path for path in folder.parent.rglob("*") if path.is_file()] == []


def test_statistics_of_too_few_channels_are_refused_before_images_are_kept(
    root: Path, folder: Path, decoded: list[Path]
) -> None:
    with pytest.raises(ConfigError, match="has 1 value but images have 3 channels"):
        describe(config(root, mean=(0.5,)), folder)
    assert not folder.exists()
    assert len(decoded) == 2, "of each folder the first, for its shape"


def test_who_waited_for_a_process_that_failed_keeps_what_it_decodes(
    root: Path, folder: Path
) -> None:
    """The record that it waited for is removed, and it makes another one."""
    folder.mkdir(parents=True)
    path = folder / "key.content"

    def fail() -> None:
        with kept._turn(path):
            begun.set()
            time.sleep(0.5)
            raise ConfigError("no image")

    def work() -> None:
        with working(), pytest.raises(ConfigError):
            fail()

    begun = threading.Event()
    other = threading.Thread(target=work)
    other.start()
    begun.wait()
    with working(), kept._turn(path) as record:
        record.write(b"mine")
    other.join()
    assert path.read_bytes() == b"mine"


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


class Counted:
    """A lazy sequence that nothing names."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.reads = 0

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        self.reads += 1
        return np.full(SHAPE, index % 251, np.uint8)


def test_images_that_nothing_names_are_written_while_they_are_read(folder: Path) -> None:
    images = Counted(7)
    first, content = kept.keep(images, None, SHAPE, folder, "here")
    assert images.reads == 7
    assert isinstance(first, MappedImages)
    again, same = kept.keep(images, None, SHAPE, folder, "here")
    assert (images.reads, same) == (14, content), "to find out that they are the same"
    assert isinstance(again, MappedImages)
    assert len(list(folder.iterdir())) == 1
    assert list((folder.parent / "parts").iterdir()) == []


def test_memory_holds_images_once(monkeypatch: pytest.MonkeyPatch) -> None:
    images = Counted(20_000)  # 1.8 MB
    monkeypatch.setattr(kept, "_CHUNK_BYTES", 1 << 16)
    tracemalloc.start()
    held, _ = loading._hold(images, SHAPE, "here", None, may_hold=True)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert isinstance(held, np.ndarray)
    assert held[300].tolist() == images[300].tolist()
    assert peak_bytes < 1.5 * held.nbytes


def test_statistics_do_not_depend_on_where_images_are_held(
    root: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statistics, "_SAMPLE", 5)
    places: list[tuple[int, Path | None]] = [(10**9, None), (0, None), (0, folder)]
    found = []
    for limit, place in places:
        loading._opened.clear()
        dataset = describe(config(root, memory_limit_bytes=limit), place)
        found.append((load(dataset).train.in_memory, dataset.mean, dataset.std))
    assert [in_memory for in_memory, *_ in found] == [True, False, False]
    assert len({(mean, std) for _, mean, std in found}) == 1


Measuring = Callable[[], AbstractContextManager[None]]


@pytest.fixture
def measuring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Measuring:
    """Measures on a machine where nobody else does."""
    paths = {name: tmp_path / name for name in ("QUEUE_LOCK", "DEVICE_LOCK")}
    for name, path in paths.items():
        monkeypatch.setattr(stillness, name, path)

    @contextmanager
    def measure() -> Iterator[None]:
        with ExitStack() as held:
            for path in paths.values():
                descriptor = open_lock(path)
                held.callback(os.close, descriptor)
                assert lock_until(descriptor, time.monotonic() + 60)
            yield

    return measure


def test_images_are_not_decoded_while_somebody_measures(
    root: Path, folder: Path, measuring: Measuring, decoded: list[Path]
) -> None:
    reader = threading.Thread(target=describe, args=(config(root), folder))
    with measuring():
        reader.start()
        time.sleep(0.5)
        assert len(decoded) <= 2, "of each folder the first, for its shape"
    reader.join(60)
    assert len(decoded) > 20


def test_images_give_way_between_chunks_and_while_others_decode(
    root: Path,
    folder: Path,
    measuring: Measuring,
    decoded: list[Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever measures gets the machine though one thread decodes and another waits for it."""
    monkeypatch.setattr(kept, "_CHUNK_BYTES", 90)  # one image
    decode = image_folder._decode

    def slowly(*arguments: Any) -> Any:
        time.sleep(0.1)
        return decode(*arguments)

    monkeypatch.setattr(image_folder, "_decode", slowly)
    readers = [threading.Thread(target=describe, args=(config(root), folder)) for _ in range(2)]
    for reader in readers:
        reader.start()
    deadline = time.monotonic() + 60
    while len(decoded) < 6 and time.monotonic() < deadline:
        time.sleep(0.01)
    with measuring():
        before = len(decoded)
        time.sleep(0.5)
        assert len(decoded) == before
    for reader in readers:
        reader.join(60)
    assert 6 <= before < len(decoded)


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
