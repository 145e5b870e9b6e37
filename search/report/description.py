"""Describes a trial in Markdown: how it ended, its recipe, how to run its model."""

from __future__ import annotations

from search.records.closing import Finalist
from search.records.formats import format_bytes, format_ms, format_share, format_speedup
from search.records.point import Choices
from search.records.trial import CompleteTrial, Figures, TrialRecord
from search.report.table import escape_markdown
from search.space.dimension import known_dimensions


def describe_trial(record: TrialRecord, finalist: Finalist | None = None) -> str:
    """Returns a few paragraphs of Markdown about a finished trial.

    Args:
        record: The trial.
        finalist: What the closing round made of it.
    """
    paragraphs = [
        _ending(record),
        _figures(record),
        f"Recipe: {describe_recipe(record)}",
        _model(record),
    ]
    if finalist is not None:
        paragraphs = [_standing(finalist), f"In the search: {paragraphs[1]}", *paragraphs[2:]]
    return "\n\n".join(paragraph for paragraph in paragraphs if paragraph)


def _ending(record: TrialRecord) -> str:
    if isinstance(record, CompleteTrial):
        return escape_markdown(record.reason)
    return f"**{record.outcome.capitalize()}**: {escape_markdown(record.reason)}"


def _standing(finalist: Finalist) -> str:
    figures = finalist.figures
    verdict = "on the front" if finalist.stands else escape_markdown(finalist.reason)
    return (
        f"**Finalist**, {verdict}: {format_share(finalist.test_accuracy)} on test "
        f"({format_share(figures.val_accuracy)} on validation) at {format_ms(figures.latency_ms)}, "
        f"{format_speedup(figures)} as fast as the original, {format_bytes(figures.size_bytes)}; "
        "its model is `final/model.onnx`"
    )


def _figures(record: TrialRecord) -> str:
    figures = record.figures
    if figures is None:
        return ""
    scored = figures.val_accuracy if isinstance(figures, Figures) else None
    return (
        f"{format_share(scored)} on validation at "
        f"{format_ms(figures.latency_ms)}, {format_speedup(figures)} as fast as the original, "
        f"{format_bytes(figures.size_bytes)}"
    )


def describe_recipe(record: TrialRecord) -> str:
    """Says in one line of Markdown how a trial's network was compressed and trained."""
    point, figures = record.point, record.figures
    recipe = ", ".join(_describe(point.deployment) + _describe(point.compression))
    if figures is not None:
        recipe += f" ({format_share(figures.channels_removed, 0)} of the channels removed)"
    if figures is not None and not figures.is_changed:
        return f"{recipe}, hence not fine-tuned"
    return f"{recipe}, fine-tuned with {', '.join(_describe(point.training))}"


def _describe(choices: Choices) -> list[str]:
    known = known_dimensions()
    return [
        escape_markdown(known[name].describe(value) if name in known else f"{name} {value}")
        for name, value in choices
    ]


def _model(record: TrialRecord) -> str:
    if record.deployable is None:
        return ""
    entries = [f"{key}={value}" for key, value in record.deployable.options]
    options = ", ".join([f"intra_op_num_threads={record.point['threads']}", *entries])
    return (
        "Model: `model.onnx` under *Artifacts* takes pixels `[N, C, H, W]` in 0..1 and gives "
        f"logits; run it in onnxruntime with `{options}`"
    )
