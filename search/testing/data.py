"""What every data set promises."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from pydantic import TypeAdapter

from search.config.data import DataConfig
from search.data import Split, describe, load

CHUNK = 1000
OTHER_SHARE, ANOTHER_SHARE = 0.5, 0.4
# Of images that stand in two splits: real sets hold a few copies.
MOST_COPIES = 0.01
ELSEWHERE = """
import importlib, sys
from pydantic import TypeAdapter
from search.data import describe
module, name = sys.argv[1:]
kind = getattr(importlib.import_module(module), name)
print(describe(TypeAdapter(kind).validate_json(sys.stdin.buffer.read())).fingerprint)
"""


class DataContract:
    """A suite for one data set.

    Fixture: ``config``, its section of the configuration: a class of ``search.config.data``, for
    a set of a plug-in's ``CustomDataConfig``.
    """

    def test_labels_name_its_classes(self, config: DataConfig) -> None:
        """Every class has a name of its own, and images to train on and to select with."""
        dataset = describe(config)
        assert len(set(dataset.labels)) == dataset.classes >= 2
        splits = load(dataset)
        for split in (splits.train, splits.validation, splits.test):
            assert split.labels.dtype == np.int64
            assert set(np.unique(split.labels)) <= set(range(dataset.classes))
        for split in (splits.train, splits.validation):
            assert len(np.unique(split.labels)) == dataset.classes

    def test_images_have_one_shape(self, config: DataConfig) -> None:
        """In bytes, as the description of the set says, which also has their statistics."""
        dataset = describe(config)
        splits = load(dataset)
        parts = (splits.train, splits.validation, splits.test)
        assert tuple(map(len, parts)) == dataset.sizes
        for split in parts:
            ends = split.read([0, len(split) - 1])
            assert ends.dtype == np.uint8
            assert ends.shape == (2, *dataset.image_shape)
        assert len(dataset.mean) == len(dataset.std) == dataset.image_shape[0]
        assert all(0 <= mean <= 1 for mean in dataset.mean)
        assert all(std > 0 for std in dataset.std)

    def test_its_splits_share_no_images(self, config: DataConfig) -> None:
        """What is tested on was neither trained on nor selected with."""
        splits = load(describe(config))
        train, validation, test = map(
            set, map(_digests, (splits.train, splits.validation, splits.test))
        )
        assert len(validation & train) <= MOST_COPIES * len(validation)
        assert len(test & (train | validation)) <= MOST_COPIES * len(test)

    def test_only_the_share_moves_images(self, config: DataConfig) -> None:
        """It decides which are validated on; no image is lost, and those of the test stay."""
        first, second = (
            describe(replace(config, validation_share=share))
            for share in (OTHER_SHARE, ANOTHER_SHARE)
        )
        assert first.fingerprint != second.fingerprint
        assert first.sizes[1] > second.sizes[1] > 0
        one, other = load(first), load(second)
        assert _together(one.train, one.validation) == _together(other.train, other.validation)
        assert list(_digests(one.test)) == list(_digests(other.test))

    def test_it_is_the_same_in_every_process(self, config: DataConfig) -> None:
        """Its identity, which is part of steps' keys, is that of its bytes."""
        dataset = describe(config)
        done = subprocess.run(
            [sys.executable, "-c", ELSEWHERE, type(config).__module__, type(config).__name__],
            input=TypeAdapter(type(config)).dump_json(config),
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": "7"},
            capture_output=True,
            check=False,
        )
        assert done.stdout.decode().strip() == dataset.fingerprint, done.stderr.decode()


def _digests(split: Split) -> Iterator[bytes]:
    """Yields what names each image's bytes, in the order of the split."""
    for start in range(0, len(split), CHUNK):
        for image in split.read(range(start, min(start + CHUNK, len(split)))):
            yield hashlib.sha256(image.tobytes()).digest()


def _together(*splits: Split) -> Counter[tuple[bytes, int]]:
    """Returns how often each image stands in some splits, with its label."""
    found: Counter[tuple[bytes, int]] = Counter()
    for split in splits:
        found.update(zip(_digests(split), split.labels.tolist(), strict=True))
    return found
