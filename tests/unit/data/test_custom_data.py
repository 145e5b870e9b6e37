"""The user's own source: what it may give, and what it is told otherwise."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from search.config.data import CustomDataConfig
from search.data import describe, load
from search.data.splits import Subset
from search.errors import ConfigError

MODULE = '''
"""A user's own data."""

import numpy as np

from search.data import Source

rng = np.random.default_rng(3)
TRAIN = rng.integers(0, 256, (40, 2, 6, 5), np.uint8)
TEST = rng.integers(0, 256, (10, 2, 6, 5), np.uint8)
reads = 0


class Lazy:
    def __init__(self, pixels):
        self.pixels = pixels

    def __len__(self):
        return len(self.pixels)

    def __getitem__(self, index):
        global reads
        reads += 1
        return self.pixels[index]


class Named(Lazy):
    fingerprint = "first edition"


class Odd(Lazy):
    """Gives something else from image 7 on."""

    def __init__(self, pixels, what):
        super().__init__(pixels)
        self.what = what

    def __getitem__(self, index):
        if index < 7:
            return self.pixels[index]
        if self.what == "raises":
            raise OSError("disk on fire")
        return {"float": self.pixels[index] / 255, "flat": self.pixels[index][0],
                "large": np.zeros((2, 7, 5), np.uint8)}[self.what]


def build(**changes):
    values = dict(
        train_images=TRAIN, train_labels=np.arange(40) % 3,
        test_images=TEST, test_labels=np.arange(10) % 3, labels=("a", "b", "c"),
    )
    return Source(**(values | changes))


def lazy(kind="Lazy"):
    wrap = globals()[kind]
    return build(train_images=wrap(TRAIN), test_images=wrap(TEST))


def odd(what):
    return build(train_images=Odd(TRAIN, what))


def mapped(path):
    np.save(path, TRAIN)
    return build(train_images=np.load(path, mmap_mode="r"))


def angry(size):
    raise ValueError(f"size {size} is bad\\nsecond line")


def wrong():
    return TRAIN, TEST
'''


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    (tmp_path / "own_data.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    import own_data  # type: ignore[import-not-found]  # written a moment ago

    yield own_data
    del sys.modules["own_data"]


def config(function: str = "build", limit: int = 10**9, **arguments: Any) -> CustomDataConfig:
    return CustomDataConfig(
        name="custom",
        factory=f"own_data:{function}",
        arguments=arguments,
        validation_share=0.25,
        mean=None,
        std=None,
        memory_limit_bytes=limit,
    )


def refused(config: CustomDataConfig) -> str:
    with pytest.raises(ConfigError) as caught:
        describe(config)
    return str(caught.value)


def test_what_the_function_prints_is_logged(
    module: Any, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)

    def build() -> Any:
        print("reading the images")
        return module.build()

    module.speaking = build
    describe(config("speaking"))
    assert capsys.readouterr() == ("", "")
    assert "data.factory='own_data:speaking': reading the images" in caplog.messages


def test_arrays_stay_arrays_whatever_the_limit(module: Any) -> None:
    for limit in (0, 10**9):
        dataset = describe(config(limit=limit))
        assert dataset.image_shape == (2, 6, 5)
        assert dataset.labels == ("a", "b", "c")
        assert len(dataset.mean) == len(dataset.std) == 2
        splits = load(dataset)
        assert splits.train.in_memory
        assert np.array_equal(splits.test.read(range(10)), module.TEST)


def test_other_integer_labels_and_lists_of_names_are_taken() -> None:
    plain = describe(config())
    given = describe(
        config(train_labels=(np.arange(40) % 3).astype(np.uint8), labels=["a", "b", "c"])
    )
    assert given == plain
    assert load(given).train.labels.dtype == np.int64


def test_lazy_images_are_decoded_below_the_limit_and_stay_lazy_above() -> None:
    arrays = describe(config())
    assert describe(config("lazy")) == arrays
    assert load(describe(config("lazy"))).train.in_memory
    lazy = describe(config("lazy", limit=0))
    splits = load(lazy)
    assert isinstance(splits.train.images, Subset)
    everything = np.arange(len(splits.train))
    assert np.array_equal(splits.train.read(everything), load(arrays).train.read(everything))
    # Without a fingerprint of their own, lazy images are known by their pixels.
    assert lazy.fingerprint == arrays.fingerprint


def test_a_fingerprint_of_their_own_spares_reading(module: Any) -> None:
    first = describe(config("lazy", limit=0, kind="Named"))
    module.Named.fingerprint = "second edition"
    module.reads = 0
    load(first)
    assert module.reads == 0
    assert describe(config("lazy", limit=0, kind="Named")).fingerprint != first.fingerprint


def test_statistics_of_many_lazy_images_read_a_sample(module: Any) -> None:
    module.TRAIN = np.random.default_rng(0).integers(0, 256, (9000, 1, 2, 2), np.uint8)
    module.TEST = module.TRAIN[:10]
    given = {"test_images": module.TEST, "train_labels": np.arange(9000) % 3}
    exact = describe(config(limit=0, train_images=module.TRAIN, **given))
    estimated = describe(config(limit=0, train_images=module.Named(module.TRAIN), **given))
    assert 5000 <= module.reads < 5010
    assert estimated.mean == pytest.approx(exact.mean, abs=0.01)
    assert estimated.mean != exact.mean


def test_mapped_files_are_not_copied_whatever_the_limit(module: Any, tmp_path: Path) -> None:
    path = str(tmp_path / "train.npy")
    for limit in (0, 10**9):
        arrays = describe(config())
        dataset = describe(config("mapped", limit=limit, path=path))
        assert dataset == arrays
        train = load(dataset).train
        assert isinstance(train.images, Subset)
        assert train.images.is_decoded
        assert np.array_equal(train.read([0, 5]), module.TRAIN[train.images.indices[[0, 5]]])


def test_any_change_changes_the_fingerprint(module: Any) -> None:
    pixels = module.TRAIN.copy()
    pixels[-1, -1, -1, -1] ^= 1
    changes: list[dict[str, Any]] = [
        {},
        {"train_images": pixels},
        {"train_labels": np.arange(1, 41) % 3},
        {"test_labels": np.arange(1, 11) % 3},
        {"labels": ("a", "b", "d")},
        {"labels": ("a", "b", "c", "d"), "train_labels": np.arange(40) % 4},
        {
            "train_images": module.TRAIN.reshape(40, 2, 5, 6),
            "test_images": module.TEST.reshape(10, 2, 5, 6),
        },
    ]
    found = {describe(config(**change)).fingerprint for change in changes}
    assert len(found) == len(changes)


FAULTS: list[tuple[dict[str, Any], str]] = [
    (
        {"train_images": np.zeros((40, 2, 6, 5), np.float32)},
        "train_images is an array of float32, not uint8; "
        "scale to 0..255 and convert with .astype('uint8')",
    ),
    (
        {"test_images": np.zeros((10, 6, 5), np.uint8)},
        "test_images has shape [10, 6, 5]; give [n, channels, height, width], each at least 1",
    ),
    (
        {"test_images": np.zeros((10, 2, 0, 5), np.uint8)},
        "test_images has shape [10, 2, 0, 5]; give [n, channels, height, width], each at least 1",
    ),
    (
        {"train_images": None},
        "train_images is of type NoneType; give a uint8 array [n, channels, height, width], "
        "or a sequence of images with __len__ and __getitem__",
    ),
    (
        {"train_images": [np.zeros((2, 6, 5))] * 40},
        "image 0 is an array of float64, not uint8; "
        "scale to 0..255 and convert with .astype('uint8')",
    ),
    (
        {"train_images": ["a.png"] * 40},
        "image 0 is of type str, not uint8; scale to 0..255 and convert with .astype('uint8')",
    ),
    (
        {"train_images": np.zeros((0, 2, 6, 5), np.uint8)},
        "train_images is empty; give at least one image",
    ),
    (
        {"test_images": [], "test_labels": np.arange(0)},
        "test_images is empty; give at least one image",
    ),
    (
        {"test_images": np.zeros((10, 1, 6, 5), np.uint8)},
        "train_images are 2x6x5 but test_images 1x6x5; scale them to one size",
    ),
    (
        {"train_labels": np.arange(39) % 3},
        "train_labels has 39 entries but train_images 40; give one label an image",
    ),
    (
        {"test_labels": [0] * 10},
        "test_labels is of type list; give an int64 array of class indices",
    ),
    (
        {"test_labels": np.zeros(10)},
        "test_labels is an array of float64; give an int64 array of class indices",
    ),
    (
        {"test_labels": np.zeros((10, 3), np.int64)},
        "test_labels has shape [10, 3]; give [n], one class index an image",
    ),
    (
        {"test_labels": np.arange(10)},
        "test_labels range from 0 to 9 but there are 3 class names; "
        "number the classes from 0 to 2, or name all of them in labels",
    ),
    (
        {"train_labels": np.arange(40) % 3 - 1},
        "train_labels range from -1 to 1 but there are 3 class names; "
        "number the classes from 0 to 2, or name all of them in labels",
    ),
    ({"labels": "abc"}, "labels is of type str; give a tuple of class names"),
    ({"labels": 3}, "labels is of type int; give a tuple of class names"),
    (
        {"labels": ("a", "b", "a")},
        "labels ['a', 'b', 'a'] must be distinct strings; rename them",
    ),
    (
        {"labels": ("a", "b", os.fsdecode(b"caf\xe9"))},
        r"the label 'caf\udce9' is no text; rename it",
    ),
    ({"labels": (0, 1, 2)}, "labels [0, 1, 2] must be distinct strings; rename them"),
    ({"labels": ("a",)}, "has 1 class in ['a']; a classifier needs at least 2"),
    ({"labels": ()}, "has 0 classes in []; a classifier needs at least 2"),
]


@pytest.mark.parametrize(("change", "message"), FAULTS)
def test_each_fault_of_a_source_is_told_with_its_remedy(
    change: dict[str, Any], message: str
) -> None:
    assert refused(config(**change)) == f"data.factory='own_data:build': {message}"


@pytest.mark.parametrize("limit", [0, 10**9])
@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("raises", "raised OSError: disk on fire; correct the sequence"),
        ("float", "is an array of float64, not uint8; scale to 0..255 and convert with"),
        ("flat", "has shape [6, 5]; give [channels, height, width], each at least 1"),
        ("large", "is 2x7x5 but the first one 2x6x5; scale them to one size"),
    ],
)
def test_a_later_image_that_is_wrong_is_named(what: str, message: str, limit: int) -> None:
    text = refused(config("odd", limit, what=what))
    assert text.startswith("data.factory='own_data:odd': ")
    assert "image " in text
    assert message in text


def test_a_function_that_raises() -> None:
    assert re.fullmatch(
        r"data\.factory='own_data:angry': called with data\.arguments={'size': 3} it raised "
        r"ValueError: size 3 is bad \(own_data\.py:\d+\); correct the function or data\.arguments",
        refused(config("angry", size=3)),
    )


def test_arguments_that_do_not_fit() -> None:
    message = refused(config("angry", length=3))
    assert "data.arguments={'length': 3} it raised TypeError: " in message
    assert message.endswith("; correct the function or data.arguments")


def test_a_function_that_returns_something_else() -> None:
    assert refused(config("wrong")) == (
        "data.factory='own_data:wrong': returned tuple; return a search.data.Source"
    )


def test_a_function_that_is_not_there() -> None:
    assert refused(config("absent")) == (
        "data.factory='own_data:absent': module own_data has no 'absent'; define it there"
    )


def test_a_class_without_training_images() -> None:
    assert refused(config(labels=("a", "b", "c", "d"))) == (
        "data.validation_share=0.25: class 'd' has 0 training images but needs 2, one to train on "
        "and one to validate on; add images, or leave the class out"
    )
