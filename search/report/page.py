"""Makes the front's interactive page, one file that needs no network; knows no tracking server."""

from __future__ import annotations

import html
import json
import re
import textwrap
from collections.abc import Collection, Iterable, Mapping, Sequence
from importlib.resources import files
from typing import Any

from search.front import original
from search.records import Finalist, TrialRecord
from search.report.formats import (
    format_bits,
    format_bytes,
    format_count,
    format_ms,
    format_ms_interval,
    format_outcomes,
    format_share,
    format_speedup,
)
from search.report.points import EMPTY, Dot, View, frame, place, place_finalists, staircase
from search.report.table import (
    FINALIST_HEADINGS,
    HEADINGS,
    NO_FRONT,
    caption,
    finalist_caption,
    finalist_rows,
    front_rows,
)

HOVER_WIDTH = 48  # letters; what a phone can show


def front_page(
    study: str,
    records: Iterable[TrialRecord],
    front: Collection[int],
    remark: str = "",
    finalists: Sequence[Finalist] = (),
    device: str = "",
) -> str:
    """Returns a self-contained HTML page with the plot and the table of the front.

    Args:
        study: Name of the study, the title.
        records: Finished trials.
        front: Numbers of the trials on the front.
        remark: Shown above the plot.
        finalists: Where there are some, they alone are drawn and listed.
        device: What the latencies were measured on.
    """
    # Imported here: it reads 5 MB of JavaScript that only the page needs.
    from plotly.offline import get_plotlyjs

    records = list(records)
    dots = place_finalists(records, finalists) if finalists else place(records, front)
    split = "Test" if finalists else "Validation"
    template = files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    return _fill(
        template,
        {
            "study": html.escape(study),
            "outcomes": html.escape(format_outcomes(records)),
            "device": html.escape(f"; measured on {device}" if device else ""),
            "remark": f"<p><strong>{html.escape(remark)}</strong></p>" if remark else "",
            "chart": _chart(dots, split),
            "table": _finalists(finalists)
            if finalists
            else _front([r for r in records if r.number in front], original(records)),
            "data": _script_json({**_data(dots), "split": split}),
            "plotly": get_plotlyjs() if dots else "",
        },
    )


def _fill(template: str, values: Mapping[str, str]) -> str:
    # In one pass, so that a placeholder inside a value stays as it is.
    return re.sub(r"\{\{(\w+)\}\}", lambda match: values[match[1]], template)


def _script_json(value: object) -> str:
    # "</script>" or "<!--" inside a string would end or confuse the element around it.
    return json.dumps(value, allow_nan=False).replace("<", "\\u003c")


def _chart(dots: Sequence[Dot], split: str) -> str:
    if not dots:
        return f"<p>{EMPTY}</p>"
    view = frame(dots)
    hidden = sum(dot.accuracy < view.lowest for dot in dots)
    hint = "Point at a trial, or tap it, for its recipe."
    if hidden:
        hint += " 1 trial lies" if hidden == 1 else f" {hidden} trials lie"
        hint += " below this view."
    hint += ' <span class="mouse">Drag to zoom; double-click to see all, or this view again.</span>'
    label = f"Scatter plot of {split.lower()} accuracy against latency; the table holds the front"
    return f'<div id="chart" role="img" aria-label="{label}"></div>\n<p class="quiet">{hint}</p>'


def _front(front: Sequence[TrialRecord], original: TrialRecord | None) -> str:
    rows = front_rows(front, original)
    return _table(HEADINGS, rows, caption(rows)) if rows else f"<p>{NO_FRONT}</p>"


def _finalists(finalists: Sequence[Finalist]) -> str:
    return _table(FINALIST_HEADINGS, finalist_rows(finalists), finalist_caption(finalists))


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]], note: str) -> str:
    head = "".join(f'<th scope="col">{html.escape(heading)}</th>' for heading in headings)
    body = []
    for row in rows:
        trial, *cells = (html.escape(cell) for cell in row)
        columns = "".join(f"<td>{cell}</td>" for cell in cells)
        dot = trial.strip("()").partition(" ")[0].replace("orig.", "original")
        body.append(f'<tr data-trial="{dot}"><th scope="row">{trial}</th>{columns}</tr>')
    lines = "\n".join(body)
    return (
        f'<div class="scroll"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{lines}\n</tbody>\n'
        f'</table></div>\n<p class="quiet">{html.escape(note)}</p>'
    )


def _data(dots: Sequence[Dot]) -> Mapping[str, Any]:
    """Returns what the page's script draws from."""
    view = frame(dots) if dots else View(0.0, 1.0, log_latency=False)
    return {
        "dots": [
            {
                "trial": dot.label,
                "kind": dot.kind,
                "original": dot.is_original,
                "accuracy": dot.accuracy,
                "latency_ms": dot.latency_ms,
                "low_ms": dot.low_ms,
                "high_ms": dot.high_ms,
                "accuracy_low": dot.accuracy_low,
                "accuracy_high": dot.accuracy_high,
                "hover": _hover(dot),
            }
            for dot in dots
        ],
        "line": [[dot.latency_ms, dot.accuracy] for dot in staircase(dots)],
        "view": {
            "lowest": view.lowest,
            "highest": view.highest,
            "log_latency": view.log_latency,
        },
    }


def _hover(dot: Dot) -> str:
    """Writes the whole recipe and all figures, a few to a line, in plotly's small HTML."""
    standing = {"front": "on the front", "dominated": "dominated"}.get(dot.kind, dot.record.reason)
    title, *more = textwrap.wrap(f"Trial {dot.number}: {standing}", HOVER_WIDTH)
    lines = [*more, *_figure_lines(dot), "", *_recipe_lines(dot.record)]
    return "<br>".join([f"<b>{html.escape(title)}</b>", *(html.escape(line) for line in lines)])


def _figure_lines(dot: Dot) -> list[str]:
    figures = dot.record.figures
    accuracy = f"accuracy {format_share(dot.accuracy)}"
    if dot.validation is not None:
        accuracy += f" on test, {format_share(dot.validation)} on validation"
    return [
        f"{accuracy} (float {format_share(figures.float_accuracy)})",
        f"latency {format_ms_interval(dot.latency_ms, dot.low_ms, dot.high_ms)}",
        f"speed-up {format_speedup(figures)}",
        f"size {format_bytes(figures.size_bytes)}, {format_count(figures.macs)} MACs,"
        f" {format_count(figures.parameters)} parameters",
        f"CPU {format_ms(figures.cpu_ms)}, cold start {format_ms(figures.cold_start_ms)}",
        f"memory {format_bytes(figures.peak_rss_bytes)}",
    ]


def _recipe_lines(record: TrialRecord) -> list[str]:
    point, figures = record.point, record.figures
    bits = f"bits {format_bits(point.bits, figures.effective_bits)}"
    if figures.compute_operators is not None:
        integers = figures.integer_operators or 0
        bits += f", {integers} of {figures.compute_operators} operators in integers"
    return [
        f"prune ratio {point.prune_ratio:.3g},"
        f" {format_share(figures.channels_removed, decimals=0)} of channels removed",
        bits,
        f"threads {point.threads}",
        f"{point.optimizer}, learning rate {point.learning_rate:.3g}, {point.schedule}",
        f"distillation weight {point.distill_weight:.3g},"
        f" temperature {point.distill_temperature:.3g}",
    ]
