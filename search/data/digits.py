"""scikit-learn's bundled digits as 28x28 images."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np

from search.data.source import Pixels, Source
from search.data.splits import stratify

_LABELS = tuple(str(digit) for digit in range(10))
_TEST_SHARE = 0.2
_SIDE = 28


def open_source() -> Source:
    """Returns 1 797 grey images ``[1, 28, 28]`` of ten classes, a fifth of them for the test.

    Source: E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998.
    """
    table = np.loadtxt(_path(), delimiter=",")
    labels = table[:, -1].astype(np.int64)
    # Sixteen is the highest level.
    small = (table[:, :-1].reshape(-1, 8, 8) * (255 / 16)).round().astype(np.uint8)
    pixels = _enlarge(small)
    rest, test = stratify(labels, _LABELS, _TEST_SHARE)
    return Source(pixels[rest], labels[rest], pixels[test], labels[test], _LABELS)


def _path() -> Path:
    """Returns scikit-learn's file: importing its reader takes every process two seconds."""
    spec = find_spec("sklearn")
    assert spec is not None, "scikit-learn is installed with this project"
    assert spec.origin is not None
    return Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz"


def _enlarge(small: Pixels) -> Pixels:
    """Scales ``[n, 8, 8]`` to ``[n, 1, 28, 28]``, bilinear."""
    from PIL import Image

    large = [
        np.asarray(Image.fromarray(image).resize((_SIDE, _SIDE), Image.Resampling.BILINEAR))
        for image in small
    ]
    return np.stack(large)[:, None]
