"""What tests of several rooms share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import hypothesis
import pytest
import torch

from search.records import Figures, Outcome, Point, TrialRecord
from tests.workbench import Workbench

# A busy machine is no bug.
hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workbench]:
    """A store that remembers teachers and graphs for the whole test run."""
    threads = torch.get_num_threads()
    # Networks this small gain nothing from a second thread, and lose much on a busy machine.
    torch.set_num_threads(1)
    yield Workbench(tmp_path_factory.mktemp("store"))
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def plant() -> Callable[..., TrialRecord]:
    """Returns a maker of records; figures can be given by name."""
    return _plant


def _plant(
    number: int, outcome: Outcome = "complete", reason: str = "", bits: int = 8, **figures: Any
) -> TrialRecord:
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
        wall_s=1.0,
        finished_at=0.0,
    )
