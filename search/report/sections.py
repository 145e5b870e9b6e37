"""The parts of the page that need no script, as HTML."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from search.front.front import by_latency
from search.records.closing import Finalist
from search.records.formats import DASH, format_counted, format_share
from search.records.trial import KeptLayer, ScoredTrial, TrialRecord
from search.report.drawing import name_of
from search.report.points import Cut, Dot, label
from search.report.table import (
    FINALIST_HEADINGS,
    HEADINGS,
    NO_FRONT,
    caption,
    finalist_caption,
    finalist_rows,
    front_rows,
)


@dataclass(frozen=True)
class Mark:
    """A kind of mark that can be shown or hidden."""

    kind: str
    name: str
    count: int
    shown: bool


def marks(dots: Sequence[Dot], searched: Sequence[Dot], cuts: Sequence[Cut]) -> str:
    """Returns the key of the plot; where a mark can be hidden, its entry is a checkbox.

    Args:
        dots: What is shown at first.
        searched: Shown on request beside finalists; empty without.
        cuts: Stopped trials, shown on request.
    """
    kinds = Counter(dot.kind for dot in dots)
    later = Counter(dot.kind for dot in searched)
    final = any(dot.validation is not None for dot in dots)
    hideable = [
        Mark("dominated", "left the front" if final else "dominated", kinds["dominated"], True),
        Mark("searched", "other trials, on validation", later["searched"], False),
        Mark(
            "infeasible",
            "infeasible, on validation" if final else "infeasible",
            kinds["infeasible"] + later["infeasible"],
            not final,
        ),
        Mark("stopped", "stopped early", len(cuts), False),
    ]
    static = [
        ("front", "front", bool(kinds["front"])),
        ("tie", "tie: cannot be told apart", any(dot.tie for dot in dots)),
        ("original", "original", any(dot.is_original for dot in dots)),
    ]
    entries = [_key(kind, name) for kind, name, there in static if there]
    entries += [_checkbox(mark) for mark in hideable if mark.count]
    return "\n".join(entries)


def _key(kind: str, name: str) -> str:
    return f'<li><span class="mark {kind}" aria-hidden="true"></span>{name}</li>'


def _checkbox(mark: Mark) -> str:
    checked = " checked" if mark.shown else ""
    return (
        f'<li><label><input type="checkbox" name="{mark.kind}"{checked}>'
        f'<span class="mark {mark.kind}" aria-hidden="true"></span>{mark.name} '
        f'<span class="quiet">{mark.count}</span></label></li>'
    )


def front_section(front: Sequence[ScoredTrial], original: TrialRecord | None) -> str:
    """Returns the table of the search's front with its caption."""
    rows = front_rows(front, original)
    return _table(HEADINGS, rows, caption(rows, front, original)) if rows else f"<p>{NO_FRONT}</p>"


def finalist_section(finalists: Sequence[Finalist]) -> str:
    """Returns the table of the finalists with its caption."""
    return _table(FINALIST_HEADINGS, finalist_rows(finalists), finalist_caption(finalists))


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]], note: str) -> str:
    head = "".join(f'<th scope="col">{html.escape(heading)}</th>' for heading in headings)
    body = []
    for row in rows:
        trial, *cells = (html.escape(cell) for cell in row)
        columns = "".join(f"<td>{cell}</td>" for cell in cells)
        dot = trial.strip("()").partition(" ")[0].replace("orig.", "original")
        body.append(
            f'<tr data-trial="{dot}" tabindex="0"><th scope="row">{trial}</th>{columns}</tr>'
        )
    lines = "\n".join(body)
    return (
        f'<div class="scroll"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{lines}\n</tbody>\n'
        f'</table></div>\n<p class="quiet">{html.escape(note)}</p>'
    )


def layers_section(records: Sequence[TrialRecord]) -> str:
    """Returns what pruning kept of each layer, a column for every record; empty if unknown.

    Args:
        records: The front, in the order of its table.
    """
    known = [record for record in records if record.layers]
    if not known:
        return ""
    kept = {record.number: {layer.name: layer for layer in record.layers} for record in known}
    # A network lacks the layers in whose place a technique put something else.
    fullest = sorted(known, key=lambda record: -len(record.layers))
    layers = {layer.name: layer.of for record in fullest for layer in record.layers}
    head = "".join(
        f'<th scope="col" data-trial="{label(record)}">{label(record)}</th>' for record in known
    )
    lines = []
    for name, channels in layers.items():
        cells = "".join(_bar_cell(label(one), kept[one.number].get(name)) for one in known)
        lines.append(f'<tr><th scope="row">{html.escape(name)}</th><td>{channels}</td>{cells}</tr>')
    body = "\n".join(lines)
    return (
        '<section id="layers">\n<h2>What pruning kept</h2>\n'
        '<p class="quiet">Output channels of each layer, from input to output. A full bar is the '
        "whole layer.</p>\n"
        '<div class="scroll"><table class="layers">\n'
        f'<thead><tr><th scope="col">Layer</th><th scope="col">Original</th>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody>\n</table></div>\n</section>"
    )


def _bar_cell(trial: str, layer: KeptLayer | None) -> str:
    if layer is None:
        return f'<td data-trial="{trial}">{DASH}</td>'
    style = f'style="--share:{100 * layer.channels / layer.of:.4g}%"'
    whole = ' class="whole"' if layer.channels == layer.of else ""
    cell = f'{layer.channels}<i aria-hidden="true"></i>'
    return f'<td data-trial="{trial}" {style}{whole}>{cell}</td>'


def importance_section(importances: Mapping[str, Mapping[str, float]], trials: int) -> str:
    """Returns each dimension's share in each objective as bars; empty if nothing is known.

    Args:
        importances: Objective to dimension to share, 0..1.
        trials: Complete ones that this comes from.
    """
    if not importances:
        return ""
    cards = "\n".join(_card(objective, shares) for objective, shares in importances.items())
    return (
        '<section id="importance">\n<h2>What decides</h2>\n'
        '<p class="quiet">How much each dimension decides whether a trial is among the best '
        f"quarter, from {format_counted(trials, 'complete trial')} (PED-ANOVA). The search chose "
        "these trials, so take it as a hint.</p>\n"
        f'<div class="cards">\n{cards}\n</div>\n</section>'
    )


def _card(objective: str, shares: Mapping[str, float]) -> str:
    rows = "\n".join(
        f'<tr><th scope="row">{_name(name)}</th>'
        f'<td style="--share:{100 * share:.4g}%">{format_share(share, 0)}'
        '<i aria-hidden="true"></i></td></tr>'
        for name, share in shares.items()
    )
    return f"<table><caption>{_name(objective)}</caption>\n<tbody>\n{rows}\n</tbody></table>"


def _name(name: str) -> str:
    return html.escape(name_of(name))


def explanation_section(fragment: str) -> str:
    """Returns a section with a fragment that is HTML already; empty for an empty one."""
    if not fragment:
        return ""
    return f'<section id="explanations">\n<h2>Why is it not faster?</h2>\n{fragment}\n</section>'


def on_front(
    records: Iterable[TrialRecord], front: Iterable[int], finalists: Sequence[Finalist]
) -> list[ScoredTrial]:
    """Returns the records of the front's table, in its order."""
    known = {record.number: record for record in records if isinstance(record, ScoredTrial)}
    if finalists:
        return [known[finalist.number] for finalist in finalists if finalist.stands]
    members = [known[number] for number in front]
    return sorted(members, key=by_latency)
