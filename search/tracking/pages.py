"""What MLflow's pages show of a study, as plain values."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from search.front.front import GrowingFront
from search.records.closing import Finalist
from search.records.formats import format_counted
from search.records.trial import TrialRecord
from search.report import describe_trial, finalist_markdown, markdown_table
from search.report.points import label

# MLflow's pages open for work on language models: empty panels where the runs should be.
FOR_MODELS = "workflowType=machine_learning"
# A saved view of the run table, in the form in which MLflow's own pages keep one.
VIEW = "mlflow.sharedViewState.front"
SECTION, RUNS_DRAWN = "front", 100
SHOWN_PARAMS = ("prune_ratio", "bits", "threads")
VIEW_METRICS = ("val_accuracy", "latency_ms", "speedup", "size_bytes")
FINAL_VIEW_METRICS = ("test_accuracy", "final_latency_ms", "final_speedup", "final_size_bytes")
# MLflow cuts a description after 8 000 letters, and a point takes up to 230 of them.
POINTS_DESCRIBED = 30
FIGURES_AS_METRICS = (
    "val_accuracy", "float_accuracy", "latency_ms", "latency_ratio", "latency_ratio_low",
    "latency_ratio_high", "speedup", "speedup_low", "speedup_high", "p50_ms", "p90_ms", "p95_ms",
    "p99_ms", "images_per_s", "size_bytes", "macs", "parameters", "peak_rss_bytes",
    "model_rss_bytes", "energy_mj", "cpu_ms", "cold_start_ms", "effective_bits",
    "integer_operators", "channels_removed", "launches", "disturbed_rounds", "warm",
)  # fmt: skip
FINAL_FIGURES = (
    "val_accuracy", "latency_ms", "speedup", "speedup_low", "speedup_high", "p50_ms", "p90_ms",
    "p95_ms", "p99_ms", "size_bytes", "cpu_ms", "peak_rss_bytes",
)  # fmt: skip


def run_page(experiment: str, run_id: str, artifact: str = "") -> str:
    """Returns the address of a run, or of one of its artifacts, within MLflow's pages."""
    path = f"/artifacts/{artifact}" if artifact else ""
    return f"#/experiments/{experiment}/runs/{run_id}{path}?{FOR_MODELS}"


def saved_view(metrics: Sequence[str]) -> str:
    """Returns the view of the front's runs as MLflow's pages keep one, in JSON.

    Args:
        metrics: Columns, which begin with accuracy and latency.
    """
    columns = [f"metrics.`{name}`" for name in metrics]
    state = {
        "searchFilter": 'tags.pareto = "true"',
        "orderByKey": columns[1],
        "orderByAsc": True,
        "selectedColumns": [
            *columns,
            *(f"params.`{name}`" for name in SHOWN_PARAMS),
        ],
        "compareRunCharts": [
            {
                **_card("SCATTER"),
                "runsCountToCompare": RUNS_DRAWN,
                "xaxis": {"key": metrics[1], "type": "METRIC"},
                "yaxis": {"key": metrics[0], "type": "METRIC"},
            },
            {
                **_card("PARALLEL"),
                "runsCountToCompare": RUNS_DRAWN,
                "showAllRuns": False,
                "selectedParams": list(SHOWN_PARAMS),
                "selectedMetrics": [metrics[1], metrics[0]],
            },
        ],
        "compareRunSections": [
            {
                "uuid": SECTION,
                "name": "Front",
                "display": True,
                "isReordered": False,
                "columns": 1,
                "cardHeight": 420,
            }
        ],
    }
    view = {"name": "Front", "createdAt": 0, "updatedAt": 0, "state": json.dumps(state)}
    return json.dumps(view)


def _card(kind: str) -> dict[str, Any]:
    """Returns what every chart of a saved view has."""
    return {
        "uuid": f"front-{kind.lower()}",
        "type": kind,
        "metricSectionId": SECTION,
        "deleted": False,
        "isGenerated": False,
    }


def trial_note(record: TrialRecord, finalist: Finalist | None, study_page: str) -> str:
    """Returns a trial's description, with what the closing round confirmed of it."""
    return f"{describe_trial(record, finalist)}\n\n[The whole front]({study_page})"


def front_note(
    experiment: str,
    parent: str,
    children: Mapping[int, str],
    front: GrowingFront,
    finalists: Sequence[Finalist],
    remarks: str,
) -> str:
    """Returns the study's description, of which MLflow shows two lines until asked for more.

    Args:
        experiment: MLflow's number of the experiment.
        parent: Run of the study.
        children: Run of every trial, by trial number.
        front: As the search found it.
        finalists: Front as the closing round found it; empty if none was held.
        remarks: What must be known about it all.
    """
    if not front.members:
        lines = [f"**{remarks}**"] if remarks else []
        return "\n\n".join([*lines, markdown_table(front.members)])
    shown = front.members[:POINTS_DESCRIBED]
    points: Sequence[TrialRecord | Finalist] = front.members
    file = "model.onnx"
    if finalists:
        by_latency = sorted(finalists, key=lambda finalist: finalist.figures.latency_ms)
        points = [finalist for finalist in by_latency if finalist.stands]
        file = "final/model.onnx"
    links = ", ".join(
        f"[{label(point)}]({run_page(experiment, children[point.number])})"
        for point in points[:POINTS_DESCRIBED]
    )
    runs = f"#/experiments/{experiment}/runs?viewStateShareKey=front&{FOR_MODELS}"
    page = run_page(experiment, parent, "front.html")
    omitted = max(0, len(points) - POINTS_DESCRIBED)
    return "\n".join(
        [
            f"**Front of {len(points)} after {format_counted(front.trials, 'trial')}**: "
            f"[interactive page]({page}), [table]({runs}) and "
            f"[charts]({runs}&compareRunsMode=CHART) of its runs",
            *([f"**{remarks}**"] if remarks else []),
            f"Fastest first: trials {links}; each holds its `{file}` under *Artifacts*.",
            "",
            finalist_markdown(finalists) if finalists else markdown_table(shown, front.original),
            *([f"The slower {omitted} are on the interactive page."] if omitted else []),
            "",
            "In any table of runs the filter `tags.pareto = 'true'` leaves the front.",
            "",
            f"![The front](get-artifact?path=front-small.png&run_uuid={parent})",
        ]
    )


def trial_metrics(record: TrialRecord) -> dict[str, float]:
    """Returns the known figures of a trial and the seconds of its stages."""
    figures = {name: getattr(record.figures, name, None) for name in FIGURES_AS_METRICS}
    stages = {f"{stage}_s": seconds for stage, seconds in record.stage_s.items()}
    return known(
        {**figures, **stages, "wall_s": record.wall_s, "reused_steps": record.reused_steps}
    )


def confirmed_metrics(finalist: Finalist) -> dict[str, float]:
    """Returns what the closing round found out about a point."""
    figures = finalist.figures
    found = {
        "test_accuracy": finalist.test_accuracy,
        "test_accuracy_low": finalist.test_low,
        "test_accuracy_high": finalist.test_high,
        **{f"final_{name}": getattr(figures, name) for name in FINAL_FIGURES},
    }
    return known(found)


def known(figures: Mapping[str, float | None]) -> dict[str, float]:
    """Leaves out what is missing and what is no number, which MLflow would show as one."""
    there = {name: float(value) for name, value in figures.items() if value is not None}
    return {name: value for name, value in there.items() if math.isfinite(value)}


def trial_params(record: TrialRecord) -> dict[str, str]:
    """Returns the point of a trial, by dimension."""
    return {name: str(value) for name, value in record.point.values.items()}


def is_of(
    record: TrialRecord,
    outcome: str | None,
    metrics: Mapping[str, float],
    params: Mapping[str, str],
) -> bool:
    """Tells whether a run shows a record, whichever version of this program logged it.

    Args:
        record: A trial as the study holds it.
        outcome: Of the trial that the run shows.
        metrics: Of the run, by name; those that no trial has are no matter.
        params: Likewise.
    """
    own_metrics, own_params = trial_metrics(record), trial_params(record)
    return (
        outcome == record.outcome
        and all(own_metrics[name] == metrics[name] for name in own_metrics.keys() & metrics.keys())
        and all(own_params[name] == params[name] for name in own_params.keys() & params.keys())
    )
