"""The choice of widths over random importances."""

from __future__ import annotations

import itertools

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from search.networks.pruning.groups import widths_of, widths_to_keep

# A busy machine must not fail a test that is right.
relaxed = settings(deadline=None, max_examples=200)
ratios = st.sampled_from([round(0.05 * n, 2) for n in range(19)]) | st.floats(0, 0.9)
vectors = st.sampled_from([8, 16])


@st.composite
def importances(draw: st.DrawFn, least: int = 1) -> list[Tensor]:
    """Scores of a few groups, each with mean 1, as pruning has them."""
    widths = draw(st.lists(st.integers(least, 130), min_size=1, max_size=6))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    power = draw(st.sampled_from([0.0, 1.0, 8.0]))  # from all alike to a few that count for all
    scores = [torch.rand(w, generator=generator, dtype=torch.float64) ** power for w in widths]
    return [score / score.mean() for score in scores]


@relaxed
@given(importances(), ratios, vectors)
def test_every_width_is_allowed(scores: list[Tensor], ratio: float, round_to: int) -> None:
    kept = widths_to_keep(scores, ratio, round_to)
    for width, score in zip(kept, scores, strict=True):
        assert 1 <= width <= len(score)
        assert width in widths_of(len(score), round_to)


@relaxed
@given(importances(), ratios, ratios, vectors)
def test_no_layer_is_wider_at_a_higher_ratio(
    scores: list[Tensor], one: float, other: float, round_to: int
) -> None:
    less, more = (widths_to_keep(scores, r, round_to) for r in sorted((one, other)))
    assert all(a >= b for a, b in zip(less, more, strict=True))


@relaxed
@given(importances(), vectors)
def test_nothing_is_removed_at_ratio_zero(scores: list[Tensor], round_to: int) -> None:
    assert widths_to_keep(scores, 0.0, round_to) == [len(score) for score in scores]


@relaxed
@given(importances(), ratios, vectors)
def test_the_removed_share_is_within_its_bounds(
    scores: list[Tensor], ratio: float, round_to: int
) -> None:
    total = sum(len(score) for score in scores)
    removed = 1 - sum(widths_to_keep(scores, ratio, round_to)) / total
    # Rounding moves a layer by half the distance between two allowed widths, or up to the one
    # channel that always stays; keeping half of every layer's fair rest can hold back half of the
    # whole rest.
    rounding = sum(max(1, _largest_gap(len(score), round_to) / 2) for score in scores) / total
    assert removed <= ratio + rounding + 0.5 / total
    assert removed >= ratio - (1 - ratio) / 2 - rounding - 0.5 / total


@relaxed
@given(st.lists(st.integers(64, 256), min_size=1, max_size=5), ratios)
def test_layers_that_matter_equally_lose_the_same_share(widths: list[int], ratio: float) -> None:
    # Ranks that are interleaved over all layers, so that each loses just its share.
    scores = [(torch.arange(w, dtype=torch.float64) + 0.5) / w * 2 for w in widths]
    for width, score in zip(widths_to_keep(scores, ratio, 8), scores, strict=True):
        assert abs(width / len(score) - (1 - ratio)) <= 4 / len(score) + 0.02


def _largest_gap(full: int, round_to: int) -> int:
    widths = widths_of(full, round_to)
    return max((b - a for a, b in itertools.pairwise(widths)), default=0)


@relaxed
@given(st.integers(1, 600), vectors)
def test_the_allowed_widths_rise_to_the_full_one(full: int, round_to: int) -> None:
    widths = widths_of(full, round_to)
    assert widths == sorted(set(widths))
    assert widths[0] == 1
    assert widths[-1] == full
    assert all(w % round_to == 0 or w & (w - 1) == 0 for w in widths[:-1])
    # Also wide layers can be halved and quartered nearly exactly.
    assert all(b <= 2 * a or b - a <= round_to for a, b in itertools.pairwise(widths))
