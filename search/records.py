"""Frozen values that rooms hand to each other; knows nothing of how they are computed.

Fields declared with ``compare=False`` say how a value was obtained, not what it is: they count
neither for equality nor for the store's keys. Slots, because a long study holds thousands of
them: they save a fifth of a trial's memory.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from search.config import DataConfig

Outcome = Literal["complete", "stopped", "infeasible", "failed"]
Quality = Literal["resolved", "unresolved", "poor"]
RawLaunch = tuple[int, tuple[tuple[float, float], ...], tuple[bool, ...]]
ReadFile = Callable[[], bytes]  # raises FileLost
Int8Format = Literal["u8s8", "u8s8_reduced", "s8s8"]
Shapes = tuple[tuple[str, tuple[int, ...]], ...]
TypedShapes = tuple[tuple[str, tuple[int, ...]], ...]
DIGEST, SUFFIX = re.compile("[0-9a-f]{64}"), re.compile(r"\.[a-z0-9]{1,16}")


@dataclass(frozen=True, slots=True)
class File:
    """A file known by its content.

    Attributes:
        sha256: Hexadecimal digest of the bytes.
        suffix: File name ending with its dot, such as ``.onnx``.
        size_bytes: Length of the content.

    Raises:
        ValueError: If it is no such name, which may lead anywhere when a path is made from it.
    """

    sha256: str
    suffix: str
    size_bytes: int = field(compare=False)

    def __post_init__(self) -> None:
        if not DIGEST.fullmatch(self.sha256) or not SUFFIX.fullmatch(self.suffix):
            raise ValueError(f"{self.sha256[:80]!r} {self.suffix[:80]!r} name no file of a store")


@dataclass(frozen=True, slots=True)
class Dataset:
    """What stages need to know of a data set without holding it.

    Attributes:
        config: How to load it.
        fingerprint: Hash of the content, the identity of the data.
        image_shape: ``(channels, height, width)``.
        labels: Class names, ``[classes]``.
        mean: Per-channel mean of the training pixels in 0..1, ``[channels]``.
        std: Per-channel standard deviation of the same, ``[channels]``.
        sizes: Number of images in train, validation and test.
        chances: Accuracy of guessing in train, validation and test, 0..1: the largest class's
            share, which is got without a look at the images.
    """

    config: DataConfig = field(compare=False)
    fingerprint: str
    image_shape: tuple[int, int, int]
    labels: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    sizes: tuple[int, int, int]
    chances: tuple[float, float, float] = field(compare=False)

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.labels)


@dataclass(frozen=True, slots=True)
class NetworkSpec:
    """How to build the unpruned network.

    Attributes:
        name: Registered name, or ``custom``.
        width: Channels of the first layer; None for ``custom``.
        factory: ``package.module:function`` of a custom network.
        arguments: Keyword arguments of the factory, sorted by name.
        source_sha256: Digest of the custom factory's source file.
        image_shape: ``(channels, height, width)`` of its input.
        classes: Number of logits.
    """

    name: str
    width: int | None
    factory: str | None
    arguments: tuple[tuple[str, Any], ...]
    source_sha256: str | None
    image_shape: tuple[int, int, int]
    classes: int


@dataclass(frozen=True, slots=True)
class Network:
    """A network with weights; pruning shows only in the weights' shapes.

    Attributes:
        spec: The unpruned network.
        shapes: ``(parameter name, shape)`` of every tensor: the structure.
        weights: Safetensors file of the state dict.
        macs: Multiply-accumulates of one image.
        parameters: Number of trainable values.
    """

    spec: NetworkSpec
    shapes: Shapes
    weights: File
    macs: int
    parameters: int


@dataclass(frozen=True, slots=True)
class Teacher:
    """The accurate network that the search starts from.

    Attributes:
        network: Its weights.
        logits: File of its logits, ``[train images, classes]`` float16 in little-endian order.
        val_accuracy: PyTorch accuracy on the validation split, 0..1.
    """

    network: Network
    logits: File
    val_accuracy: float


@dataclass(frozen=True, slots=True)
class Student:
    """A network in the middle of, or after, its fine-tuning.

    Attributes:
        network: Its weights.
        state: Optimizer and schedule state to go on from; None after the last rung.
        val_accuracy: PyTorch accuracy on the validation split, 0..1.
    """

    network: Network
    state: File | None
    val_accuracy: float


@dataclass(frozen=True, slots=True)
class Deployable:
    """An ONNX file in one storage format, with what its runtime must be told.

    Attributes:
        model: The file; raw ``[N, C, H, W]`` pixels in 0..1 to logits ``[N, classes]``.
        bits: Nominal bits of the weights.
        session_entries: onnxruntime session configuration it was made for.
    """

    model: File
    bits: int
    session_entries: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class DeviceProfile:
    """The device that latency is measured on.

    Attributes:
        name: What the user calls it.
        cpu: Processor model.
        arch: Machine architecture as ``platform.machine()`` gives it.
        flags: Instruction sets that matter here, sorted.
        usable_cores: Cores that affinity and quota leave.
        runtime: ``onnxruntime`` with its version.
        round_to: Channels are kept in multiples of this.
        int8_format: Static 8-bit format that suits the processor.
        speeds: Latency of each format over float's on the probe network, with its interval; empty
            where the device was not probed.
        probe_ms: Latency of the probe network in float; None where it was not probed.
    """

    name: str
    cpu: str
    arch: str
    flags: tuple[str, ...]
    usable_cores: int
    runtime: str
    round_to: int
    int8_format: Int8Format
    speeds: Mapping[str, Interval] = field(default_factory=dict, compare=False)
    probe_ms: float | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Interval:
    """A ratio of latencies with the ends of its interval; below 1 is faster."""

    ratio: float
    low: float
    high: float

    @property
    def holds_one(self) -> bool:
        """Whether the two may be equally fast."""
        return self.low <= 1.0 <= self.high


@dataclass(frozen=True, slots=True)
class Canary:
    """The original measured against itself, which tells how far the device can be trusted.

    Attributes:
        after_trials: Finished trials when this was measured.
        interval: Of the ratio, which is 1.
        quality: Of the measurement.
    """

    after_trials: int
    interval: Interval
    quality: Quality

    @property
    def is_noisy(self) -> bool:
        """Whether the device told two copies of one model apart, or could not tell at all."""
        return self.quality == "poor" or not self.interval.holds_one


@dataclass(frozen=True, slots=True)
class Measurement:
    """A model's run-time figures beside a reference measured in the same minutes.

    Attributes:
        p50_ms: Median latency of the model by itself, one run after another; None where too few
            runs were made for it, and likewise the other percentiles.
        p90_ms: 90th percentile.
        p95_ms: 95th percentile.
        p99_ms: 99th percentile.
        reference_p50_ms: Median latency of the reference in the same minutes.
        ratio: Model over reference, from paired rounds; below 1 is faster.
        ratio_low: Lower end of the ratio's interval.
        ratio_high: Upper end.
        rounds: Paired rounds measured, all launches of the answer together.
        disturbed_rounds: Those of them in which others took the processor.
        excluded_rounds: Those of the disturbed ones that do not count; all do where few are left.
        launches: Pairs of fresh processes that the answer rests on.
        quality: Of the interval: ``resolved`` within 1.5 %, ``poor`` wider than 5 %, else
            ``unresolved``.
        warm: Whether all processes' times settled before they were compared.
        images_per_s: Throughput, batches run back to back; None where that would take too long.
        cold_start_ms: Session creation and first run.
        cpu_ms: Processor time of one inference.
        peak_rss_bytes: Peak resident memory of the model's own process.
        model_rss_bytes: Its increase over the memory that the imported runtime takes.
        energy_mj: Millijoules of the processor package in one inference; None where no counter is.
        energy_note: The energy's source, or why there is none.
        operators: Executed operator types with their number, after optimisation.
        protocol: Version of the protocol; figures of different versions do not mix.
        conditions: The device's processor, processors in use, ticks stolen and microseconds
            throttled meanwhile, and the clock of the rounds; by role hash of the model, runtime
            and options of the session.
        raw: ``(seed, [(model_ms, reference_ms), ...], [disturbed, ...])`` for every launch, also of
            an attempt that was given up.
    """

    p50_ms: float | None
    p90_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    reference_p50_ms: float
    ratio: float
    ratio_low: float
    ratio_high: float
    rounds: int
    disturbed_rounds: int
    excluded_rounds: int
    launches: int
    quality: Quality
    warm: bool
    images_per_s: float | None
    cold_start_ms: float
    cpu_ms: float
    peak_rss_bytes: int
    model_rss_bytes: int
    energy_mj: float | None
    energy_note: str
    operators: Mapping[str, int]
    protocol: int
    conditions: Mapping[str, Any] = field(compare=False)
    raw: tuple[RawLaunch, ...] = field(compare=False)

    @property
    def interval(self) -> Interval:
        """The ratio with its interval."""
        return Interval(self.ratio, self.ratio_low, self.ratio_high)


@dataclass(frozen=True, slots=True)
class Session:
    """Several models measured with one reference, their launches in turns.

    Attributes:
        measurements: Of each model, against the reference.
        log_ratios: Of each model the logarithm of its latency over the reference's in every
            round of launches; those of one round belong together.
        cpu_ms: Likewise its processor time of one inference.
        peak_rss_bytes: Likewise its peak resident memory.
    """

    measurements: tuple[Measurement, ...]
    log_ratios: tuple[tuple[float, ...], ...]
    cpu_ms: tuple[tuple[float, ...], ...]
    peak_rss_bytes: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer of a network that has weights, as its ONNX model computes it.

    Attributes:
        name: In PyTorch, such as ``stages.0.conv1``.
        inputs: Channels that come in.
        outputs: Channels that go out.
        groups: Of a convolution; 1 where every output is computed from all inputs.
    """

    name: str
    inputs: int
    outputs: int
    groups: int

    @property
    def is_depthwise(self) -> bool:
        """Whether every channel is convolved by itself."""
        return self.groups == self.inputs > 1


@dataclass(frozen=True, slots=True)
class Kernel:
    """An operator as the runtime executes it, after its optimisation of the graph.

    Attributes:
        operator: The runtime's type, such as ``QLinearConv``.
        layer: Name of the layer that it belongs to; empty before the first one.
        microseconds: Of one run, being looked at included.
        inputs: Element type, such as ``uint8``, and shape of each.
        outputs: The same.
    """

    operator: str
    layer: str
    microseconds: float
    inputs: TypedShapes
    outputs: TypedShapes


@dataclass(frozen=True, slots=True)
class ModelProfile:
    """What a model's time goes into.

    Attributes:
        bits: Nominal bits of the weights.
        threads: With which it was profiled.
        layers: In the order of the model.
        kernels: In the order of execution.
        latency_ms: Median of single runs by number of threads, nobody looking.
        cold_start_ms: Session creation and first run in a fresh process.
    """

    bits: int
    threads: int
    layers: tuple[Layer, ...]
    kernels: tuple[Kernel, ...]
    latency_ms: Mapping[int, float]
    cold_start_ms: float

    @property
    def own_latency_ms(self) -> float:
        """Latency with the threads that it was profiled with."""
        return self.latency_ms[self.threads]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two models profiled in the same minutes.

    Attributes:
        candidate: The model in question.
        original: The uncompressed network.
        call_ms: Latency of a model that computes nothing.
        looking_us: What the runtime's profile says its only kernel takes.
    """

    candidate: ModelProfile
    original: ModelProfile
    call_ms: float
    looking_us: float


@dataclass(frozen=True, slots=True)
class Point:
    """One choice in the search space; see ``conf/space`` for ranges and units."""

    prune_ratio: float
    bits: int
    distill_temperature: float
    distill_weight: float
    optimizer: str
    learning_rate: float
    schedule: str
    threads: int


@dataclass(frozen=True, slots=True)
class Figures:
    """What one trial found out; None where the trial ended before it was known.

    Attributes:
        val_accuracy: The deployed ONNX model's accuracy on the validation split, 0..1.
        float_accuracy: The same network's accuracy in PyTorch before quantization.
        latency_ms: The reference's latency at this thread count times ``latency_ratio``.
        latency_ratio: Over the uncompressed reference at the same thread count.
        latency_ratio_low: Lower end of its interval.
        latency_ratio_high: Upper end.
        speedup: Against the uncompressed network at its own best thread count.
        speedup_low: Lower end of its interval.
        speedup_high: Upper end.
        p50_ms: Raw median latency while this was measured, a single stream; None if too few runs.
        p90_ms: 90th percentile of the same.
        p95_ms: 95th percentile.
        p99_ms: 99th percentile.
        images_per_s: Throughput at its own batch size.
        measuring: How far the latency can be trusted.
        launches: Pairs of fresh processes that it rests on.
        disturbed_rounds: Rounds in which others took the processor.
        warm: Whether times had settled before they were compared.
        size_bytes: Length of the ONNX file.
        macs: Multiply-accumulates of one image.
        parameters: Number of trainable values.
        peak_rss_bytes: Peak resident memory of the runtime's process.
        model_rss_bytes: What of it the model takes, the runtime's own memory apart.
        energy_mj: Millijoules of one inference; None where the device has no counter.
        energy_note: Where that comes from, or why there is none.
        cpu_ms: Processor time of one inference.
        cold_start_ms: Session creation and first run.
        effective_bits: Mean bits in which convolutions and matrix products are computed.
        integer_operators: Executed convolutions and matrix products in integers.
        compute_operators: Executed convolutions and matrix products altogether.
        channels_removed: Share of prunable channels that pruning removed, 0..1.
    """

    val_accuracy: float | None = None
    float_accuracy: float | None = None
    latency_ms: float | None = None
    latency_ratio: float | None = None
    latency_ratio_low: float | None = None
    latency_ratio_high: float | None = None
    speedup: float | None = None
    speedup_low: float | None = None
    speedup_high: float | None = None
    p50_ms: float | None = None
    p90_ms: float | None = None
    p95_ms: float | None = None
    p99_ms: float | None = None
    images_per_s: float | None = None
    measuring: Quality | None = None
    launches: int | None = None
    disturbed_rounds: int | None = None
    warm: bool | None = None
    size_bytes: int | None = None
    macs: int | None = None
    parameters: int | None = None
    peak_rss_bytes: int | None = None
    model_rss_bytes: int | None = None
    energy_mj: float | None = None
    energy_note: str | None = None
    cpu_ms: float | None = None
    cold_start_ms: float | None = None
    effective_bits: float | None = None
    integer_operators: int | None = None
    compute_operators: int | None = None
    channels_removed: float | None = None

    @property
    def latency_interval_ms(self) -> tuple[float, float] | None:
        """Ends of the latency's interval; None where no interval is known.

        Latency is the ratio times a constant of the study, so their intervals are proportional.
        """
        ratio, low, high = self.latency_ratio, self.latency_ratio_low, self.latency_ratio_high
        if self.latency_ms is None or not ratio or low is None or high is None:
            return None
        return self.latency_ms * low / ratio, self.latency_ms * high / ratio


@dataclass(frozen=True, slots=True)
class KeptLayer:
    """What pruning left of one layer.

    Attributes:
        name: Of the module that holds its weights.
        channels: Output channels that it has.
        of: Those it had in the uncompressed network.
    """

    name: str
    channels: int
    of: int


@dataclass(frozen=True, slots=True)
class TrialRecord:
    """A finished trial, whole: all that tracking and reports are made from.

    Attributes:
        number: Optuna's trial number.
        point: Where in the space.
        outcome: How it ended.
        reason: One line; empty for a complete trial.
        figures: What was found out.
        violations: Constraint name to excess over its limit; above 0 is violated.
        deployable: The model that was scored; None unless complete or infeasible by figures.
        student_of: Number of the trial that trained the student which is deployed otherwise here;
            None for a trial with a training of its own.
        stage_s: Seconds each stage cost when it was computed, by stage name.
        reused_steps: Steps that the store answered.
        wall_s: Seconds that this trial took this time.
        finished_at: Unix time in seconds.
        worker_rss_bytes: Most memory that a worker process held that did one of its steps; None
            where all were done in the search's own process, or known.
        layers: What pruning left of every layer, in the network's order; empty where the trial
            ended before it was pruned.
    """

    number: int
    point: Point
    outcome: Outcome
    reason: str
    figures: Figures
    violations: Mapping[str, float]
    deployable: Deployable | None
    student_of: int | None
    stage_s: Mapping[str, float]
    reused_steps: int
    wall_s: float
    finished_at: float
    layers: tuple[KeptLayer, ...] = ()
    worker_rss_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Finalist:
    """A point of the front as the closing round found it.

    Attributes:
        number: Of its trial.
        point: Where in the space.
        deployable: Its model, perhaps trained on since the trial.
        figures: Confirmed ones; latency ratio and speed-up are against the uncompressed network
            at its best thread count, with intervals that hold for all finalists together.
        test_accuracy: On the test split, 0..1.
        test_low: Lower end of its 95 % interval.
        test_high: Upper end.
        stands: Whether it is on the front still.
        reason: Why it left; empty while it stands.
        tie: Number of the group of points that cannot be told apart; None if it is alone.
    """

    number: int
    point: Point
    deployable: Deployable
    figures: Figures
    test_accuracy: float
    test_low: float
    test_high: float
    stands: bool
    reason: str
    tie: int | None


@dataclass(frozen=True, slots=True)
class Closing:
    """A study's closing round.

    Attributes:
        after_trials: Finished trials when it was held.
        finalists: In the order of their table; at least one.
        canaries: What the device was found to be like so far.
    """

    after_trials: int
    finalists: tuple[Finalist, ...]
    canaries: tuple[Canary, ...]
