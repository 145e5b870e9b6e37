"""The picture is a PNG of the promised size with something on it."""

from __future__ import annotations

import io
from collections.abc import Sequence

import pytest
from PIL import Image

from search.records.trial import TrialRecord
from search.report.plot import BLUE, HEIGHT_PX, VERMILLION, WIDTH_PX, front_png
from tests.plants import plant


def _decode(png: bytes) -> Image.Image:
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    image = Image.open(io.BytesIO(png)).convert("RGB")
    assert image.size == (WIDTH_PX, HEIGHT_PX)
    return image


def _colors(image: Image.Image) -> set[str]:
    counted = image.getcolors(maxcolors=WIDTH_PX * HEIGHT_PX) or []
    return {"#{:02x}{:02x}{:02x}".format(*color) for _, color in counted}  # type: ignore[misc]


def _study() -> Sequence[TrialRecord]:
    front = [plant(n, val_accuracy=0.9 - 0.01 * n, latency_ms=2.0 / (n + 1)) for n in range(5)]
    others = [
        plant(5, val_accuracy=0.87, latency_ms=1.9),
        plant(6, outcome="infeasible", val_accuracy=0.86, latency_ms=1.0),
        plant(7, outcome="stopped", val_accuracy=None),
        plant(8, val_accuracy=0.1, latency_ms=1.0),
    ]
    return front + others


def test_picture_shows_front_and_original() -> None:
    colors = _colors(_decode(front_png("study", _study(), range(5))))
    assert {BLUE.lower(), VERMILLION.lower()} <= colors


def test_nothing_touches_the_edge() -> None:
    records = _study()
    image = _decode(front_png("W" * 100, records, range(5)))
    sides = [(0, 0, WIDTH_PX, 4), (0, HEIGHT_PX - 4, WIDTH_PX, HEIGHT_PX)]
    sides += [(0, 0, 4, HEIGHT_PX), (WIDTH_PX - 4, 0, WIDTH_PX, HEIGHT_PX)]
    for side in sides:
        assert _colors(image.crop(side)) == {"#ffffff"}


def test_front_matters() -> None:
    records = [plant(1), plant(2, latency_ms=1.0)]
    assert BLUE.lower() not in _colors(_decode(front_png("study", records, [])))
    assert BLUE.lower() in _colors(_decode(front_png("study", records, [1])))


def test_wide_spread_of_latency_is_drawn() -> None:
    _decode(front_png("study", [plant(1, latency_ms=0.01), plant(2, latency_ms=90.0)], [1, 2]))


@pytest.mark.parametrize("study", ["$x$", "a_{", "<script>", ""])
def test_any_name_can_be_a_title(study: str) -> None:
    _decode(front_png(study, [], []))


def test_no_trial_is_not_blank() -> None:
    stopped = plant(1, outcome="stopped", val_accuracy=None)
    assert len(_colors(_decode(front_png("study", [stopped], [])))) > 10


def test_same_records_give_the_same_picture() -> None:
    assert front_png("study", _study(), [1]) == front_png("study", _study(), [1])
