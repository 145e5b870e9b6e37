"""Says why a model is as fast as it is, from a profile of it beside the original's."""

from __future__ import annotations

import html
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from rich.box import SIMPLE_HEAD
from rich.console import Group, JustifyMethod
from rich.table import Table
from rich.text import Text

from search.records.formats import (
    ARROW,
    DASH,
    format_counted,
    format_ms,
    format_share,
    format_us,
)
from search.records.profile import Comparison
from search.records.trial import Figures
from search.report.breakdown import Budget, draw_up
from search.report.findings import Case, find

TOP = 12  # layers that are listed one by one
BEFORE, CALL, WHOLE = "(pixels)", "(call)", "all"


class LayerRow(NamedTuple):
    """What a layer takes in both models, in display strings."""

    layer: str
    operators: str
    original_us: str
    candidate_us: str
    share: str
    channels: str
    note: str


HEADINGS = LayerRow("Layer", "Operators", "Orig. µs", "This µs", "Share", "Channels", "Note")
LEFT = (HEADINGS.layer, HEADINGS.operators, HEADINGS.note)
WIDTHS = (19, 19, 6, 6, 5, 8, 10)  # at most: 80 columns, with the names of operators whole


@dataclass(frozen=True)
class Explanation:
    """Why a trial's model is as fast as it is.

    Attributes:
        number: Of the trial.
        rows: Layers, what belongs to none, and the whole.
        remarks: Threads and cold start, and how to read the rows.
        findings: Plain sentences, advice last.
    """

    number: int
    rows: tuple[LayerRow, ...]
    remarks: tuple[str, ...]
    findings: tuple[str, ...]

    @property
    def title(self) -> str:
        """What is explained."""
        return f"Where the time of {_called(self.number)} goes"


def explain(
    number: int,
    figures: Figures,
    comparison: Comparison,
    original_macs: int,
    round_to: int,
    top: int = TOP,
) -> Explanation:
    """Explains a trial's or a finalist's latency.

    Args:
        number: Of the trial.
        figures: As the search, or the closing round, found them.
        comparison: Of its model with the uncompressed network.
        original_macs: Multiply-accumulates of the uncompressed network.
        round_to: Multiples of channels that suit the device.
        top: Layers that are listed one by one.
    """
    case = Case(
        name=_called(number),
        figures=figures,
        original_macs=original_macs,
        round_to=round_to,
        comparison=comparison,
        candidate=draw_up(comparison.candidate, comparison),
        original=draw_up(comparison.original, comparison),
    )
    return Explanation(
        number=number,
        rows=tuple(_rows(case, top)),
        remarks=(_threads(comparison), _cold_start(comparison), _how_to_read(comparison)),
        findings=tuple(find(case)),
    )


def explanation_text(explanation: Explanation) -> Group:
    """Returns an explanation for the terminal."""
    # Text, because a plain string is read as markup and [..] may be taken for a tag.
    table = Table(
        title=Text(explanation.title),
        title_justify="left",
        box=SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=0,
    )
    for heading, width in zip(HEADINGS, WIDTHS, strict=True):
        justify: JustifyMethod = "left" if heading in LEFT else "right"
        table.add_column(heading, justify=justify, overflow="fold", max_width=width)
    for row in explanation.rows:
        table.add_row(*(Text(cell) for cell in row))
    remarks = "\n".join(explanation.remarks)
    return Group(table, Text(f"\n{remarks}\n"), Text(" ".join(explanation.findings)))


def explanation_html(explanation: Explanation) -> str:
    """Returns an explanation as a piece of a page, below a heading of its own."""
    head = "".join(f'<th scope="col">{html.escape(heading)}</th>' for heading in HEADINGS)
    lines = []
    for row in explanation.rows:
        layer, *cells = (html.escape(cell) for cell in row)
        columns = "".join(f"<td>{cell}</td>" for cell in cells)
        lines.append(f'<tr><th scope="row">{layer}</th>{columns}</tr>')
    body = "\n".join(lines)
    remarks = "<br>\n".join(html.escape(remark) for remark in explanation.remarks)
    return (
        f"<h3>{html.escape(explanation.title)}</h3>\n"
        f"<p>{html.escape(' '.join(explanation.findings))}</p>\n"
        f'<div class="scroll"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n'
        f'</table></div>\n<p class="quiet">{remarks}</p>'
    )


def _called(number: int) -> str:
    return f"trial {number}"


# ---- rows


def _rows(case: Case, top: int) -> Iterable[LayerRow]:
    """Yields the layers that take most in the order of the network, then the rest."""
    candidate, original = case.candidate, case.original
    # A layer of one model alone comes last.
    names = list(dict.fromkeys([*original.parts, *candidate.parts]))
    longest = sorted(names, key=lambda n: -max(original.layer_us(n), candidate.layer_us(n)))
    shown = set(longest[:top])
    yield from (_row(case, name) for name in names if name in shown)
    others = [name for name in names if name not in shown]
    if others:
        yield _plain_row(
            f"({format_counted(len(others), 'other')})",
            sum(map(original.layer_us, others)),
            sum(map(candidate.layer_us, others)),
            candidate,
        )
    yield _plain_row(CALL, original.call_us, candidate.call_us, candidate)
    yield _plain_row(WHOLE, original.whole_us, candidate.whole_us, candidate)


def _row(case: Case, name: str) -> LayerRow:
    candidate, original = case.candidate, case.original
    part = candidate.parts.get(name, ())
    operators = dict.fromkeys(one.kernel.operator for one in part)
    row = _plain_row(
        name or BEFORE, original.layer_us(name), candidate.layer_us(name), candidate
    )._replace(
        operators=", ".join(operators) or DASH, channels=_channels(name, original, candidate)
    )
    if name not in original.parts:
        return row._replace(original_us=DASH)
    if not part:
        return row._replace(candidate_us=DASH, share=DASH)
    return row._replace(note=", ".join(case.notes(name)))


def _plain_row(name: str, original_us: float, candidate_us: float, candidate: Budget) -> LayerRow:
    return LayerRow(
        layer=name,
        operators="",
        original_us=format_us(original_us),
        candidate_us=format_us(candidate_us),
        share=format_share(candidate_us / candidate.whole_us, 0),
        channels="",
        note="",
    )


def _channels(name: str, original: Budget, candidate: Budget) -> str:
    found = [b.layers[name].outputs for b in (original, candidate) if name in b.layers]
    return ARROW.join(str(outputs) for outputs in dict.fromkeys(found))


# ---- remarks


def _threads(comparison: Comparison) -> str:
    pairs = []
    for threads, latency_ms in sorted(comparison.candidate.latency_ms.items()):
        original = format_ms(comparison.original.latency_ms.get(threads))
        pairs.append(f"{threads}: {format_ms(latency_ms)} ({original})")
    return f"Threads (original): {', '.join(pairs)}"


def _cold_start(comparison: Comparison) -> str:
    candidate, original = comparison.candidate, comparison.original
    first, other = format_ms(candidate.cold_start_ms), format_ms(original.cold_start_ms)
    return f"Cold start, to the first answer (original): {first} ({other})"


def _how_to_read(comparison: Comparison) -> str:
    counts = comparison.candidate.threads, comparison.original.threads
    with_threads = " and ".join(format_counted(n, "thread") for n in dict.fromkeys(counts[::-1]))
    return (
        f"Two launches, with {with_threads}. Times of layers are shares of onnxruntime's "
        f"profile, scaled to the latency without it; the {comparison.looking_us:.0f} µs that "
        "it costs every operator are taken off."
    )
