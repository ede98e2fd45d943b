"""The plots of a parity report, as SVG that takes its colours from the page it stands in."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import InputError
from .metrics import difference_edges
from .report import ParityReport
from .report_tables import figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Stand-ins for colours that the page defines; replaced in the finished SVG, so that light and dark both fit.
_INK, _MUTED, _GRID, _ACCENT, _SECOND, _BAD = "#010203", "#010204", "#010205", "#010206", "#010207", "#010208"
_PAGE_COLOURS = {_INK: "ink", _MUTED: "muted", _GRID: "line", _ACCENT: "accent", _SECOND: "second", _BAD: "bad"}
_MOST_POINTS = 2500
_LEAST_KLD = 1e-16
_LABELLED_BARS = 30
_WIDTH, _HEIGHT = 5.6, 3.3


@dataclass(frozen=True)
class Plot:
    """A picture, what it is called, and one sentence that says how to read it."""

    title: str
    caption: str
    svg: str


def report_plots(report: ParityReport) -> list[Plot]:
    """All plots that the report has figures for; InputError where matplotlib is not installed."""
    try:
        import matplotlib
    except ImportError as error:
        raise InputError(
            'an HTML report needs matplotlib: run pip install "lfm-onnx[report]", or take a name in .md'
        ) from error
    plots: list[tuple[str, str, Callable[[Axes, ParityReport], None]]] = [
        ("Logits", "Each point is one logit; a faithful model puts them all on the line.", _scatter),
        ("Differences", _difference_caption(report), _histogram),
        ("KLD by position", "Divergence at each token from the start of its chunk; the line is the median.", _kld),
        ("Top-1 by chunk", "Share of positions where both models find the same token likeliest.", _top1),
    ]
    if report.layers:
        plots.append(("Hidden states", "Relative error of the residual stream after each layer.", _layers))
    if report.tasks is not None:
        caption = "Exact answers by category" + ("; the marks are the reference's." if report.reference_tasks else ".")
        plots.append(("Task accuracy", caption, _tasks))
    style: Any = {
        "svg.fonttype": "none", "font.size": 9, "text.color": _INK, "axes.edgecolor": _GRID, "axes.labelcolor": _MUTED,
        "xtick.color": _GRID, "ytick.color": _GRID, "xtick.labelcolor": _MUTED, "ytick.labelcolor": _MUTED,
        "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False, "text.parse_math": False,
        "axes.unicode_minus": False,
    }  # fmt: skip
    with matplotlib.rc_context(style):
        return [Plot(title, caption, _svg(draw, report, title)) for title, caption, draw in plots]


def _svg(draw: Callable[[Axes, ParityReport], None], report: ParityReport, title: str) -> str:
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    height = max(_HEIGHT, 0.9 + 0.24 * len(report.tasks.by_category)) if draw is _tasks and report.tasks else _HEIGHT
    canvas = Figure(figsize=(_WIDTH, height), layout="constrained")
    FigureCanvasSVG(canvas)
    draw(canvas.add_subplot(), report)
    buffer = io.StringIO()
    # The salt keeps ids of one plot apart from those of the others on the page, and the same in every run.
    with matplotlib.rc_context({"svg.hashsalt": title}):
        canvas.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    # A style sheet inside an inline SVG would hold for the whole page; the page has this rule itself.
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    for stand_in, name in _PAGE_COLOURS.items():
        svg = svg.replace(stand_in, f"var(--{name})")
    return svg


def _difference_caption(report: ParityReport) -> str:
    equal, different = report.samples.equal, int(report.samples.histogram.sum())
    share = equal / max(equal + different, 1)
    note = f" {share:.0%} do not differ at all." if share >= 0.005 else ""
    return f"How many of {equal + different:,} sampled logits differ by how much.{note}"


def _scatter(axes: Axes, report: ParityReport) -> None:
    x, y = np.asarray(report.samples.reference), np.asarray(report.samples.model)
    finite = np.isfinite(x) & np.isfinite(y)
    x, y = x[finite], y[finite]
    keep = _thinned(len(x))
    if len(x):
        ends = [float(min(x.min(), y.min())), float(max(x.max(), y.max()))]
        axes.plot(ends, ends, color=_MUTED, linewidth=0.8)
    else:
        axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.scatter(x[keep], y[keep], s=7, color=_ACCENT, alpha=0.45, linewidths=0)
    axes.set(xlabel="reference", ylabel="model")
    _grid(axes)


def _histogram(axes: Axes, report: ParityReport) -> None:
    edges, counts = difference_edges(), report.samples.histogram
    axes.stairs(counts / max(int(counts.sum()), 1), edges, fill=True, color=_ACCENT, alpha=0.75)
    axes.set_ylim(0, None if counts.any() else 1)
    used = np.flatnonzero(counts)
    low, high = (edges[used[0]], edges[used[-1] + 1]) if len(used) else (-8.0, 0.0)
    limit = report.thresholds.max_logit_diff
    if limit is not None and limit * report.logits.logit_std > 0:
        at = float(np.log10(limit * report.logits.logit_std))
        axes.axvline(at, color=_BAD, linewidth=1, linestyle="--", label=f"limit {figure(limit)} std")
        axes.legend(loc="upper left", fontsize=8)
        high = max(high, at)
    axes.set(xlabel="absolute difference of a logit", ylabel="share of those that differ", xlim=(low - 0.4, high + 0.4))
    ticks = np.arange(np.ceil(low - 0.4), np.floor(high + 0.4) + 1)
    axes.set_xticks(ticks, [f"1e{tick:.0f}" for tick in ticks])
    axes.yaxis.set_major_formatter(_percent())
    _grid(axes)


def _kld(axes: Axes, report: ParityReport) -> None:
    chunks = [np.maximum(np.where(np.isfinite(k), k, np.nan), _LEAST_KLD) for k in report.samples.kld_by_chunk]
    position = np.concatenate([np.arange(len(k)) for k in chunks])
    kld = np.concatenate(chunks)
    keep = _thinned(len(kld))
    axes.scatter(position[keep], kld[keep], s=7, color=_ACCENT, alpha=0.35, linewidths=0)
    edges = np.unique(np.linspace(0, position.max() + 1, 25).astype(int))
    spans = [(a, b, kld[(position >= a) & (position < b)]) for a, b in pairwise(edges)]
    middles = [((a + b - 1) / 2, np.nanmedian(k)) for a, b, k in spans if np.isfinite(k).any()]
    _log_scale(axes)
    if middles:
        axes.plot(*zip(*middles, strict=True), color=_SECOND, linewidth=1.6)
    else:
        axes.set_ylim(_LEAST_KLD, 1)
    if report.thresholds.max_kld is not None and report.thresholds.max_kld > 0:
        axes.axhline(report.thresholds.max_kld, color=_BAD, linewidth=1, linestyle="--", label="limit of the mean")
        axes.legend(loc="best", fontsize=8)
    axes.set(xlabel="position in the chunk", ylabel="nats")
    _grid(axes)


def _top1(axes: Axes, report: ParityReport) -> None:
    shares = [chunk.top1 for chunk in report.chunks]
    places = range(len(shares))
    # Edge to edge where there are too many for names: gaps would only flicker.
    axes.bar(places, shares, width=0.8 if len(shares) <= _LABELLED_BARS else 1.0, color=_ACCENT, alpha=0.75)
    limit = report.thresholds.min_top1
    floor = min([*shares, *([limit] if limit is not None else [])])
    axes.set_ylim(max(0.0, floor - max(0.02, (1 - floor) * 0.5)), 1)
    if limit is not None:
        axes.axhline(limit, color=_BAD, linewidth=1, linestyle="--", label=f"limit of the mean, {limit:.3g}")
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), fontsize=8)
    axes.yaxis.set_major_formatter(_percent())
    if len(shares) <= _LABELLED_BARS:
        labels = [c.label if len(c.label) <= 18 else c.label[:17] + "…" for c in report.chunks]
        axes.set_xticks(places, labels, rotation=40, ha="right", fontsize=7, rotation_mode="anchor")
    else:
        axes.set(xlabel="chunk")
    _grid(axes)


def _layers(axes: Axes, report: ParityReport) -> None:
    errors = report.layers or []
    values = np.asarray([e.relative for e in errors])
    places = np.arange(len(errors))
    shown = np.maximum(np.where(np.isfinite(values), values, np.nan), 1e-9)
    axes.plot(places, shown, color=_MUTED, linewidth=1)
    kinds = [(e.kind.startswith("attention"), e.kind.startswith("conv")) for e in errors]
    groups = (("attention", _SECOND, [a for a, _ in kinds]), ("convolution", _ACCENT, [c for _, c in kinds]))
    for label, colour, chosen in (*groups, ("embedding, norm", _INK, [not (a or c) for a, c in kinds])):
        if any(chosen):
            axes.scatter(places[chosen], shown[chosen], s=26, color=colour, label=label, zorder=3)
    axes.axhline(report.thresholds.layer_error, color=_BAD, linewidth=1, linestyle="--", label="limit")
    _log_scale(axes)
    step = max(1, len(errors) // 16)
    axes.set_xticks(places[::step], [e.name for e in errors][::step], fontsize=8)
    axes.set(xlabel="after layer", ylabel="relative error")
    axes.legend(loc="best", fontsize=8, ncols=2)
    _grid(axes)


def _tasks(axes: Axes, report: ParityReport) -> None:
    assert report.tasks is not None
    categories = report.tasks.by_category
    places = range(len(categories))
    axes.barh(places, [right / count for right, count in categories.values()], color=_ACCENT, alpha=0.75)
    if report.reference_tasks is not None:
        pairs = [report.reference_tasks.by_category.get(name, (0, 1)) for name in categories]
        marks = [right / count for right, count in pairs]
        axes.scatter(marks, places, marker="|", s=160, color=_SECOND, linewidths=2.5, label="reference", zorder=3)
    for place, (right, count) in zip(places, categories.values(), strict=True):
        axes.annotate(
            f"{right}/{count}", (0, place), xytext=(4, 0), textcoords="offset points", va="center", fontsize=7.5
        )
    axes.set_yticks(places, list(categories), fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.02)
    axes.xaxis.set_major_formatter(_percent())
    _grid(axes)


def _log_scale(axes: Axes) -> None:
    """Powers of ten in the form that the tables use."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _place: f"{value:.0e}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _percent() -> Any:
    from matplotlib.ticker import FuncFormatter

    return FuncFormatter(lambda share, _place: f"{100 * share:.4g}%")


def _grid(axes: Axes) -> None:
    axes.grid(color=_GRID, linewidth=0.6)
    axes.set_axisbelow(True)


def _thinned(count: int) -> Any:
    """Evenly spread indices of at most as many points as a page draws quickly."""
    return np.unique(np.linspace(0, count - 1, min(count, _MOST_POINTS)).astype(int)) if count else slice(0)
