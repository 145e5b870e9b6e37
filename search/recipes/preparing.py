"""The recipe that a study begins with: the teacher, and what suits its students."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

from search.errors import InfeasiblePoint, StageFailed
from search.recipes.deploying import as_fast_as_itself, deploy, evaluate, measure
from search.recipes.training import reestimate
from search.records.baseline import Baseline
from search.records.bench import Bench, Lab
from search.records.device import DeviceProfile
from search.records.measurement import Measurement
from search.records.network import Student, Teacher
from search.records.placement import ChosenPlacement
from search.records.steps.editing import Edited
from search.records.steps.exporting import Trace
from search.records.steps.measuring import Probe
from search.records.steps.pruning import Cuts, Prune, Sweep
from search.records.steps.recipe import Recipe
from search.records.steps.training import ChoosePlacement, FindRate, Teach
from search.records.survey import Cut, FoundRate
from search.techniques.finetuning import USUAL_RATE

log = logging.getLogger(__name__)

LONG_TRAINING_S = 120.0  # in the uncompressed network
# Of the original's multiply-accumulates, coarse to fine: what the search tries first.
SWEEP = (0.5, 0.25, 0.65, 0.15, 0.08, 0.35, 0.8, 0.04)


def prepare(bench: Bench) -> Recipe[Lab]:
    """Obtains the teacher, measures it at every thread count, and finds what suits its students."""
    train, data = bench.train, bench.data
    # First, because a network that cannot be exported need not be trained.
    yield Trace(bench.spec, None, data.mean, data.std)
    if bench.measuring.probe:
        device: DeviceProfile = yield Probe(bench.device, bench.measuring)
        bench = replace(bench, device=device)
    placement: ChosenPlacement = yield ChoosePlacement(
        bench.spec,
        min(bench.batch_size(train.epochs), bench.data.sizes[0]),
        train.device,
        train.precision,
        bench.machine,
    )
    teacher: Teacher = yield Teach(
        spec=bench.spec,
        data=bench.data,
        checkpoint=bench.checkpoint,
        epochs=train.teacher_epochs,
        batch_size=bench.batch_size(train.teacher_epochs),
        learning_rate=train.teacher_learning_rate,
        weight_decay=train.teacher_weight_decay,
        precision=placement.precision,
        layout=placement.layout,
        device=placement.device,
        seed=bench.seed,
    )
    reference = yield from deploy(teacher.network, 32, bench)
    score = yield from evaluate(reference, "validation", bench)
    base, against_base = bench.thread_counts[0], {}
    for threads in bench.thread_counts:
        measured: Measurement = yield measure(bench, reference, threads, reference, base)
        against_base[threads] = as_fast_as_itself(measured) if threads == base else measured
    baseline = Baseline(against_base[base].reference_p50_ms, against_base)
    lab = Lab(bench, placement, teacher, reference, score.accuracy, baseline)
    return (yield from survey(lab)) if bench.prunes else lab


def survey(lab: Lab) -> Recipe[Lab]:
    """Finds how much to prune for a range of costs, and the learning rate for what is left.

    What fails here may fail in trials too, but says nothing against the uncompressed network.
    Cuts that the network does not survive are left out, up to the first that can be trained.
    Where no channel can go, no trial prunes.
    """
    try:
        swept: Cuts = yield Sweep(lab.teacher.network, SWEEP, lab.bench.device.round_to)
    except (StageFailed, InfeasiblePoint) as error:
        log.warning("how much can be pruned was not found, so no sweep is planned: %s", error)
        return lab
    if not swept.cuts:
        log.warning("pruning is left out, bits and threads are searched: %s", swept.reason)
        return replace(lab, bench=replace(lab.bench, prunes=False))
    for number, cut in enumerate(swept.cuts):
        try:
            rate = yield from find_rate(cut, lab)
        except (StageFailed, InfeasiblePoint) as error:
            share = 100 * cut.prune_ratio
            log.warning("the sweep leaves out a network pruned by %.0f %%: %s", share, error)
        else:
            return replace(lab, cuts=swept.cuts[number:], rate=rate)
    return lab


def find_rate(cut: Cut, lab: Lab) -> Recipe[FoundRate]:
    """Finds the learning rate for what ``cut`` leaves of the teacher."""
    bench = lab.bench
    pruned: Edited = yield Prune(lab.teacher.network, cut.prune_ratio, bench.device.round_to)
    start: Student = yield reestimate(pruned.network, lab)
    rate: FoundRate = yield FindRate(
        start=start.network,
        teacher_logits=lab.teacher.logits,
        data=bench.data,
        weight_decay=bench.train.weight_decay,
        batch_size=bench.batch_size(bench.train.epochs),
        precision=lab.placement.precision,
        layout=lab.placement.layout,
        device=lab.placement.device,
        seed=bench.seed,
    )
    return rate


def sweep(lab: Lab, trials: float, time_s: float) -> list[float]:
    """Returns the shares of the channels to prune first.

    They are in order from coarse to fine, so that the front has its shape early; where one training
    takes long, from gentle to hard, because a short study must not begin with what is hard to mend.
    As many as there is time for come before the others then: it shall reach the hard ones, too.

    Args:
        lab: What is known of the uncompressed network.
        trials: That the study may have.
        time_s: That it may take.
    """
    cuts = lab.cuts
    training_s = lab.bench.steps(lab.bench.train.epochs) * lab.placement.step_s
    if training_s > LONG_TRAINING_S:
        affordable = max(1, int(min(len(cuts), trials, time_s / training_s)))
        cuts = (*_gentle_first(cuts[:affordable]), *_gentle_first(cuts[affordable:]))
    return [cut.prune_ratio for cut in cuts]


def _gentle_first(cuts: Sequence[Cut]) -> list[Cut]:
    return sorted(cuts, key=lambda cut: -cut.macs_share)


def sound_rate(lab: Lab, prune_ratio: float) -> float:
    """Returns a sound learning rate: gentle for what is hardly pruned, high for a remnant.

    What it is for the first cut was found by a range test. How it changes with the share that is
    pruned was measured (docs/LOG.md, "Which rate suits which pruning").
    """
    if lab.rate is None:
        return USUAL_RATE
    away = prune_ratio - lab.cuts[0].prune_ratio
    return float(f"{lab.rate.learning_rate * 10**away:.2g}")
