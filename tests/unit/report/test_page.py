"""The page is one file, says everything, and runs no one else's script."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from typing import Any

from search.records.formats import ARROW, DASH, TIMES
from search.report.page import front_page
from search.report.points import EMPTY
from search.report.table import NO_FRONT
from tests.plants import plant, plant_finalist

HOSTILE = "<script>alert('x')</script>{{plotly}}&"


class _Elements(HTMLParser):
    """Collects opened elements, and the text outside scripts and styles."""

    def __init__(self) -> None:
        super().__init__()
        self.opened: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.opened.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.opened and self.opened[-1][0] not in ("script", "style"):
            self.text += data


def _parse(page: str) -> _Elements:
    elements = _Elements()
    elements.feed(page)
    return elements


def _data(page: str) -> Any:
    match = re.search(r'<script type="application/json" id="data">(.*?)</script>', page)
    assert match is not None
    return json.loads(match[1])


def test_page_needs_no_network() -> None:
    page = front_page("study", [plant(0), plant(1)], {1})
    assert "plotly.js v" in page
    for tag, attributes in _parse(page).opened:
        assert attributes.get("src") is None
        assert tag != "link" or attributes["href"] == "data:,"


def test_data_hold_every_drawn_trial() -> None:
    records = [plant(0, latency_ms=2.0), plant(3), plant(4, outcome="failed")]
    data = _data(front_page("study", records, {3}))
    assert [(dot["trial"], dot["kind"]) for dot in data["dots"]] == [
        ("3", "front"),
        ("original", "dominated"),
    ]
    assert data["line"] == [[0.5, 0.91421]]
    assert data["dots"][1]["original"] is True


def test_the_command_finds_the_study_wherever_it_is_kept() -> None:
    assert _data(front_page("s", [plant(3)], {3}))["command"] == "python -m search.pick study=s"
    page = front_page("s", [plant(3)], {3}, storage=" storage=postgres 'storage.url=x://y'")
    command = "python -m search.pick study=s storage=postgres 'storage.url=x://y'"
    assert _data(page)["command"] == command


def test_hover_holds_recipe_and_figures() -> None:
    data = _data(front_page("study", [plant(3, bits=4, effective_bits=32.0)], {3}))
    assert data["dots"][0]["hover"].split("<br>") == [
        "<b>Trial 3: on the front</b>",
        "accuracy 91.42 % (float 92.00 %)",
        f"latency 0.500 ms [0.400{DASH}0.700]",
        f"speed-up 2.31{TIMES} [2.25{DASH}2.38]",
        "size 431 KiB, 1.23 M MACs, 98.8 k parameters",
        "CPU 0.750 ms, cold start 12.0 ms",
        "memory 61.0 MiB",
        "",
        "prune ratio 0.5, 38 % of channels removed",
        f"bits 4 {ARROW} 32, 3 of 4 operators in integers",
        "2 threads",
        "adamw, learning rate 0.003, cosine",
        "distillation weight 0.25, temperature 4",
    ]


def test_page_counts_what_it_does_not_draw() -> None:
    records = [plant(1), plant(2, outcome="stopped"), plant(3, outcome="infeasible")]
    text = _parse(front_page("study", records, {1})).text
    assert "3 trials: 1 complete, 1 stopped, 1 infeasible, 0 failed" in text


def test_page_names_the_device() -> None:
    page = front_page("study", [plant(1)], {1}, device="board (<8 cores>)")
    assert "0 failed; measured on board (<8 cores>)" in _parse(page).text


def test_table_lists_the_front_alone() -> None:
    records = [plant(1), plant(2), plant(3)]
    rows = [a for tag, a in _parse(front_page("s", records, {1, 3})).opened if "data-trial" in a]
    assert [row["data-trial"] for row in rows] == ["1", "3"]


def test_hostile_names_stay_text() -> None:
    records = [plant(1), plant(2, outcome="infeasible", reason=HOSTILE)]
    page = front_page(HOSTILE, records, {1})
    elements = _parse(page)
    assert "<script>alert" not in page
    assert elements.text.count(HOSTILE) == 2  # the title and the heading
    assert sum(tag == "script" for tag, _ in elements.opened) == 3
    assert "&lt;script&gt;" in _data(page)["dots"][1]["hover"]


def test_no_trial_says_so() -> None:
    for records in ([], [plant(1, outcome="stopped", val_accuracy=None)]):
        page = front_page("study", records, set())
        assert EMPTY in page
        assert NO_FRONT in page
        assert "hidden>" in page.partition('id="explore"')[2][:80]


def test_finalists_show_ties_intervals_and_both_splits() -> None:
    records = [plant(n, latency_ms=0.5 + 0.1 * n, val_accuracy=0.92) for n in range(4)]
    finalists = [
        plant_finalist(records[1], tie=1),
        plant_finalist(records[2], tie=1, test_accuracy=0.895),
        plant_finalist(
            records[3], stands=False, reason="2 is faster and not measurably less accurate"
        ),
        plant_finalist(
            records[0], stands=False, reason="1 is faster and not measurably less accurate"
        ),
    ]
    page = front_page("study", records, {3}, finalists=finalists)
    text = _parse(page).text
    assert "1 a" in text
    assert "2 a" in text
    assert "90.00 % [89.0" in text
    assert "92.00 %" in text
    assert "Left the front: trial 3 (2 is faster and not measurably less accurate)" in text
    dots = {dot["trial"]: dot for dot in _data(page)["dots"]}
    assert {name: dot["kind"] for name, dot in dots.items()} == {
        "1": "front", "2": "front", "3": "dominated", "original": "dominated",
    }  # fmt: skip
    assert (dots["1"]["accuracy_low"], dots["1"]["accuracy_high"]) == (0.89, 0.91)
    assert "accuracy 89.50 % on test, 92.00 % on validation" in dots["2"]["hover"]
