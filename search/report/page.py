"""Makes the front's interactive page, one file that needs no network."""

from __future__ import annotations

import html
import json
import re
import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from importlib.resources import files

from search.front.front import original
from search.process import home
from search.records.closing import Finalist
from search.records.formats import format_outcomes
from search.records.trial import TrialRecord
from search.report.drawing import front_data, parallel_data, progress_data
from search.report.points import (
    EMPTY,
    place,
    place_finalists,
    place_searched,
    place_stopped,
)
from search.report.sections import (
    explanation_section,
    finalist_section,
    front_section,
    importance_section,
    layers_section,
    marks,
    on_front,
)

SCRIPTS = ("plot.js", "choice.js", "sections.js")
NO_IMPORTANCES: Mapping[str, Mapping[str, float]] = {}


def front_page(
    study: str,
    records: Iterable[TrialRecord],
    front: Collection[int],
    remark: str = "",
    finalists: Sequence[Finalist] = (),
    device: str = "",
    objectives: Sequence[str] = ("accuracy", "latency"),
    importances: Mapping[str, Mapping[str, float]] = NO_IMPORTANCES,
    explanations: str = "",
    storage: str = "",
) -> str:
    """Returns a self-contained HTML page: the front, a choice from it, and how it was found.

    Args:
        study: Name of the study, the title.
        records: Finished trials.
        front: Numbers of the trials on the search's front.
        remark: Shown above the plot.
        finalists: Where there are some, they are the front; other trials are shown on request.
        device: What the latencies were measured on.
        objectives: Names of what the front trades.
        importances: Objective to dimension to its share, 0..1.
        explanations: HTML, its text escaped already, that says why models are not faster.
        storage: Overrides by which commands find where the study is kept, after a space.
    """
    # Imported here: it reads 5 MB of JavaScript that only the page needs.
    from plotly.offline import get_plotlyjs

    records = list(records)
    dots = place_finalists(records, finalists) if finalists else place(records, front)
    searched = place_searched(records, finalists) if finalists else []
    cuts = place_stopped(records)
    split = "Test" if finalists else "Validation"
    complete = sum(record.outcome == "complete" for record in records)
    command = f"{home.command('pick')} {shlex.quote(f'study={study}')}{storage}"
    data = {
        **front_data(command, dots, searched, cuts, split),
        "parallel": parallel_data(records, list(front)),
        "progress": progress_data(records, objectives),
    }
    values = {
        "study": html.escape(study),
        "outcomes": html.escape(format_outcomes(records)),
        "device": html.escape(f"; measured on {device}" if device else ""),
        "remark": f'<p class="remark">{html.escape(remark)}</p>' if remark else "",
        "empty": "" if dots else f"<p>{EMPTY}</p>",
        "hidden": "" if dots else "hidden",
        "marks": marks(dots, searched, cuts),
        "split": split.lower(),
        "table": finalist_section(finalists)
        if finalists
        else front_section(on_front(records, front, ()), original(records)),
        "layers": layers_section(on_front(records, front, finalists)),
        "importances": importance_section(importances, complete),
        "explanations": explanation_section(explanations),
        "data": _script_json(data),
        "plotly": get_plotlyjs() if dots else "",
    }
    script = "\n".join(map(_read, SCRIPTS))
    return _fill(_read("page.html"), {**values, "css": _read("page.css"), "js": script})


def _read(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _fill(template: str, values: Mapping[str, str]) -> str:
    # In one pass, so that a placeholder inside a value stays as it is.
    return re.sub(r"\{\{(\w+)\}\}", lambda match: values[match[1]], template)


def _script_json(value: object) -> str:
    # "</script>" or "<!--" inside a string would end or confuse the element around it.
    return json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
