"""Output reaches terminals that know few letters."""

from __future__ import annotations

import io
import sys

import pytest
from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from search.process import terminal
from search.records.formats import ARROW, DASH, TIMES

TEXT = f"2.0{TIMES} [1.9{DASH}2.1] 16 {ARROW} 32 \N{PLUS-MINUS SIGN}5 \N{SNOWMAN}"


@pytest.mark.parametrize(
    ("encoding", "written"),
    [
        ("ascii", "2.0x [1.9-2.1] 16 > 32 ~5 ?"),
        ("latin-1", "2.0\xd7 [1.9-2.1] 16 > 32 \xb15 ?"),
        ("utf-8", TEXT),
    ],
)
def test_what_cannot_be_written_is_replaced(
    encoding: str, written: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = io.BytesIO()
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(raw, encoding, write_through=True))
    terminal.write_anything()
    print(TEXT, end="")
    assert raw.getvalue().decode(encoding) == written
    sys.stderr.write(TEXT)
    assert raw.getvalue().decode(encoding) == 2 * written


def test_the_live_display_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, "ascii", write_through=True))
    terminal.write_anything()
    table = Table(TEXT)
    table.add_row(ProgressBar(total=2, completed=1, width=24))
    with Live(table, console=Console(force_terminal=True), auto_refresh=False) as live:
        live.refresh()
    assert b"2.0x" in raw.getvalue()


def test_a_stream_that_is_no_terminal_s_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stream)
    terminal.write_anything()
    print(TEXT, end="")
    assert stream.getvalue() == TEXT
