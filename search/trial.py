"""The recipe of one trial: which steps, in which order; knows not where or when they run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Protocol, TypeVar

from search.config import DeviceConfig, ObjectiveConfig, TrainConfig
from search.errors import InfeasiblePoint, StageFailed
from search.figures import Yardstick, least_accuracy, speed_figures
from search.front import Traded
from search.records import (
    Canary,
    Comparison,
    Dataset,
    Deployable,
    DeviceProfile,
    Figures,
    File,
    KeptLayer,
    Measurement,
    Network,
    NetworkSpec,
    Outcome,
    Point,
    Student,
    Teacher,
)
from search.steps import (
    PARITY_TOLERANCE,
    USUAL_RATE,
    ChoosePlacement,
    ChosenPlacement,
    Cut,
    Cuts,
    Evaluate,
    Export,
    Exported,
    FindRate,
    Finetune,
    FoundRate,
    Graph,
    Measure,
    Probe,
    Profile,
    Prune,
    Pruned,
    Quantize,
    Reestimate,
    Score,
    Step,
    Sweep,
    Teach,
    Trace,
)

log = logging.getLogger(__name__)

T = TypeVar("T")
# Of fresh processes at least; more follow where these disagree. A canary is rare, and a verdict.
SEARCH_LAUNCHES, CANARY_LAUNCHES = 2, 6
# Of one optimizer step: statistics of fewer images are poor, and more images are not faster each.
SMALLEST_BATCH, LARGEST_BATCH = 16, 128
ENOUGH_STEPS = 300
LONG_TRAINING_S = 120.0  # in the uncompressed network
# Of the original's multiply-accumulates, coarse to fine: what the search tries first.
SWEEP = (0.5, 0.25, 0.65, 0.15, 0.08, 0.35, 0.8, 0.04)
Recipe = Generator[Step[Any], Any, T]


@dataclass(frozen=True)
class Bench:
    """What every trial of a study shares before anything is computed.

    ``prunes`` says whether any trial may lose channels, and so be trained: not where the space or
    the network forbids it.
    """

    spec: NetworkSpec
    checkpoint: File | None
    data: Dataset
    device: DeviceProfile
    thread_counts: tuple[int, ...]
    measuring: DeviceConfig
    train: TrainConfig
    limits: ObjectiveConfig
    machine: str
    seed: int
    prunes: bool = True

    def batch_size(self, epochs: float) -> int:
        """Returns how many images an optimizer step takes in a training of ``epochs`` passes.

        Where the user leaves it open, it is the largest power of two that gives the training
        ``ENOUGH_STEPS``: on few images steps are what a short training lacks.
        """
        if self.train.batch_size != "auto":
            return self.train.batch_size
        size = LARGEST_BATCH
        while size > SMALLEST_BATCH and self.data.sizes[0] * epochs < ENOUGH_STEPS * size:
            size //= 2
        return size

    def steps(self, epochs: float) -> int:
        """Returns how many optimizer steps a student takes in ``epochs`` passes."""
        per_epoch = self.data.sizes[0] / self.batch_size(self.train.epochs)
        return max(1, round(epochs * max(1.0, per_epoch))) if epochs else 0


@dataclass(frozen=True)
class Lab:
    """A bench with its teacher trained and the uncompressed network measured.

    Attributes:
        cuts: How much to prune for each share of ``SWEEP``; none where nothing is pruned.
        rate: The learning rate for what the first of them leaves; None where there is none.
    """

    bench: Bench
    placement: ChosenPlacement
    teacher: Teacher
    reference: Deployable
    reference_accuracy: float
    yardstick: Yardstick
    cuts: tuple[Cut, ...] = ()
    rate: FoundRate | None = None

    @property
    def least_accuracy(self) -> float:
        """Below this on validation a network is little better than guessing."""
        chance, share = self.bench.data.chances[1], self.bench.limits.min_accuracy_share
        return least_accuracy(chance, self.reference_accuracy, share)


@dataclass(frozen=True)
class Ending:
    """How a trial's recipe ended; ``point`` is where, after its deployment was chosen."""

    point: Point
    outcome: Outcome
    reason: str
    figures: Figures
    violations: Mapping[str, float]
    deployable: Deployable | None
    layers: tuple[KeptLayer, ...] = ()


class Referee(Protocol):
    """Judges a trial beside all others while it runs; its reasons to stop are one line."""

    def deployment(self, point: Point, network: Network) -> Point:
        """Returns the point with the bits and threads that its pruned network is deployed with."""

    def before_training(self, point: Point, figures: Figures) -> str | None:
        """Returns why a trial with these figures should not be trained, or None."""

    def at_rung(self, point: Point, end: float, figures: Figures) -> str | None:
        """Returns why training should stop at the share ``end``, or None.

        Args:
            point: With its deployment.
            end: Share of the training that is done, 0..1.
            figures: Known so far; ``float_accuracy`` is the student's at this rung.
        """


class Unjudged:
    """Lets a trial be what its point says, to its end."""

    def deployment(self, point: Point, _: Network) -> Point:
        """Deploys as the point says."""
        return point

    def before_training(self, _point: Point, _: Figures) -> str | None:
        """Lets every trial be trained."""
        return None

    def at_rung(self, _point: Point, _end: float, _: Figures) -> str | None:
        """Lets every training go on."""
        return None


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
    score: Score = yield Evaluate(reference, bench.data, "validation")
    base, against_base = bench.thread_counts[0], {}
    for threads in bench.thread_counts:
        measured: Measurement = yield measure(bench, reference, threads, reference, base)
        against_base[threads] = as_fast_as_itself(measured) if threads == base else measured
    yardstick = Yardstick(against_base[base].reference_p50_ms, against_base)
    lab = Lab(bench, placement, teacher, reference, score.accuracy, yardstick)
    return (yield from survey(lab)) if bench.prunes else lab


def as_fast_as_itself(measured: Measurement) -> Measurement:
    """Returns a network's figures beside itself: its ratio is 1, whatever was measured."""
    return replace(measured, ratio=1.0, ratio_low=1.0, ratio_high=1.0, quality="resolved")


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
    pruned: Pruned = yield Prune(lab.teacher.network, cut.prune_ratio, bench.device.round_to)
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


def canary(lab: Lab, study: str, after_trials: int) -> Recipe[Canary]:
    """Measures the uncompressed network against itself, once for that moment of that study."""
    bench, threads = lab.bench, lab.bench.thread_counts[0]
    against_itself = measure(bench, lab.reference, threads, lab.reference, threads)
    measured: Measurement = yield replace(
        against_itself, launches=CANARY_LAUNCHES, occasion=f"{study}, {after_trials} trials"
    )
    return Canary(after_trials, measured.interval, measured.quality)


def profile(deployable: Deployable, threads: int, lab: Lab) -> Recipe[Comparison]:
    """Profiles a model beside the uncompressed network at its best thread count."""
    best = lab.yardstick.best_threads
    found: Comparison = yield Profile(measure(lab.bench, deployable, threads, lab.reference, best))
    return found


def trial(point: Point, lab: Lab, referee: Referee) -> Recipe[Ending]:
    """Compresses the teacher as ``point`` says; latency is known before anything is trained."""
    bench = lab.bench
    pruned: Pruned = yield Prune(lab.teacher.network, point.prune_ratio, bench.device.round_to)
    point = referee.deployment(point, pruned.network)
    layers = kept_layers(pruned.network, lab.teacher.network)
    untrained = yield from deploy(pruned.network, point.bits, bench)
    if untrained == lab.reference:  # measured with the other thread counts, and as fast as itself
        speed = as_fast_as_itself(lab.yardstick.against_base[point.threads])
    else:
        speed = yield measure(bench, untrained, point.threads, lab.reference, point.threads)
    figures = speed_figures(
        pruned.network, pruned.channels_removed, untrained, point.threads, speed, lab.yardstick
    )
    network, float_accuracy, remark = pruned.network, lab.teacher.val_accuracy, ""
    if pruned.channels_removed > 0:  # an untouched network has nothing to recover from
        violations = violated(figures, lab)
        if any(excess > 0 for excess in violations.values()):
            return _infeasible(point, figures, violations, None, layers, lab)
        reason = referee.before_training(point, figures)
        if reason is not None:
            return Ending(point, "stopped", reason, figures, violations, None, layers)

        def watch(end: float, best: Student) -> str | None:
            nonlocal figures
            figures = replace(figures, float_accuracy=best.val_accuracy)
            return referee.at_rung(point, end, figures)

        recovered = yield from recover(pruned.network, point, lab, watch)
        if recovered.stopped is not None:
            return Ending(point, "stopped", recovered.stopped, figures, violations, None, layers)
        network, float_accuracy = recovered.best.network, recovered.best.val_accuracy
        remark = recovered.remark
    deployable = yield from deploy(network, point.bits, bench)
    score: Score = yield Evaluate(deployable, bench.data, "validation")
    figures = replace(
        figures,
        val_accuracy=score.accuracy,
        float_accuracy=float_accuracy,
        size_bytes=deployable.model.size_bytes,
    )
    violations = violated(figures, lab)
    if any(excess > 0 for excess in violations.values()):
        ending = _infeasible(point, figures, violations, deployable, layers, lab)
        return replace(ending, reason="; ".join(filter(None, (ending.reason, remark))))
    return Ending(point, "complete", remark, figures, violations, deployable, layers)


@dataclass(frozen=True)
class Recovered:
    """A student after its fine-tuning, or as far as it came.

    Attributes:
        best: The most accurate network on the way, the pruned one before any training included.
        remark: Why this is not the one that training ended with; empty if it is.
        stopped: Why training was stopped; None when it was not.
    """

    best: Student
    remark: str
    stopped: str | None


def recover(
    pruned: Network,
    point: Point,
    lab: Lab,
    watch: Callable[[float, Student], str | None] = lambda end, best: None,
) -> Recipe[Recovered]:
    """Fine-tunes a pruned network rung by rung.

    Args:
        pruned: As pruning left it.
        point: Its recipe.
        lab: Where.
        watch: Told the best student so far at every rung but the last, and the share of the
            training that is done; returns why to stop, or None.

    Raises:
        StageFailed: When training fails, and no network before it is better than guessing.
    """
    start: Student = yield reestimate(pruned, lab)
    student, best, at = start, start, 0.0
    for begin, end in pairwise((0.0, *lab.bench.train.rungs)):
        try:
            student = yield finetune(student, begin, end, point, lab)
        except StageFailed as error:
            if best.val_accuracy < lab.least_accuracy:
                raise
            return Recovered(best, _describe_kept(at, f"the rest failed ({error})"), None)
        if student.val_accuracy >= best.val_accuracy:
            best, at = student, end
        stopped = watch(end, best) if end < 1 else None
        if stopped is not None:
            return Recovered(best, "", stopped)
    if best is student:
        return Recovered(best, "", None)
    change = f"{best.val_accuracy:.2%} became {student.val_accuracy:.2%}"
    why = f"the rest made it worse on validation ({change})"
    return Recovered(best, _describe_kept(at, why), None)


def _describe_kept(at: float, why: str) -> str:
    when = f"{at:.0%} of its fine-tuning" if at > 0 else "no fine-tuning"
    return f"the network after {when} is kept, because {why}"


def reestimate(network: Network, lab: Lab) -> Reestimate:
    """Returns the step that makes a pruned network as good as it is without training."""
    return Reestimate(
        network=network,
        data=lab.bench.data,
        batch_size=lab.bench.batch_size(lab.bench.train.epochs),
        precision=lab.placement.precision,
        layout=lab.placement.layout,
        device=lab.placement.device,
        seed=lab.bench.seed,
    )


def kept_layers(network: Network, whole: Network) -> tuple[KeptLayer, ...]:
    """Returns the output channels of every layer, beside those it has in the ``whole`` network.

    A layer is a weight of two dimensions or more, of which the first counts its channels.
    """
    before = dict(whole.shapes)
    return tuple(
        KeptLayer(name.removesuffix(".weight"), shape[0], before[name][0])
        for name, shape in network.shapes
        if name.endswith("weight") and len(shape) >= 2
    )


def deploy(network: Network, bits: int, bench: Bench) -> Recipe[Deployable]:
    """Exports a network and stores it in ``bits``."""
    exported = yield from export(network, bench)
    deployable: Deployable = yield Quantize(
        exported.model,
        bits,
        bench.device.int8_format,
        bench.data,
        bench.train.calibration_images,
        bench.seed,
    )
    return deployable


def export(network: Network, bench: Bench) -> Recipe[Exported]:
    """Exports a network; one slow tracing serves all widths that the network can be pruned to.

    Only code that computes with its own channel counts needs to be traced at each width.

    Raises:
        StageFailed: When the ONNX model does not compute what the network computes.
    """
    mean, std = bench.data.mean, bench.data.std
    error = None
    for shapes in (None, network.shapes):
        graph: Graph = yield Trace(network.spec, shapes, mean, std)
        exported: Exported = yield Export(graph, network, mean, std)
        if exported.is_faithful:
            return exported
        error = exported.parity_error
    raise StageFailed(
        "export",
        "the ONNX model's logits are not the network's, in spite of a trace of its own "
        f"(relative error {error}); at most {PARITY_TOLERANCE:g} is allowed",
    )


def finetune(student: Student, begin: float, end: float, point: Point, lab: Lab) -> Finetune:
    """Returns the step that trains a student from one share of its budget to the next."""
    train = lab.bench.train
    return Finetune(
        start=student.network,
        state=student.state,
        begin=begin,
        end=end,
        teacher_logits=lab.teacher.logits,
        data=lab.bench.data,
        distill_temperature=point.distill_temperature,
        distill_weight=point.distill_weight,
        optimizer=point.optimizer,
        learning_rate=point.learning_rate,
        schedule=point.schedule,
        weight_decay=train.weight_decay,
        epochs=train.epochs,
        batch_size=lab.bench.batch_size(train.epochs),
        precision=lab.placement.precision,
        layout=lab.placement.layout,
        device=lab.placement.device,
        seed=lab.bench.seed,
    )


def violated(figures: Figures | Traded, lab: Lab) -> dict[str, float]:
    """Returns by how much each known figure exceeds its limit; at most 0 keeps it."""
    limits, accuracy = lab.bench.limits, figures.val_accuracy
    drop = None if accuracy is None else lab.reference_accuracy - accuracy
    shortfall = None if accuracy is None else lab.least_accuracy - accuracy
    checks = {
        "min_accuracy_share": (shortfall, 0.0),
        "max_accuracy_drop": (drop, limits.max_accuracy_drop),
        "max_latency_ms": (figures.latency_ms, limits.max_latency_ms),
        "max_size_bytes": (figures.size_bytes, limits.max_size_bytes),
        "max_memory_bytes": (figures.peak_rss_bytes, limits.max_memory_bytes),
    }
    return {
        name: round(value - limit, 12)  # 0.90 - 0.89 is a hair above 0.01 in binary
        for name, (value, limit) in checks.items()
        if value is not None and limit is not None
    }


def _infeasible(
    point: Point,
    figures: Figures,
    violations: Mapping[str, float],
    deployable: Deployable | None,
    layers: tuple[KeptLayer, ...],
    lab: Lab,
) -> Ending:
    broken = {name: excess for name, excess in violations.items() if excess > 0}
    reasons = []
    if broken.pop("min_accuracy_share", None) is not None:
        accuracy, chance = figures.val_accuracy or 0.0, lab.bench.data.chances[1]
        reasons.append(
            f"is little better than guessing: {accuracy:.2%} on validation, where guessing gives "
            f"{chance:.2%} and the original has {lab.reference_accuracy:.2%}".replace("%", " %")
        )
    if broken:
        reasons.append(f"exceeds {', '.join(f'{name} by {v:.4g}' for name, v in broken.items())}")
    return Ending(
        point, "infeasible", " and ".join(reasons), figures, violations, deployable, layers
    )


def measure(
    bench: Bench,
    deployable: Deployable,
    threads: int,
    reference: Deployable,
    reference_threads: int,
) -> Measure:
    """Returns the step that times a model beside another one."""
    return Measure(
        deployable=deployable,
        threads=threads,
        reference=reference,
        reference_threads=reference_threads,
        data=bench.data,
        device=bench.device,
        connection=bench.measuring,
        batch_size=bench.measuring.batch_size,
        throughput_batch_size=bench.measuring.throughput_batch_size,
        spinning=bench.measuring.spinning,
        memory_limit_bytes=bench.measuring.memory_limit_bytes,
        launches=SEARCH_LAUNCHES,
        budget_s=bench.measuring.budget_s,
        seed=bench.seed,
    )
