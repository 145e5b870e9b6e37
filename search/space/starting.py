"""The points that a study tries before its sampler knows anything."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain, repeat

from search.records.point import Point
from search.space.space import BITS, RATE, RATIO, THREADS, Space, sound_values

# Where bits and threads are sampled too: how the first cut is deployed, the second, and the others.
MOST, FEWEST = "as the original", "fewest"
DEPLOYED = (
    ((32, MOST), (8, MOST), (32, FEWEST)),
    ((32, FEWEST), (8, MOST)),
    ((32, FEWEST),),
)


def starting_points(
    space: Space,
    threads: int,
    names_deployments: bool,
    cuts: Sequence[float],
    rate: Callable[[float], float],
) -> list[Point]:
    """Chooses the points that a study tries before its sampler knows anything.

    The first is the uncompressed network, the baseline, which stays uncompressed even where the
    space does not hold it. Then come other shares of its cost; with these the front has its shape
    before the sampler refines it. Where points name their bits and threads, 8 bits and the fewest
    threads are tried too, because small networks often gain nothing from more. Each is there only
    if the space holds it. The recipe is a sound one, moved into the space.

    A baseline for which ``space.contains`` is false must not be enqueued: ``Study.ask`` raises
    on an unknown choice and leaves the trial running, and a trial told as complete (for TPE also
    pruned) without all parameters ends joint sampling for the rest of the study, because samplers
    intersect the parameters of all trials. Ask for it without distributions, note the point in
    its user attributes, and tell the state FAIL, which every sampler passes over.

    Args:
        space: Where points are chosen from.
        threads: At which the uncompressed network is fastest.
        names_deployments: Whether points differ in bits and threads too.
        cuts: Shares of the channels to prune, in the order in which they are tried.
        rate: Gives a sound learning rate for what a share leaves.

    Returns:
        Different points.
    """
    sound = space.make({**sound_values(space.dimensions), RATE: rate(0.0), THREADS: threads})
    whole = {**dict(sound.compression), BITS: sound[BITS]}
    original = space.moved(space.nearest(sound), **whole)
    nearest = space.nearest(original)
    most, fewest = original.whole(THREADS), int(space.axes[THREADS].nearest(1))
    ratios = dict.fromkeys(float(space.axes[RATIO].nearest(cut)) for cut in cuts)
    deployments = [(ratio, space.bit_widths()[0], most) for ratio in ratios]
    if names_deployments:
        deployments = [(0.0, 8, most)]
        for ratio, ways in zip(ratios, chain(DEPLOYED, repeat(DEPLOYED[-1])), strict=False):
            deployments += [(ratio, bits, most if at == MOST else fewest) for bits, at in ways]
    compressed = [
        space.moved(
            nearest,
            **{
                RATIO: ratio,
                BITS: bits,
                THREADS: count,
                RATE: float(space.axes[RATE].nearest(rate(ratio))),
            },
        )
        for ratio, bits, count in deployments
    ]
    # Each once: with the fewest threads for the original too, the first cut comes twice.
    return list(dict.fromkeys([original, *(p for p in compressed if space.contains(p))]))
