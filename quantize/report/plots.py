"""The plots of a quantization report: size against KLD, bits and error by layer, tokens by expert."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from ...reporting.plot import (
    ACCENT,
    BAD,
    HEIGHT,
    INK,
    MUTED,
    OK,
    SECOND,
    THIRD,
    Plot,
    grid,
    label,
    log_scale,
    plot,
)
from .contents import QuantizationReport, TensorResult, VariantResult, by_class
from .tables import CLASSES, EXPERT_TOKENS, TENSORS, VARIANTS, report_tables

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Colour and mark of a class: told apart without colour, too.
_CLASS_STYLES = {
    "embedding": (INK, "D"),
    "conv": (ACCENT, "o"),
    "attention": (SECOND, "s"),
    "feed_forward": (OK, "^"),
    "experts": (THIRD, "v"),
}
_OTHER_STYLE = (MUTED, "P")
_SHADES_NAMED = 6
_LEAST_KLD = 1e-12
_LEAST_ERROR = 1e-9
_CELL_ROW = 0.24


def report_plots(report: QuantizationReport) -> list[Plot]:
    """All plots that the report has figures for; InputError where matplotlib is not installed."""
    plots = []
    if _plotted(report):
        caption = "Lower is closer to the unquantized model, further left is smaller; the ring marks what was written."
        plots.append(plot("Size against KLD", caption, partial(_sizes, report=report), table=VARIANTS))
    if report.tensors:
        rows = _roles(report.tensors)
        caption = "Bits per weight, scales included; the first column is the embedding and the head."
        height = max(HEIGHT, 0.9 + _CELL_ROW * len(rows))
        plots.append(plot("Bits by tensor", caption, partial(_bits, report=report), height=height, table=TENSORS))
    if any(_is_positive(t.error) for t in report.tensors):
        caption = "Relative error of each tensor's output; hollow marks are what round to nearest would have left."
        plots.append(plot("Error by layer", caption, partial(_errors, report=report), table=TENSORS))
        caption = "Root mean square over the tensors of a class; the bars behind are round to nearest."
        plots.append(plot("Error by tensor class", caption, partial(_class_errors, report=report), table=CLASSES))
    if any(u.tokens for u in report.experts):
        caption = "Calibration tokens by expert, the stronger the colour the more; crosses: quantized by the search."
        title = next(t.title for t in report_tables(report) if t.title.startswith(EXPERT_TOKENS))
        height = max(HEIGHT, 0.9 + 0.14 * len(report.experts))
        plots.append(plot("Expert usage", caption, partial(_experts, report=report), height=height, table=title))
    return plots


def _sizes(axes: Axes, report: QuantizationReport) -> None:
    unit, factor = ("GB", 1e9) if max(v.bytes for v in _plotted(report)) >= 5e8 else ("MB", 1e6)
    # Labels of points that lie close together stand on different sides.
    for number, v in enumerate(sorted(_plotted(report), key=lambda v: v.kld or 0.0)):
        assert v.kld is not None
        x, y = v.bytes / factor, max(v.kld, _LEAST_KLD)
        error = v.kld_standard_error or 0.0
        if math.isfinite(error) and error > 0:
            # On a logarithmic axis an error as large as the value has no lower end.
            axes.errorbar(x, y, yerr=[[min(error, 0.9 * y)], [error]], color=MUTED, linewidth=1, zorder=2)
        axes.scatter(x, y, s=30, color=ACCENT, zorder=3)
        if v.chosen:
            axes.scatter(x, y, s=120, facecolors="none", edgecolors=SECOND, linewidths=1.8, zorder=4)
        place, side = ((8, -3), "left") if number % 2 else ((-8, -3), "right")
        axes.annotate(label(v.name, 24), (x, y), xytext=place, textcoords="offset points", ha=side, fontsize=8)
    for promise in report.promises:
        if promise.unit == "bytes":
            axes.axvline(promise.limit / factor, color=BAD, linewidth=1, linestyle="--")
        elif _is_positive(promise.limit):
            axes.axhline(promise.limit, color=BAD, linewidth=1, linestyle="--")
    axes.margins(x=0.3, y=0.15)
    log_scale(axes)
    axes.set(xlabel=f"weights, {unit}", ylabel="mean KLD, nats")
    grid(axes)


def _bits(axes: Axes, report: QuantizationReport) -> None:
    columns = sorted({_place(t) for t in report.tensors})
    rows = _roles(report.tensors)
    values = sorted({t.bits_per_weight for t in report.tensors})
    cells = [
        (columns.index(_place(t)), rows.index(_role(t)), (values.index(t.bits_per_weight) + 1) / len(values))
        for t in report.tensors
    ]
    _cells(axes, cells)
    step = -(-len(values) // _SHADES_NAMED)
    for number, value in list(enumerate(values, 1))[::step]:
        colour = _shade(number / len(values))
        axes.scatter([], [], marker="s", s=40, color=[colour], linewidths=0, label=f"{value:.4g}")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), fontsize=8, ncols=_SHADES_NAMED, handletextpad=0.2)
    _cells_frame(axes, ["" if c < 0 else str(c) for c in columns], [label(role, 26) for role in rows], "layer")


def _errors(axes: Axes, report: QuantizationReport) -> None:
    from matplotlib.ticker import MaxNLocator

    shown = [t for t in report.tensors if _is_positive(t.error)]
    for name in dict.fromkeys(t.tensor_class for t in shown):
        colour, mark = _CLASS_STYLES.get(name, _OTHER_STYLE)
        group = [t for t in shown if t.tensor_class == name]
        before = [t for t in group if _is_positive(t.round_to_nearest_error)]
        axes.scatter(
            [_place(t) for t in before],
            [max(t.round_to_nearest_error or 0.0, _LEAST_ERROR) for t in before],
            s=20, marker=mark, facecolors="none", edgecolors=colour, linewidths=0.8, alpha=0.7, zorder=2,
        )  # fmt: skip
        axes.scatter(
            [_place(t) for t in group],
            [max(t.error or 0.0, _LEAST_ERROR) for t in group],
            s=20, marker=mark, color=colour, label=label(name), zorder=3,
        )  # fmt: skip
    log_scale(axes)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="layer (-1: embedding and head)", ylabel="relative error")
    axes.legend(loc="best", fontsize=8, ncols=2)
    grid(axes)


def _class_errors(axes: Axes, report: QuantizationReport) -> None:
    classes = [c for c in by_class(report.tensors) if _is_positive(c.error)]
    places = range(len(classes))
    before = [c.round_to_nearest_error or 0.0 for c in classes]
    axes.barh(places, before, height=0.8, color=MUTED, alpha=0.35, label="round to nearest")
    colours = [_CLASS_STYLES.get(c.tensor_class, _OTHER_STYLE)[0] for c in classes]
    axes.barh(places, [c.error or 0.0 for c in classes], height=0.5, color=colours)
    axes.set_yticks(places, [label(c.tensor_class) for c in classes])
    axes.invert_yaxis()
    axes.set(xlabel="relative error")
    if any(before):
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), fontsize=8)
    grid(axes)


def _experts(axes: Axes, report: QuantizationReport) -> None:
    most = max(max(u.tokens, default=0) for u in report.experts) or 1
    widest = max(len(u.tokens) for u in report.experts)
    cells: list[tuple[int, int, float]] = []
    for y, usage in enumerate(report.experts):
        # The root shows differences among the rarely chosen, which are those that matter here.
        cells += [(x, y, math.sqrt(max(count, 0) / most)) for x, count in enumerate(usage.tokens)]
        crosses = [x for x in usage.fell_back if 0 <= x < len(usage.tokens)]
        axes.scatter(crosses, [y] * len(crosses), marker="x", s=12, color=BAD, linewidths=1, zorder=3)
    _cells(axes, cells)
    _cells_frame(axes, list(map(str, range(widest))), [str(u.layer) for u in report.experts], "expert")
    axes.set_ylabel("layer")


def _cells(axes: Axes, cells: list[tuple[int, int, float]]) -> None:
    """Squares at (column, row), as dark as their strength from 0 to 1 says."""
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    strengths = [min(max(strength, 0.0), 1.0) if math.isfinite(strength) else 0.0 for _, _, strength in cells]
    squares = [Rectangle((x - 0.46, y - 0.42), 0.92, 0.84) for x, y, _ in cells]
    axes.add_collection(PatchCollection(squares, facecolors=list(map(_shade, strengths)), linewidths=0))


def _shade(strength: float) -> tuple[float, float, float, float]:
    from matplotlib.colors import to_rgba

    return to_rgba(ACCENT, 0.06 + 0.74 * strength)


def _cells_frame(axes: Axes, columns: list[str], rows: list[str], xlabel: str) -> None:
    step_x, step_y = (max(1, -(-len(names) // 24)) for names in (columns, rows))
    axes.set_xticks(range(0, len(columns), step_x), columns[::step_x], fontsize=7)
    axes.set_yticks(range(0, len(rows), step_y), rows[::step_y], fontsize=7)
    axes.set(xlim=(-0.6, len(columns) - 0.4), ylim=(len(rows) - 0.4, -0.6), xlabel=xlabel)
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.tick_params(length=0)


def _plotted(report: QuantizationReport) -> list[VariantResult]:
    """Those that are quantized: beside 16-bit floats, the differences among them would vanish."""
    return [v for v in report.variants if v.method is not None and _is_positive(v.kld)]


def _place(tensor: TensorResult) -> int:
    return -1 if tensor.layer is None else tensor.layer


def _role(tensor: TensorResult) -> str:
    """The tensor's name without the layer's."""
    return tensor.name.removeprefix(f"model.layers.{tensor.layer}.").removeprefix("model.")


def _roles(tensors: tuple[TensorResult, ...]) -> list[str]:
    return list(dict.fromkeys(map(_role, tensors)))


def _is_positive(value: float | None) -> bool:
    return value is not None and bool(np.isfinite(value)) and value > 0
