"""Records with figures that are easy to reckon with, made up without any search."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any, Literal, TypeVar, overload

from search.records.closing import Finalist
from search.records.files import File
from search.records.trial import (
    CompleteTrial,
    Cost,
    FailedTrial,
    Figures,
    InfeasibleTrial,
    KeptLayer,
    Outcome,
    Progress,
    RejectedTrial,
    ScoredTrial,
    StoppedTrial,
    TrialRecord,
    shared,
)
from tests.deployables import make_deployable
from tests.points import make_point

T = TypeVar("T", bound=TrialRecord)
MODEL = File("0" * 64, ".onnx", 1024)


def make_figures(**changes: Any) -> Figures:
    """All figures of a scored model, but for ``changes``."""
    known: dict[str, Any] = {
        "val_accuracy": 0.91421,
        "float_accuracy": 0.92,
        "latency_ms": 0.5,
        "latency_ratio": 0.5,
        "latency_ratio_low": 0.4,
        "latency_ratio_high": 0.7,
        "speedup": 2.311,
        "speedup_low": 2.249,
        "speedup_high": 2.379,
        "p50_ms": 0.51,
        "p90_ms": None,
        "p95_ms": None,
        "p99_ms": None,
        "images_per_s": None,
        "quality": "resolved",
        "launches": 2,
        "disturbed_rounds": 0,
        "warm": True,
        "size_bytes": 431 * 1024,
        "macs": 1_234_567,
        "parameters": 98_765,
        "peak_rss_bytes": 61 * 1024**2,
        "model_rss_bytes": 1024**2,
        "energy_mj": None,
        "energy_note": "no counter",
        "cpu_ms": 0.75,
        "cold_start_ms": 12.0,
        "effective_bits": 8.0,
        "integer_operators": 3,
        "compute_operators": 4,
        "channels_removed": 0.375,
        "is_changed": True,
        "structure": "",
    }
    return Figures(**(known | changes))


def make_cost(**changes: Any) -> Cost:
    """What is known before training, but for ``changes``."""
    return Cost(**shared(Cost, make_figures(**changes)))


@overload
def plant(
    number: int,
    outcome: Literal["complete"] = ...,
    reason: str = ...,
    bits: int = ...,
    **figures: Any,
) -> CompleteTrial: ...
@overload
def plant(
    number: int, outcome: Literal["stopped"], reason: str = ..., bits: int = ..., **figures: Any
) -> StoppedTrial: ...
@overload
def plant(
    number: int, outcome: Outcome, reason: str = ..., bits: int = ..., **figures: Any
) -> TrialRecord: ...
def plant(
    number: int, outcome: Outcome = "complete", reason: str = "", bits: int = 8, **figures: Any
) -> TrialRecord:
    """A trial whose figures are all known, but for ``figures``.

    An infeasible one without ``val_accuracy`` was not trained, nor was a stopped one without
    ``float_accuracy``.
    """
    found = make_figures(**({"effective_bits": float(bits)} | figures))
    common: dict[str, Any] = {
        "number": number,
        "is_original": number == 0,
        "point": make_point(
            prune_ratio=0.5,
            bits=bits,
            distill_temperature=4.0,
            distill_weight=0.25,
            optimizer="adamw",
            learning_rate=0.003,
            schedule="cosine",
            threads=2,
        ),
        "reason": reason,
        "violations": {},
        "layers": (),
        "student_of": None,
        "stage_s": {},
        "reused_steps": 0,
        "wall_s": 60.0,
        "finished_at": 0.0,
        "worker_rss_bytes": None,
    }
    model = make_deployable(File(f"{number:064x}", ".onnx", 1024), bits, ())
    match outcome:
        case "complete":
            return CompleteTrial(**common, figures=found, deployable=model)
        case "infeasible" if figures.get("val_accuracy", 1) is not None:
            return RejectedTrial(**common, figures=found, deployable=model)
        case "infeasible":
            return InfeasibleTrial(**common, figures=Cost(**shared(Cost, found)))
        case "stopped":
            kind = Progress if figures.get("float_accuracy", 1) is not None else Cost
            return StoppedTrial(**common, figures=kind(**shared(kind, found)))
        case "failed":
            return FailedTrial(**common)


def rejected(record: ScoredTrial, reason: str = "exceeds max_latency_ms by 1") -> RejectedTrial:
    """The same trial, had it broken a limit."""
    known = {one.name: getattr(record, one.name) for one in fields(record)}
    return RejectedTrial(**(known | {"outcome": "infeasible", "reason": reason}))


def plant_finalist(record: ScoredTrial, **changes: Any) -> Finalist:
    """A point that stands after the closing round, but for ``changes``."""
    known: dict[str, Any] = {
        "number": record.number, "is_original": record.is_original, "point": record.point,
        "deployable": make_deployable(MODEL, 8), "figures": record.figures, "test_accuracy": 0.9,
        "test_low": 0.89, "test_high": 0.91, "stands": True, "reason": "", "tie": None,
    }  # fmt: skip
    return Finalist(**(known | changes))


def with_layers(record: T, **channels: tuple[int, int]) -> T:
    """The same with layers, each its channels and those it had; their names have dots."""
    layers = (KeptLayer(name.replace("_", "."), *counts) for name, counts in channels.items())
    return replace(record, layers=tuple(layers))
