"""How trials ended, one type for each outcome."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypeAlias

from search.records.deployable import Deployable
from search.records.measurement import RunFigures
from search.records.point import Point

Outcome = Literal["complete", "stopped", "infeasible", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost(RunFigures):
    """What a network costs, which is known before it is trained.

    Attributes:
        latency_ms: The reference's latency at this thread count times ``latency_ratio``.
        latency_ratio: Over the uncompressed reference at the same thread count.
        latency_ratio_low: Lower end of its interval.
        latency_ratio_high: Upper end.
        speedup: Against the uncompressed network at its own best thread count.
        speedup_low: Lower end of its interval.
        speedup_high: Upper end.
        size_bytes: Length of the ONNX file.
        macs: Multiply-accumulates of one image.
        parameters: Number of trainable values.
        effective_bits: Mean bits in which convolutions and matrix products are computed.
        integer_operators: Executed convolutions and matrix products in integers.
        compute_operators: Executed convolutions and matrix products altogether.
        channels_removed: Share of prunable channels that pruning removed, 0..1.
        is_changed: Whether its structure or weights are others than the uncompressed network's.
        structure: Digest of its structure, as ``Network`` has it.
    """

    latency_ms: float
    latency_ratio: float
    latency_ratio_low: float
    latency_ratio_high: float
    speedup: float
    speedup_low: float
    speedup_high: float
    size_bytes: int
    macs: int
    parameters: int
    effective_bits: float
    integer_operators: int
    compute_operators: int
    channels_removed: float
    is_changed: bool
    structure: str

    @property
    def latency_interval_ms(self) -> tuple[float, float]:
        """Ends of the latency's interval.

        Latency is the ratio times a constant of the study, so their intervals are proportional.
        """
        unit_ms = self.latency_ms / self.latency_ratio
        return unit_ms * self.latency_ratio_low, unit_ms * self.latency_ratio_high


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress(Cost):
    """What is known of a network after some training.

    Attributes:
        float_accuracy: Of the network in PyTorch on the validation split, 0..1.
    """

    float_accuracy: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures(Progress):
    """All that is known of a network whose deployed model was scored.

    Attributes:
        val_accuracy: Of the deployed model on the validation split, 0..1.
    """

    val_accuracy: float


def shared(kind: type[RunFigures], figures: RunFigures) -> dict[str, Any]:
    """Returns the fields of ``kind`` that ``figures`` has, to make something larger from."""
    return {one.name: getattr(figures, one.name) for one in fields(kind)}


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


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialRecord:
    """A finished trial, whole: all that tracking and reports are made from.

    What it is made of depends on how it ended: see the classes below.

    Attributes:
        number: Optuna's trial number.
        is_original: Whether this is the uncompressed network, which all others are compared with.
        point: Where in the space.
        outcome: How it ended.
        reason: One line; of a complete trial a remark, or empty.
        figures: What was found out; None where it ended before anything was.
        violations: Constraint name to excess over its limit; above 0 is violated.
        deployable: The model that was scored; None where none was.
        layers: What pruning left of every layer, in the network's order; empty where the trial
            ended before it was pruned.
        student_of: Number of the trial that trained the student which is deployed otherwise here;
            None for a trial with a training of its own.
        stage_s: Seconds each stage cost when it was computed, by stage name.
        reused_steps: Steps that the store answered.
        wall_s: Seconds that this trial took this time.
        finished_at: Unix time in seconds.
        worker_rss_bytes: Most memory that a worker process held that did one of its steps; None
            where all were done in the search's own process.
    """

    number: int
    is_original: bool
    point: Point
    outcome: Outcome
    reason: str
    figures: Cost | None
    violations: Mapping[str, float]
    deployable: Deployable | None
    layers: tuple[KeptLayer, ...]
    student_of: int | None
    stage_s: Mapping[str, float]
    reused_steps: int
    wall_s: float
    finished_at: float
    worker_rss_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredTrial(TrialRecord):
    """A trial whose deployed model was scored."""

    figures: Figures
    deployable: Deployable


@dataclass(frozen=True, slots=True, kw_only=True)
class CompleteTrial(ScoredTrial):
    """A trial that keeps all limits."""

    outcome: Literal["complete"] = "complete"


@dataclass(frozen=True, slots=True, kw_only=True)
class RejectedTrial(ScoredTrial):
    """A trial whose scored model breaks a limit."""

    outcome: Literal["infeasible"] = "infeasible"


@dataclass(frozen=True, slots=True, kw_only=True)
class InfeasibleTrial(TrialRecord):
    """A trial that was not trained: its cost breaks a limit, or its point cannot be realised."""

    outcome: Literal["infeasible"] = "infeasible"
    figures: Cost | None = None
    violations: Mapping[str, float] = field(default_factory=dict)
    deployable: None = None
    layers: tuple[KeptLayer, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class StoppedTrial(TrialRecord):
    """A trial that was not worth training, or training on."""

    outcome: Literal["stopped"] = "stopped"
    figures: Progress | Cost
    deployable: None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedTrial(TrialRecord):
    """A trial that a stage failed in."""

    outcome: Literal["failed"] = "failed"
    figures: None = None
    violations: Mapping[str, float] = field(default_factory=dict)
    deployable: None = None
    layers: tuple[KeptLayer, ...] = ()


AnyTrial: TypeAlias = CompleteTrial | RejectedTrial | StoppedTrial | InfeasibleTrial | FailedTrial
