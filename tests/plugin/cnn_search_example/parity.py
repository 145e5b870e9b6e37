"""scikit-learn's digits, of which is asked whether they are odd."""

from __future__ import annotations

import numpy as np
from sklearn.datasets import load_digits

from search.data.source import Source

TEST_IMAGES = 360


def open_source() -> Source:
    """Returns the images ``[n, 1, 8, 8]`` with their two classes."""
    digits = load_digits()
    images = np.round(digits.images * 255 / 16).astype(np.uint8)[:, None]
    labels = (digits.target % 2).astype(np.int64)
    cut = len(images) - TEST_IMAGES
    return Source(images[:cut], labels[:cut], images[cut:], labels[cut:], ("even", "odd"))
