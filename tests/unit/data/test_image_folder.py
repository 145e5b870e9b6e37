"""Folders of real image files, decoded at once or lazily."""

from __future__ import annotations

import errno
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from search.config.data import ImageFolderConfig
from search.data import describe, load
from search.data.splits import Subset
from search.errors import ConfigError


def config(root: Path, **changes: Any) -> ImageFolderConfig:
    values: dict[str, Any] = {
        "name": "image_folder",
        "root": str(root),
        "channels": 3,
        "image_size": None,
        "validation_share": 0.25,
        "mean": None,
        "std": None,
        "memory_limit_bytes": 4_000_000_000,
    }
    return ImageFolderConfig(**(values | changes))


def draw(path: Path, seed: int, size: tuple[int, int] = (6, 5)) -> None:
    """Writes a random colour image; ``size`` is height and width."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes with eight training and three test images each, 6x5 pixels."""
    for number, name in enumerate(("dog", "cat")):
        for image in range(8):
            draw(tmp_path / "train" / name / f"{image}.png", 100 * number + image)
        for image in range(3):
            draw(tmp_path / "test" / name / f"{image}.PNG", 100 * number + 50 + image)
    return tmp_path


def refused(config: ImageFolderConfig) -> str:
    with pytest.raises(ConfigError) as caught:
        describe(config)
    return str(caught.value)


def test_classes_by_name_and_exact_pixels(root: Path) -> None:
    dataset = describe(config(root))
    assert dataset.labels == ("cat", "dog")
    assert dataset.image_shape == (3, 6, 5)
    assert dataset.sizes == (12, 4, 6)
    test = load(dataset).test
    assert test.in_memory
    assert test.labels.tolist() == [0, 0, 0, 1, 1, 1]
    with Image.open(root / "test" / "dog" / "1.PNG") as image:
        expected = np.asarray(image).transpose(2, 0, 1)
    assert np.array_equal(test.images[4], expected)


def test_grey(root: Path) -> None:
    dataset = describe(config(root, channels=1))
    assert dataset.image_shape == (1, 6, 5)
    with Image.open(root / "test" / "cat" / "0.PNG") as image:
        expected = np.asarray(image.convert("L"))
    assert np.array_equal(load(dataset).test.images[0][0], expected)


def test_scaling_makes_unequal_images_equal(root: Path) -> None:
    draw(root / "train" / "cat" / "large.jpg", 7, (40, 30))
    dataset = describe(config(root, image_size=[12, 8]))
    assert dataset.image_shape == (3, 12, 8)
    assert load(dataset).train.read([0]).shape == (1, 3, 12, 8)


def test_hidden_and_other_files_are_ignored_and_subfolders_are_not(root: Path) -> None:
    before = describe(config(root)).sizes
    cat = root / "train" / "cat"
    (cat / "notes.txt").write_text("no image")
    (cat / ".hidden.png").write_text("no image")
    (cat / ".thumbnails").mkdir()
    (cat / ".thumbnails" / "0.png").write_text("no image")
    (root / "train" / ".cache").mkdir()
    assert describe(config(root)).sizes == before
    draw(cat / "more" / "0.png", 8)
    assert sum(describe(config(root)).sizes) == sum(before) + 1


def test_above_the_memory_limit_images_stay_on_disk_and_read_the_same(root: Path) -> None:
    whole, lazy = describe(config(root)), describe(config(root, memory_limit_bytes=0))
    assert lazy.sizes == whole.sizes
    assert lazy.mean == pytest.approx(whole.mean)
    assert lazy.std == pytest.approx(whole.std)
    held, streamed = load(whole), load(lazy)
    for name in ("train", "validation", "test"):
        ours, theirs = getattr(streamed, name), getattr(held, name)
        assert not ours.in_memory
        assert isinstance(ours.images, Subset)
        assert len(ours.images) == len(theirs.images)
        assert np.array_equal(ours.labels, theirs.labels)
        assert np.array_equal(ours.read(np.arange(len(ours))), theirs.images)
        assert np.array_equal(ours.images[2], theirs.images[2])
        assert ours.read([]).shape == (0, 3, 6, 5)


def test_the_limit_counts_training_and_test_bytes(root: Path) -> None:
    size = 22 * 3 * 6 * 5
    assert load(describe(config(root, memory_limit_bytes=size))).train.in_memory
    assert not load(describe(config(root, memory_limit_bytes=size - 1))).train.in_memory


def test_lazy_images_travel_to_other_processes(root: Path) -> None:
    images = load(describe(config(root, memory_limit_bytes=0))).test.images
    assert np.array_equal(pickle.loads(pickle.dumps(images))[1], images[1])


@pytest.mark.parametrize("limit", [0, 10**9])
def test_images_are_known_by_their_pixels(root: Path, limit: int) -> None:
    before = describe(config(root, memory_limit_bytes=limit)).fingerprint
    os.utime(root / "train" / "cat" / "0.png", ns=(1, 1))
    assert describe(config(root, memory_limit_bytes=limit)).fingerprint == before
    assert describe(config(root), root / "kept").fingerprint == before
    draw(root / "train" / "cat" / "0.png", 999)
    assert describe(config(root, memory_limit_bytes=limit)).fingerprint != before


@pytest.mark.parametrize("change", ["name", "channels", "image_size", "validation_share"])
def test_images_are_known_by_how_they_are_read(root: Path, change: str) -> None:
    file = root / "test" / "cat" / "0.PNG"
    before = describe(config(root)).fingerprint
    changes: dict[str, dict[str, Any]] = {
        "channels": {"channels": 1},
        "image_size": {"image_size": [4, 4]},
        "validation_share": {"validation_share": 0.5},
    }
    if change == "name":
        file.rename(file.with_name("1b.PNG"))
    assert describe(config(root, **changes.get(change, {}))).fingerprint != before


def test_images_that_change_during_a_study_are_noticed(root: Path) -> None:
    dataset = describe(config(root))
    draw(root / "train" / "cat" / "0.png", 999)
    # Other data push the described ones out of the process's small cache.
    describe(config(root))
    describe(config(root, channels=1))
    with pytest.raises(ConfigError, match=r"changed while they were in use .*; start the study"):
        load(dataset)


def test_a_missing_folder(root: Path) -> None:
    absent = root / "absent"
    assert refused(config(absent)) == (
        f"data.root={str(absent)!r}: found no folder {str(absent)!r}; "
        "put the images into train/<class>/ and test/<class>/ of data.root"
    )
    (root / "test").rename(root / "valid")
    assert refused(config(root)) == (
        f"data.root={str(root)!r}: found no folder {str(root / 'test')!r}; "
        "put the images into train/<class>/ and test/<class>/ of data.root"
    )


def test_a_folder_that_cannot_be_read_is_not_left_out(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scandir, closed = os.scandir, root / "train" / "cat" / "more"
    closed.mkdir()

    def refuse(where: Any) -> Any:  # as for a user without rights, which tests may have
        if Path(where) == closed:
            raise PermissionError(errno.EACCES, "Permission denied", str(where))
        return scandir(where)

    monkeypatch.setattr(os, "scandir", refuse)
    assert "Permission denied" in refused(config(root))
    assert str(closed) in refused(config(root))


def test_images_without_class_folders(tmp_path: Path) -> None:
    draw(tmp_path / "train" / "0.png", 0)
    draw(tmp_path / "test" / "0.png", 1)
    assert refused(config(tmp_path)) == (
        f"data.root={str(tmp_path)!r}: {str(tmp_path / 'train')!r} has no class folders; "
        "put the images into one folder a class, named by it"
    )


def test_classes_that_differ(root: Path) -> None:
    (root / "train" / "bird").mkdir()
    (root / "test" / "dog").rename(root / "test" / "wolf")
    assert refused(config(root)) == (
        f"data.root={str(root)!r}: train/ and test/ have different classes "
        "(only in train: ['bird', 'dog'], only in test: ['wolf']); "
        "give both the same class folders"
    )


def test_an_empty_class(root: Path) -> None:
    (root / "train" / "bird").mkdir()
    (root / "test" / "bird").mkdir()
    message = refused(config(root))
    assert message.startswith(
        f"data.root={str(root)!r}: class folder {str(root / 'train' / 'bird')!r} has no image (.bmp"
    )
    assert message.endswith("add images, or remove the class from train/ and test/")


def test_one_class_only(tmp_path: Path) -> None:
    draw(tmp_path / "train" / "cat" / "0.png", 0)
    draw(tmp_path / "test" / "cat" / "0.png", 1)
    assert refused(config(tmp_path)) == (
        f"data.root={str(tmp_path)!r}: has 1 class in ['cat']; a classifier needs at least 2"
    )


def test_a_class_too_small_to_split(root: Path) -> None:
    draw(root / "train" / "bird" / "0.png", 0)
    draw(root / "test" / "bird" / "0.png", 1)
    assert refused(config(root)) == (
        "data.validation_share=0.25: class 'bird' has 1 training image but needs 2, one to train "
        "on and one to validate on; add images, or leave the class out"
    )


@pytest.mark.parametrize("limit", [0, 4_000_000_000])
def test_unequal_sizes_name_the_first_that_differs(root: Path, limit: int) -> None:
    draw(root / "train" / "dog" / "3.png", 0, (7, 5))
    draw(root / "train" / "dog" / "5.png", 0, (9, 9))
    assert refused(config(root, memory_limit_bytes=limit)) == (
        f"data.image_size=null: {str(root / 'train' / 'dog' / '3.png')!r} is 7x5 pixels "
        "(height x width) but the images before it are 6x5; "
        "set data.image_size=[height,width] to scale all images"
    )


@pytest.mark.parametrize("size", [None, [8, 8]])
def test_a_file_that_is_no_image(root: Path, size: list[int] | None) -> None:
    file = root / "test" / "dog" / "0.PNG"
    file.write_text("no image")
    message = refused(config(root, image_size=size))
    assert message.startswith(
        f"data.root: cannot read the image {str(file)!r} (UnidentifiedImageError: "
    )
    assert message.endswith("; replace or remove it")
    assert "\n" not in message


def test_a_truncated_image(root: Path) -> None:
    file = root / "test" / "dog" / "0.PNG"
    file.write_bytes(file.read_bytes()[:-60])
    message = refused(config(root))
    assert message.startswith(f"data.root: cannot read the image {str(file)!r} (")
    assert message.endswith("; replace or remove it")


def test_more_than_eight_bits_a_channel(root: Path) -> None:
    file = root / "test" / "dog" / "0.PNG"
    Image.fromarray(np.full((6, 5), 40_000, np.uint16)).save(file)
    assert refused(config(root)) == (
        f"data.root: {str(file)!r} has more than 8 bits a channel (mode I;16); convert it to 8 bits"
    )


def test_images_all_the_same(root: Path) -> None:
    for file in root.glob("train/*/*.png"):
        Image.new("RGB", (5, 6), (10, 20, 30)).save(file)
    assert refused(config(root)) == (
        "data.std=null: channel 0 is the same in all training pixels, so its deviation is 0; "
        "correct the images, or set data.std"
    )


def test_a_class_whose_name_is_not_utf8(root: Path) -> None:
    odd = os.fsdecode(b"ni\xf1o")
    for split in ("train", "test"):
        (root / split / "dog").rename(root / split / odd)
    said = refused(config(root))
    assert said.startswith(f"data.root={str(root)!r}: the name of class folder b'ni\\xf1o' is not")
    said.encode()


def test_an_image_whose_name_is_not_utf8(root: Path) -> None:
    place = root / "train" / "dog" / "0.png"
    known = describe(config(root))
    place.rename(place.with_name(os.fsdecode(b"ni\xf1o.png")))
    dataset = describe(config(root))
    assert dataset.sizes == known.sizes
    assert load(dataset).test.labels.tolist() == [0, 0, 0, 1, 1, 1]
