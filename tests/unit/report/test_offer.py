"""The list of what can be picked fits a terminal, with nothing cut."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from search.front.candidates import Offer, offer
from search.report.offer import describe, offer_table
from tests.deployables import make_deployable
from tests.fakes import file
from tests.plants import plant


@pytest.fixture
def offered() -> Offer:
    known: dict[str, Any] = {
        "latency_ratio_low": 0.49,
        "latency_ratio_high": 0.51,
        "p99_ms": 0.75,
    }
    records = [
        plant(0, val_accuracy=0.92, latency_ms=0.55, size_bytes=1_611_886, **known),
        plant(123, bits=4, effective_bits=32.0, val_accuracy=0.92, latency_ms=0.05, **known),
    ]
    kept = [
        replace(record, deployable=make_deployable(file(str(record.number)), 32, ()))
        for record in records
    ]
    return offer(kept, None, ("accuracy", "latency"), 10_000)


@pytest.mark.parametrize("width", [80, 120])
def test_the_list_fits_a_terminal(offered: Offer, width: int) -> None:
    console = Console(file=io.StringIO(), width=width)
    console.print(offer_table(offered))
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert "\N{HORIZONTAL ELLIPSIS}" not in shown
    # Wilson's interval of 9200 out of 10 000, and a latency's share of its ratio's interval.
    for cell in ("(original)", "92.00 %", "91.5\N{EN DASH}92.5", "0.0490\N{EN DASH}0.0510", "1574"):
        assert cell in shown
    assert "No closing round was held" in shown


def test_a_point_is_described_in_a_line(offered: Offer) -> None:
    line = describe(offered.find(123))
    assert line.startswith("trial 123: 92.00 % on validation, 0.0500 ms [0.0490")
    assert line.endswith("431 KiB, 4 bits, 2 threads")
