"""Describes a trial in Markdown: how it ended, its recipe, how to run its model; knows no page."""

from __future__ import annotations

from search.records import Finalist, TrialRecord
from search.report.formats import (
    format_bytes,
    format_counted,
    format_ms,
    format_share,
    format_speedup,
)
from search.report.table import escape_markdown


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
    if record.outcome == "complete":
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
    if figures.latency_ms is None:
        return ""
    return (
        f"{format_share(figures.val_accuracy)} on validation at "
        f"{format_ms(figures.latency_ms)}, {format_speedup(figures)} as fast as the original, "
        f"{format_bytes(figures.size_bytes)}"
    )


def describe_recipe(record: TrialRecord) -> str:
    """Says in one line of Markdown how a trial's network was compressed and trained."""
    point, removed = record.point, record.figures.channels_removed
    threads = format_counted(point.threads, "thread")
    recipe = f"{point.bits} bits, {threads}, prune ratio {point.prune_ratio:.3g}"
    if removed is not None:
        recipe += f" ({format_share(removed, 0)} of the channels removed)"
    if removed == 0:
        return f"{recipe}, hence not fine-tuned"
    return (
        f"{recipe}, fine-tuned by {point.optimizer} with learning rate {point.learning_rate:.3g} "
        f"({escape_markdown(point.schedule)}), distillation weight {point.distill_weight:.3g} "
        f"and temperature {point.distill_temperature:.3g}"
    )


def _model(record: TrialRecord) -> str:
    if record.deployable is None:
        return ""
    entries = [f"{key}={value}" for key, value in record.deployable.session_entries]
    options = ", ".join([f"intra_op_num_threads={record.point.threads}", *entries])
    return (
        "Model: `model.onnx` under *Artifacts* takes pixels `[N, C, H, W]` in 0..1 and gives "
        f"logits; run it in onnxruntime with `{options}`"
    )
