"""Planted profiles give the findings that they were planted for, and tables that add up."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from rich.console import Console

from search.records.formats import ARROW, DASH, TIMES
from search.records.profile import Comparison, Kernel, Layer, ModelProfile
from search.records.trial import Figures
from search.report.explanation import (
    HEADINGS,
    Explanation,
    explain,
    explanation_html,
    explanation_text,
)
from search.runtimes.onnxruntime import FORMATS
from tests.plants import make_figures

LOOKING_US, CALL_MS = 4.0, 0.010
HOSTILE = "<script>alert('x')</script>{{plotly}}&"
FIGURES = make_figures(macs=300, speedup_low=0.0, speedup_high=1e9)
SAME = make_figures(macs=1000, speedup_low=0.0, speedup_high=1e9)

Spent = tuple[str, str, float]  # operator, layer, microseconds without the looking


def kernel(spent: Spent, kind: str, channels: int) -> Kernel:
    operator, layer, us = spent
    shapes = ((kind, (1, channels, 4, 4)),)
    return Kernel(operator, layer, us + LOOKING_US, shapes, shapes)


def model(
    *spent: Spent,
    bits: int = 32,
    threads: int = 1,
    channels: int = 32,
    kind: str = "float",
    times_ms: tuple[float, ...] = (),
    cold_start_ms: float = 5.0,
    depthwise: bool = False,
) -> ModelProfile:
    """A model of a convolution, a hidden layer and a head, all of whose figures are as given.

    Its latency is the sum of what was spent and the call's, but for ``times_ms`` at 1, 2, ...
    threads.
    """
    whole_ms = sum(us for *_, us in spent) / 1e3 + CALL_MS
    groups = channels if depthwise else 1
    return ModelProfile(
        format=FORMATS[bits],
        threads=threads,
        layers=(
            Layer("conv", channels if depthwise else 3, channels, groups),
            Layer("hidden", 100, channels, 1),
            Layer("head", channels, 10, 1),
        ),
        kernels=tuple(kernel(one, kind, -(-channels // 16) * 16) for one in spent),
        latency_ms=dict(enumerate(times_ms, 1)) or {threads: whole_ms},
        cold_start_ms=cold_start_ms,
    )


ORIGINAL = model(
    ("BatchNormalization", "", 5.0),
    ("Conv", "conv", 50.0),
    ("MaxPool", "conv", 10.0),
    ("FusedGemm", "hidden", 120.0),
    ("Gemm", "head", 5.0),
)


def explained(
    candidate: ModelProfile,
    original: ModelProfile = ORIGINAL,
    figures: Figures = FIGURES,
    round_to: int = 16,
    top: int = 12,
) -> Explanation:
    comparison = Comparison(candidate, original, CALL_MS, LOOKING_US)
    return explain(7, figures, comparison, 1000, round_to, top)


def test_a_quantized_model_that_lags() -> None:
    found = explained(
        model(
            ("BatchNormalization", "", 6.0),
            ("QuantizeLinear", "", 4.0),
            ("Transpose", "", 2.0),
            ("QLinearConv", "conv", 90.0),
            ("Transpose", "conv", 8.0),
            ("QGemm", "hidden", 25.0),
            ("QGemm", "head", 3.0),
            ("DequantizeLinear", "head", 2.0),
            bits=8,
            kind="uint8",
        )
    )
    assert found.findings == (
        f"Trial 7 takes 0.75{TIMES} the original's time (0.150 ms with 1 thread, the original "
        f"0.200 ms) though it has 0.30{TIMES} its multiplications.",
        "15 % is in operators that neither convolve nor multiply matrices (2 Transpose, "
        "1 BatchNormalization, 1 QuantizeLinear, 1 DequantizeLinear); in the original 8 %.",
        "The longest layer is conv: 65 %, in the original 30 %.",
        f"Slower than in the original: conv (1.6{TIMES}, QLinearConv for Conv), what comes before "
        f"the first layer (2.4{TIMES}).",
        "What may help: float (space.bits=[32]), in which conv took less; a model with less in "
        "conv.",
    )
    assert [tuple(row) for row in found.rows] == [
        ("(pixels)", "BatchNormalization, QuantizeLinear, Transpose", "5.0", "12", "8 %", "",
         "slower"),
        ("conv", "QLinearConv, Transpose", "60", "98", "65 %", "32", "slower"),
        ("hidden", "QGemm", "120", "25", "17 %", "32", ""),
        ("head", "QGemm, DequantizeLinear", "5.0", "5.0", "3 %", "10", ""),
        ("(call)", "", "10", "10", "7 %", "", ""),
        ("all", "", "200", "150", "100 %", "", ""),
    ]  # fmt: skip


def halved(**changes: object) -> ModelProfile:
    """Half of everything that is spent."""
    spent = [(k.operator, k.layer, (k.microseconds - LOOKING_US) / 2) for k in ORIGINAL.kernels]
    return model(*spent, **changes)  # type: ignore[arg-type]


def test_a_model_without_surprises() -> None:
    found = explained(halved(), figures=replace(FIGURES, macs=500))
    assert found.findings == (
        f"Trial 7 takes 0.53{TIMES} the original's time (0.105 ms with 1 thread, the original "
        f"0.200 ms) and has 0.50{TIMES} its multiplications.",
        "The longest layer is hidden: 57 %, in the original 60 %.",
        "What may help: a model with less in hidden.",
    )


def test_a_model_as_it_was() -> None:
    even = model(("Conv", "conv", 45.0), ("Gemm", "hidden", 45.0), ("Gemm", "head", 50.0))
    found = explained(even, even, SAME)
    assert found.findings[0] == (
        "Trial 7 computes what the original does: 0.150 ms with 1 thread beside 0.150 ms."
    )
    assert found.findings[-1] == ("Nothing stands out: the time follows what there is to compute.")


def test_a_study_that_measured_otherwise_is_quoted() -> None:
    seen = replace(FIGURES, macs=500, speedup=1.5, speedup_low=1.4, speedup_high=1.6)
    quote = f"by all that were measured it is 1.50{TIMES} [1.40{DASH}1.60] as fast as the original."
    assert explained(halved(), figures=seen).findings[1].endswith(quote)
    agreeing = replace(seen, speedup_high=2.0)
    assert not any(
        "all that were" in text for text in explained(halved(), figures=agreeing).findings
    )


@pytest.mark.parametrize("bits", [4, 16])
def test_weights_that_are_unpacked(bits: int) -> None:
    found = explained(halved(bits=bits, cold_start_ms=9.0)).findings
    assert (
        f"Its {bits}-bit weights are computed as float, in all 3 convolutions and matrix products: "
        "they save storage, not time." in found
    )
    assert (
        f"A cold start takes 1.8{TIMES} the original's: weights are unpacked when it is loaded."
        in (found)
    )
    assert "32 bits (space.bits) where storage does not matter" in found[-1]


def test_what_fell_back_to_float() -> None:
    mixed = halved(bits=8)
    kernels = [
        replace(k, operator="QGemm", inputs=(("uint8", (1, 32)),)) if k.layer == "hidden" else k
        for k in mixed.kernels
    ]
    found = explained(replace(mixed, kernels=tuple(kernels)))
    assert (
        "In float though stored in 8 bits: Conv in conv, MaxPool in conv, Gemm in head "
        "(31 % of the time)." in found.findings
    )
    assert [row.note for row in found.rows[:4]] == ["", "in float", "", "in float"]


def test_what_did_not_fuse() -> None:
    found = explained(
        model(("Conv", "conv", 60.0), ("BatchNormalization", "conv", 20.0), ("Relu", "conv", 10.0),
              ("Gemm", "hidden", 50.0), ("Add", "hidden", 1.0), ("Gemm", "head", 49.0))
    )  # fmt: skip
    assert (
        "Not fused into the layers before them: 1 BatchNormalization, 1 Relu, 1 Add "
        "(16 % of the time)." in found.findings
    )
    assert [row.note for row in found.rows[1:4]] == ["slower, unfused", "unfused", "slower"]


def test_empty_lanes() -> None:
    found = explained(halved(channels=13))
    assert (
        "Layers with channels off the SIMD width take 29 %, for empty lanes are computed too: "
        "conv (fills 13 of 16)." in found.findings
    )
    (row,) = (row for row in found.rows if row.layer == "conv")
    assert (row.channels, row.note) == (f"32{ARROW}13", "13/16 lanes")


def test_less_pruning_is_not_advised_for_lanes_that_the_original_leaves_empty_too() -> None:
    spent = (("Conv", "conv", 150.0), ("FusedGemm", "hidden", 20.0), ("Gemm", "head", 5.0))
    advice = "channels up to whole vectors (a smaller space.prune_ratio)"
    pruned, narrow = (
        explained(model(*spent, channels=13), model(*spent, channels=channels)).findings[-1]
        for channels in (16, 13)
    )
    assert advice in pruned
    assert advice not in narrow


def test_depthwise_layers() -> None:
    found = explained(halved(depthwise=True))
    assert (
        "Its 1 depthwise layer takes 29 %: so little is multiplied there for what is loaded that "
        "fewer bits hardly help." in found.findings
    )
    assert found.rows[1].note == "depthwise"


@pytest.mark.parametrize(
    ("times_ms", "said", "advice"),
    [
        ((0.105, 0.060), f"2 threads make it 1.75{TIMES} as fast as 1, the original 1.11{TIMES}.",
         "2 threads (space.threads), which here took 43 % less"),
        ((0.105, 0.126), f"2 threads take 1.20{TIMES} the time of 1: there is too little to share.",
         ""),
        ((0.105, 0.104), f"2 threads make it 1.01{TIMES} as fast as 1, the original 1.11{TIMES}.",
         ""),
    ],
)  # fmt: skip
def test_thread_scaling(times_ms: tuple[float, ...], said: str, advice: str) -> None:
    original = replace(ORIGINAL, latency_ms={1: 0.2, 2: 0.18})
    found = explained(halved(times_ms=times_ms), original)
    assert said in found.findings
    assert advice in found.findings[-1]
    assert ("space.threads" in found.findings[-1]) == bool(advice)
    assert re.match(r"Threads \(original\): 1: 0.105 ms \(0.200 ms\), 2: ", found.remarks[0])


def test_the_price_of_a_call() -> None:
    found = explained(model(("Conv", "conv", 6.0), ("Gemm", "hidden", 2.0), ("Gemm", "head", 2.0)))
    assert (
        "50 % of its time is the call itself, which no compression makes shorter." in found.findings
    )
    assert "several images in a call (device.batch_size)" in found.findings[-1]


@pytest.mark.parametrize("top", [1, 2, 3])
def test_the_rest_is_one_row(top: int) -> None:
    found = explained(halved(), top=top)
    rows = {row.layer: float(row.candidate_us) for row in found.rows}
    others = 4 - top
    assert f"({others} other{'s' if others > 1 else ''})" in rows
    whole = rows.pop("all")
    assert sum(rows.values()) == pytest.approx(whole, rel=0.05)  # but for rounding
    assert "hidden" in rows


def test_a_layer_of_one_model_alone() -> None:
    found = explained(model(("Conv", "new", 60.0), ("Gemm", "head", 20.0)))
    rows = {row.layer: row for row in found.rows}
    assert (rows["conv"].original_us, rows["conv"].candidate_us) == ("60", DASH)
    assert (rows["new"].original_us, rows["new"].candidate_us) == (DASH, "60")
    assert list(rows)[-3:] == ["new", "(call)", "all"]


def test_the_terminal_needs_80_columns() -> None:
    layer = "stages.10.shortcut.0"
    spent: list[Spent] = [
        ("QLinearConv", layer, 100.0), ("QLinearAveragePool", layer, 9.0), ("Add", layer, 9.0)
    ]  # fmt: skip
    console = Console(width=80, record=True)
    console.print(explanation_text(explained(model(*spent, bits=8))))
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 80
    text = " ".join(" ".join(lines).split())
    for whole in ("QLinearAveragePool", "Where the time of trial 7 goes", "Cold start", "Trial 7"):
        assert whole in text


class Elements(HTMLParser):
    """Collects opened and closed elements, and all text."""

    def __init__(self) -> None:
        super().__init__()
        self.opened: list[str] = []
        self.closed: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.opened.append(tag)

    def handle_endtag(self, tag: str) -> None:
        self.closed.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def test_html_is_whole_and_escaped() -> None:
    hostile = [(HOSTILE, HOSTILE, 100.0), ("Conv", "conv", 100.0)]
    elements = Elements()
    elements.feed(explanation_html(explained(model(*hostile))))
    assert "script" not in elements.opened
    assert HOSTILE in elements.text
    assert sorted(set(elements.opened) - {"br"}) == sorted(set(elements.closed))
    assert elements.opened.count("th") == len(HEADINGS) + elements.opened.count("tr") - 1
    assert elements.opened[:2] == ["h3", "p"]


def test_a_layer_is_not_called_slower_by_less_than_looking_at_it_costs() -> None:
    original = model(("Conv", "conv", 100.0), ("Gemm", "head", 0.3))
    for us, is_slower in ((3.1, False), (5.3, True)):
        found = explained(model(("Conv", "conv", 40.0), ("Gemm", "head", us)), original)
        assert any("Slower than in" in finding for finding in found.findings) is is_slower


def test_a_layer_that_took_no_longer_than_looking_at_it_can_become_slower() -> None:
    original = model(("Conv", "conv", 100.0), ("FusedGemm", "hidden", 0.0), ("Gemm", "head", 5.0))
    candidate = model(("Conv", "conv", 20.0), ("FusedGemm", "hidden", 60.0), ("Gemm", "head", 5.0))
    found = explained(candidate, original)
    assert "Slower than in the original: hidden (too short to be seen before)." in found.findings
