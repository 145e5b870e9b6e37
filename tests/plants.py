"""Records with figures that are easy to reckon with, made up without any search."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from search.records import (
    Deployable,
    Figures,
    File,
    Finalist,
    KeptLayer,
    Outcome,
    Point,
    TrialRecord,
)

MODEL = File("0" * 64, ".onnx", 1024)


def plant(
    number: int, outcome: Outcome = "complete", reason: str = "", bits: int = 8, **figures: Any
) -> TrialRecord:
    """A trial whose figures are all known, but for ``figures``."""
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
        "size_bytes": 431 * 1024,
        "macs": 1_234_567,
        "parameters": 98_765,
        "peak_rss_bytes": 61 * 1024**2,
        "cpu_ms": 0.75,
        "cold_start_ms": 12.0,
        "effective_bits": float(bits),
        "integer_operators": 3,
        "compute_operators": 4,
        "channels_removed": 0.375,
    }
    return TrialRecord(
        number=number,
        point=Point(
            prune_ratio=0.5,
            bits=bits,
            distill_temperature=4.0,
            distill_weight=0.25,
            optimizer="adamw",
            learning_rate=0.003,
            schedule="cosine",
            threads=2,
        ),
        outcome=outcome,
        reason=reason,
        figures=Figures(**(known | figures)),
        violations={},
        deployable=None,
        student_of=None,
        stage_s={},
        reused_steps=0,
        wall_s=60.0,
        finished_at=0.0,
    )


def plant_finalist(record: TrialRecord, **changes: Any) -> Finalist:
    """A point that stands after the closing round, but for ``changes``."""
    known: dict[str, Any] = {
        "number": record.number, "point": record.point, "deployable": Deployable(MODEL, 8, ()),
        "figures": record.figures, "test_accuracy": 0.9, "test_low": 0.89, "test_high": 0.91,
        "stands": True, "reason": "", "tie": None,
    }  # fmt: skip
    return Finalist(**(known | changes))


def with_layers(record: TrialRecord, **channels: tuple[int, int]) -> TrialRecord:
    """The same with layers, each its channels and those it had; their names have dots."""
    layers = (KeptLayer(name.replace("_", "."), *counts) for name, counts in channels.items())
    return replace(record, layers=tuple(layers))
