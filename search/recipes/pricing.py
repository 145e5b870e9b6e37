"""What a network costs, measured before it is trained."""

from __future__ import annotations

from search.recipes.deploying import as_fast_as_itself, deploy, measure
from search.records.bench import Lab
from search.records.deployable import Deployable
from search.records.measurement import Measurement, RunFigures
from search.records.point import Point
from search.records.steps.editing import Edited
from search.records.steps.recipe import Recipe
from search.records.trial import Cost, shared
from search.runtimes import runtimes


def price(edited: Edited, point: Point, lab: Lab) -> Recipe[Cost]:
    """Measures a network before it is trained: weights do not change its latency."""
    bench, threads = lab.bench, point.whole("threads")
    untrained = yield from deploy(edited.network, point.whole("bits"), bench)
    if untrained == lab.reference:  # measured with the other thread counts, and as fast as itself
        speed = as_fast_as_itself(lab.baseline.against_base[threads])
    else:
        speed = yield measure(bench, untrained, threads, lab.reference, threads)
    return cost_of(edited, untrained, threads, speed, lab)


def cost_of(
    edited: Edited,
    deployable: Deployable,
    threads: int,
    measurement: Measurement,
    lab: Lab,
) -> Cost:
    """Gathers everything that is known before a network is trained.

    Latencies taken hours apart compare because each is the baseline's own latency times a ratio
    that was measured in the same minutes.
    """
    baseline = lab.baseline
    best = baseline.against_base[baseline.best_threads]
    own = baseline.against_base[threads]
    # At the original's best thread count both ends of the chain are the same measurement.
    same = threads == baseline.best_threads
    slow = 1.0 if same else best.ratio_low / own.ratio_high
    fast = 1.0 if same else best.ratio_high / own.ratio_low
    runtime, executed = runtimes()[deployable.runtime], measurement.operators.items()
    integer = sum(count for operator, count in executed if operator in runtime.integer_operators)
    floating = sum(count for operator, count in executed if operator in runtime.float_operators)
    return Cost(
        **shared(RunFigures, measurement),
        latency_ms=baseline.latency_ms(threads) * measurement.ratio,
        latency_ratio=measurement.ratio,
        latency_ratio_low=measurement.ratio_low,
        latency_ratio_high=measurement.ratio_high,
        speedup=best.ratio / own.ratio / measurement.ratio,
        speedup_low=slow / measurement.ratio_high,
        speedup_high=fast / measurement.ratio_low,
        size_bytes=deployable.model.size_bytes,
        macs=edited.network.macs,
        parameters=edited.network.parameters,
        effective_bits=effective_bits(integer, floating),
        integer_operators=integer,
        compute_operators=integer + floating,
        channels_removed=edited.figures.get("channels_removed", 0.0),
        is_changed=lab.is_changed(edited.network),
        structure=edited.network.structure,
    )


def effective_bits(integer_operators: int, float_operators: int) -> float:
    """Returns the mean bits that convolutions and matrix products are really computed in.

    Weights that are only stored in fewer bits are computed as float and count as 32.
    """
    total = integer_operators + float_operators
    return (8 * integer_operators + 32 * float_operators) / total if total else 32.0
