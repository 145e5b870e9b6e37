"""Draws accuracy against latency as a PNG picture."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Collection, Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from search.records.closing import Finalist
from search.records.formats import format_outcomes
from search.records.trial import TrialRecord
from search.report.labels import Box, place_labels
from search.report.points import EMPTY, Dot, Window, frame, place, place_finalists, staircase

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH_PX, HEIGHT_PX = 1800, 1120
# Twice the 100 dots per inch that the sizes below are chosen for: sharp when shown 900 px wide.
DPI = 200
POINT_PX = DPI / 72
# From Okabe and Ito's palette, told apart with any colour vision; shapes differ as well.
BLUE, VERMILLION, GREY, INK = "#0072B2", "#D55E00", "#8a8f98", "#24292f"
LABEL: dict[str, Any] = {"fontsize": 9, "weight": "bold", "zorder": 7}
LABEL_GAP_PX, LABEL_PAD_PX = 7 * POINT_PX, 3 * POINT_PX
# On a longer front every second point is named, or every third.
MOST_LABELS = 40


def halved(png: bytes) -> bytes:
    """Returns a picture in half its size, for pages that never scale one."""
    from PIL import Image

    small = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").reduce(2).save(small, "PNG", optimize=True)
    return small.getvalue()


def front_png(
    study: str,
    records: Iterable[TrialRecord],
    front: Collection[int],
    finalists: Sequence[Finalist] = (),
) -> bytes:
    """Draws accuracy against latency with the front.

    Args:
        study: Name of the study, the title.
        records: Finished trials.
        front: Numbers of the trials on the front.
        finalists: Where there are some, they alone are drawn.

    Returns:
        A PNG picture of ``WIDTH_PX`` by ``HEIGHT_PX``.
    """
    # Imported here because matplotlib is slow to load; Figure and not pyplot because pyplot keeps
    # global state that threads would share.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    records = list(records)
    figure = Figure(figsize=(WIDTH_PX / DPI, HEIGHT_PX / DPI), dpi=DPI)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    dots = place_finalists(records, finalists) if finalists else place(records, front)
    if dots:
        _draw(axes, dots, "Test" if finalists else "Validation")
        figure.legend(loc="outside lower center", ncols=5, frameon=False, fontsize=9.5)
    else:
        axes.set_axis_off()
        axes.text(0.5, 0.5, EMPTY, transform=axes.transAxes, ha="center", color=INK, fontsize=12)
    axes.set_title(format_outcomes(records), loc="left", fontsize=9.5, color="#57606a", pad=9)
    _settle(figure, axes, study)
    _draw_labels(axes, [dot for dot in dots if dot.accuracy >= axes.get_ylim()[0]])
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    return picture.getvalue()


def _settle(figure: Figure, axes: Axes, study: str) -> None:
    """Writes the title and fixes the layout, because labels are placed in pixels."""
    # The widest letters fill 40 to a line; a name of 100 letters takes three.
    name = "\n".join(textwrap.wrap(study, 40, max_lines=3, break_on_hyphens=False))
    title = figure.suptitle(name or " ", ha="left", fontsize=13, weight="bold", color=INK)
    title.set_parse_math(False)  # a dollar sign in a name would start a formula
    figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.08)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    title.set_x(axes.get_position().x0)


def _draw(axes: Axes, dots: Sequence[Dot], split: str) -> None:
    view = frame(dots)
    _style_axes(axes, view, split)
    _draw_line(axes, staircase(dots))
    _draw_kinds(axes, [dot for dot in dots if dot.accuracy >= view.lowest])
    _draw_outliers(axes, [dot for dot in dots if dot.accuracy < view.lowest], view)
    axes.margins(x=0.07)
    axes.set_ylim(view.lowest, view.highest)


def _style_axes(axes: Axes, view: Window, split: str) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    if view.log_latency:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 3.0, 5.0, 7.0)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    scale = ", log scale" if view.log_latency else ""
    axes.set_xlabel(f"Latency (ms{scale}) with its interval", fontsize=10.5, color=INK)
    axes.set_ylabel(f"{split} accuracy", fontsize=10.5, color=INK)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.6g} %"))
    axes.tick_params(which="both", labelsize=9.5, labelcolor=INK, color=GREY, length=3)
    axes.grid(color="#e2e6ea", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)


def _draw_line(axes: Axes, steps: Sequence[Dot]) -> None:
    latencies, accuracies = [dot.latency_ms for dot in steps], [dot.accuracy for dot in steps]
    axes.step(latencies, accuracies, where="post", color=BLUE, lw=1.5, alpha=0.55, zorder=3)


def _draw_kinds(axes: Axes, dots: Sequence[Dot]) -> None:
    def draw(chosen: Sequence[Dot], label: str, **style: Any) -> None:
        if chosen:  # an empty group would still take its place in the legend
            latencies, accuracies = [d.latency_ms for d in chosen], [d.accuracy for d in chosen]
            axes.scatter(latencies, accuracies, label=label, **style)

    front = [dot for dot in dots if dot.kind == "front"]
    _draw_intervals(axes, [dot for dot in dots if dot.kind != "front"], GREY, 0.4)
    _draw_intervals(axes, front, BLUE, 0.85)
    draw(front, "front", s=46, color=BLUE, edgecolor="white", lw=0.8, zorder=5)
    original = [dot for dot in dots if dot.is_original]
    ring: dict[str, Any] = {"marker": "s", "facecolor": "none", "edgecolor": VERMILLION, "lw": 1.8}
    draw(original, "original", s=90, zorder=6, **ring)
    dominated = [dot for dot in dots if dot.kind == "dominated"]
    draw(dominated, "dominated", s=24, color=GREY, alpha=0.55, lw=0, zorder=4)
    infeasible = [dot for dot in dots if dot.kind == "infeasible"]
    draw(infeasible, "infeasible", s=26, marker="x", color=GREY, alpha=0.7, lw=1.2, zorder=4)


def _draw_intervals(axes: Axes, dots: Sequence[Dot], color: str, alpha: float) -> None:
    latencies, accuracies = [dot.latency_ms for dot in dots], [dot.accuracy for dot in dots]
    low, high = [dot.low_ms for dot in dots], [dot.high_ms for dot in dots]
    axes.hlines(accuracies, low, high, color=color, alpha=alpha, lw=1.3)
    low, high = [dot.accuracy_low for dot in dots], [dot.accuracy_high for dot in dots]
    axes.vlines(latencies, low, high, color=color, alpha=0.5 * alpha, lw=1.0)


def _draw_outliers(axes: Axes, dots: Sequence[Dot], view: Window) -> None:
    if dots:
        axes.scatter(
            [dot.latency_ms for dot in dots],
            [view.lowest] * len(dots),
            label=f"below the axis ({len(dots)})",
            s=34,
            marker="v",
            color=GREY,
            alpha=0.8,
            lw=0,
            clip_on=False,
            zorder=6,
        )


def _draw_labels(axes: Axes, dots: Sequence[Dot]) -> None:
    """Names the front and the original where nothing is covered; the layout must be settled."""
    from matplotlib.transforms import IdentityTransform

    front = sorted((dot for dot in dots if dot.kind == "front"), key=lambda dot: dot.latency_ms)
    named = front[:: math.ceil(len(front) / MOST_LABELS) or 1]
    # The longest label takes what place is left.
    named = [dot for dot in named if not dot.is_original] + [d for d in dots if d.is_original]
    texts = [
        axes.text(0, 0, dot.label, color=VERMILLION if dot.is_original else BLUE, **LABEL)
        for dot in named
    ]
    extents = [text.get_window_extent() for text in texts]
    anchors = [_pixel(axes, dot.latency_ms, dot.accuracy) for dot in named]
    places = place_labels(
        anchors,
        [(extent.width + LABEL_PAD_PX, extent.height) for extent in extents],
        _obstacles(axes, dots),
        Box(*axes.get_window_extent().extents),
        LABEL_GAP_PX,
    )
    for text, anchor, box in zip(texts, anchors, places, strict=True):
        text.set(
            transform=IdentityTransform(), x=box.left + LABEL_PAD_PX / 2, y=box.bottom, va="bottom"
        )
        _draw_leader(axes, anchor, box)


def _draw_leader(axes: Axes, anchor: tuple[float, float], box: Box) -> None:
    from matplotlib.transforms import IdentityTransform

    (x, y), end = anchor, box.nearest(anchor)
    if math.dist(anchor, end) > 1.5 * LABEL_GAP_PX:
        pixels = IdentityTransform()
        axes.plot((x, end[0]), (y, end[1]), color=GREY, lw=0.7, zorder=4, transform=pixels)


def _obstacles(axes: Axes, dots: Sequence[Dot]) -> list[Box]:
    """Returns the boxes of markers, intervals and the line, in pixels."""
    radius, half = 3.5 * POINT_PX, 0.5 * POINT_PX
    boxes = []
    for dot in dots:
        x, y = _pixel(axes, dot.latency_ms, dot.accuracy)
        low_x, high_x = (_pixel(axes, end, dot.accuracy)[0] for end in (dot.low_ms, dot.high_ms))
        boxes.append(Box(x - radius, y - radius, x + radius, y + radius))
        boxes.append(Box(low_x, y - half, high_x, y + half))
    for step, following in pairwise(staircase(dots)):
        x, y = _pixel(axes, step.latency_ms, step.accuracy)
        next_x, next_y = _pixel(axes, following.latency_ms, following.accuracy)
        boxes.append(Box(x, y - half, next_x, y + half))
        boxes.append(Box(next_x - half, y, next_x + half, next_y))
    return boxes


def _pixel(axes: Axes, latency_ms: float, accuracy: float) -> tuple[float, float]:
    x, y = axes.transData.transform((latency_ms, accuracy))
    return float(x), float(y)
