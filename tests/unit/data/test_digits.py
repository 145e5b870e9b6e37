"""The bundled digits, and loading itself: identity, cache, statistics, given figures."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from search.config.data import DigitsConfig
from search.data import describe, load
from search.data import digits as module
from search.errors import ConfigError


def config(**changes: Any) -> DigitsConfig:
    values: dict[str, Any] = {
        "name": "digits",
        "validation_share": 0.2,
        "mean": None,
        "std": None,
        "memory_limit_bytes": 4_000_000_000,
    }
    return DigitsConfig(**(values | changes))


def test_shapes_sizes_and_every_class_everywhere() -> None:
    dataset = describe(config())
    assert dataset.image_shape == (1, 28, 28)
    assert dataset.labels == tuple("0123456789")
    assert sum(dataset.sizes) == 1797
    assert dataset.sizes[2] == pytest.approx(1797 * 0.2, abs=5)
    splits = load(dataset)
    for split in (splits.train, splits.validation, splits.test):
        assert split.in_memory
        assert split.read([0]).dtype == np.uint8
        assert split.labels.dtype == np.int64
        assert np.bincount(split.labels).min() > 20


def test_grey_levels_use_the_whole_range() -> None:
    images = module.open_source().train_images
    assert isinstance(images, np.ndarray)
    assert images.min() == 0
    assert images.max() == 255


def test_statistics_are_those_of_the_training_pixels() -> None:
    dataset = describe(config())
    images = load(dataset).train.images
    assert isinstance(images, np.ndarray)
    pixels = images.astype(np.float64) / 255
    assert dataset.mean == pytest.approx((pixels.mean(),))
    assert dataset.std == pytest.approx((pixels.std(),))


def test_splits_are_loaded_once_in_a_process() -> None:
    dataset = describe(config())
    assert load(dataset) is load(dataset)


def test_splits_that_were_forgotten_are_loaded_again() -> None:
    dataset = describe(config())
    before = load(dataset)
    for share in (0.3, 0.4, 0.5):
        describe(config(validation_share=share))
    after = load(dataset)
    assert after is not before
    assert np.array_equal(after.train.labels, before.train.labels)
    assert np.array_equal(after.train.read(range(9)), before.train.read(range(9)))


def test_reading_gives_copies_in_the_order_asked() -> None:
    train = load(describe(config())).train
    pixels = train.read([5, 3, 5])
    assert np.array_equal(pixels[0], train.images[5])
    assert np.array_equal(pixels[1], train.images[3])
    pixels[:] = 0
    assert train.read([5]).any()
    assert train.read([]).shape == (0, 1, 28, 28)


def test_given_statistics_are_taken() -> None:
    dataset = describe(config(mean=[0.5], std=[0.25]))
    assert dataset.mean == (0.5,)
    assert dataset.std == (0.25,)
    assert describe(config(mean=[0.5])).std == describe(config()).std


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"mean": [0.5, 0.5, 0.5]},
            "data.mean=[0.5, 0.5, 0.5]: has 3 values but images have 1 channel; "
            "give one a channel, or null to compute it",
        ),
        (
            {"std": [0.5, 0.5]},
            "data.std=[0.5, 0.5]: has 2 values but images have 1 channel; "
            "give one a channel, or null to compute it",
        ),
        (
            {"std": [0.0]},
            "data.std=[0.0]: must be above 0 and finite; set null to compute it",
        ),
        (
            {"mean": [125.3]},
            "data.mean=[125.3]: must lie in 0..1; divide figures for pixels in 0..255 by 255",
        ),
        (
            {"mean": [float("nan")]},
            "data.mean=[nan]: must lie in 0..1; divide figures for pixels in 0..255 by 255",
        ),
    ],
)
def test_impossible_statistics_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        describe(config(**changes))
    assert str(caught.value) == message


def test_importing_the_room_stays_cheap() -> None:
    code = "import sys, search.data; print({'torch', 'sklearn', 'PIL'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_it_is_what_scikit_learn_reads() -> None:
    from sklearn.datasets import load_digits

    wanted = load_digits()
    table = np.loadtxt(module._path(), delimiter=",")
    np.testing.assert_array_equal(table[:, :-1], wanted.data)
    np.testing.assert_array_equal(table[:, -1], wanted.target)


def test_its_reading_needs_no_scikit_learn() -> None:
    code = "import sys; from search.data import digits; digits.open_source(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "sklearn" not in done.stdout.split()
