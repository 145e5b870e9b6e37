"""Stage ``sweep``: finds how much to prune for given shares of the multiply-accumulates."""

from __future__ import annotations

import math
from collections.abc import Sequence

from search.errors import InfeasiblePoint
from search.networks import networks
from search.networks.pruning.prune import macs_at
from search.records.steps.pruning import Cuts, Sweep
from search.records.steps.step import ArtifactStore
from search.records.survey import Cut

RATIOS = tuple(number / 100 for number in range(1, 91))


def run(step: Sweep, artifacts: ArtifactStore) -> Cuts:
    """Does the step."""
    whole = step.network
    module = networks.load(whole, artifacts)
    try:
        left = macs_at(module, whole.spec.image_shape, RATIOS, step.round_to)
    except InfeasiblePoint as error:  # nothing can be pruned
        return Cuts((), str(error))
    cuts = choose_cuts(RATIOS, [macs / whole.macs for macs in left], step.shares)
    return Cuts(cuts, "" if cuts else "its layers are too narrow to lose any")


def choose_cuts(
    ratios: Sequence[float], left: Sequence[float], wanted: Sequence[float]
) -> tuple[Cut, ...]:
    """Returns the cut that comes nearest to each wanted share, each structure once.

    Args:
        ratios: Shares of the channels, rising.
        left: What each leaves of the multiply-accumulates, 0..1, at most as much as the one before.
        wanted: Shares of the multiply-accumulates, in the order of the answer.
    """
    cuts: dict[float, Cut] = {}  # by what is left: ratios that leave as much are one structure
    for share in wanted:
        near = min(
            (number for number, kept in enumerate(left) if kept < 1),
            key=lambda number: abs(math.log(left[number] / share)),
            default=None,
        )
        if near is not None:
            cuts.setdefault(left[near], Cut(ratios[near], left[near]))
    return tuple(cuts.values())
