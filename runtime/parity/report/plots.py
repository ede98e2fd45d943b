"""The plots of a parity report."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from ....reporting.plot import (
    ACCENT,
    BAD,
    HEIGHT,
    INK,
    MUTED,
    SECOND,
    Plot,
    grid,
    log_scale,
    percent,
    plot,
    thinned,
)
from ....reporting.table import figure
from ..metrics import difference_edges
from .contents import ParityReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LEAST_KLD = 1e-16
_LABELLED_BARS = 30


def report_plots(report: ParityReport) -> list[Plot]:
    """All plots that the report has figures for; InputError where matplotlib is not installed."""
    plots: list[tuple[str, str, Callable[[Axes, ParityReport], None]]] = [
        ("Logits", "Each point is one logit; a faithful model puts them all on the line.", _scatter),
        ("Differences", _difference_caption(report), _histogram),
        ("KLD by position", "Divergence at each token from the start of its passage; the line is the median.", _kld),
        ("Top-1 by passage", "Share of positions where both models find the same token likeliest.", _top1),
    ]
    if report.layers:
        plots.append(("Hidden states", "Relative error of the residual stream after each layer.", _layers))
    if report.tasks is not None:
        caption = "Exact answers by category" + ("; the marks are the reference's." if report.reference_tasks else ".")
        plots.append(("Task accuracy", caption, _tasks))
    return [plot(title, caption, _of(report, draw), height=_height(draw, report)) for title, caption, draw in plots]


def _of(report: ParityReport, draw: Callable[[Axes, ParityReport], None]) -> Callable[[Axes], None]:
    return lambda axes: draw(axes, report)


def _height(draw: Callable[..., None], report: ParityReport) -> float:
    return max(HEIGHT, 0.9 + 0.24 * len(report.tasks.by_category)) if draw is _tasks and report.tasks else HEIGHT


def _difference_caption(report: ParityReport) -> str:
    equal, different = report.samples.equal, int(report.samples.histogram.sum())
    share = equal / max(equal + different, 1)
    note = f" {share:.0%} do not differ at all." if share >= 0.005 else ""
    return f"How many of {equal + different:,} sampled logits differ by how much.{note}"


def _scatter(axes: Axes, report: ParityReport) -> None:
    x, y = np.asarray(report.samples.reference), np.asarray(report.samples.model)
    finite = np.isfinite(x) & np.isfinite(y)
    x, y = x[finite], y[finite]
    keep = thinned(len(x))
    if len(x):
        ends = [float(min(x.min(), y.min())), float(max(x.max(), y.max()))]
        axes.plot(ends, ends, color=MUTED, linewidth=0.8)
    else:
        axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.scatter(x[keep], y[keep], s=7, color=ACCENT, alpha=0.45, linewidths=0)
    axes.set(xlabel="reference", ylabel="model")
    grid(axes)


def _histogram(axes: Axes, report: ParityReport) -> None:
    edges, counts = difference_edges(), report.samples.histogram
    axes.stairs(counts / max(int(counts.sum()), 1), edges, fill=True, color=ACCENT, alpha=0.75)
    axes.set_ylim(0, None if counts.any() else 1)
    used = np.flatnonzero(counts)
    low, high = (edges[used[0]], edges[used[-1] + 1]) if len(used) else (-8.0, 0.0)
    limit = report.thresholds.max_logit_diff
    if limit is not None and limit * report.logits.logit_std > 0:
        at = float(np.log10(limit * report.logits.logit_std))
        axes.axvline(at, color=BAD, linewidth=1, linestyle="--", label=f"limit {figure(limit)} std")
        axes.legend(loc="upper left", fontsize=8)
        high = max(high, at)
    axes.set(xlabel="absolute difference of a logit", ylabel="share of those that differ", xlim=(low - 0.4, high + 0.4))
    ticks = np.arange(np.ceil(low - 0.4), np.floor(high + 0.4) + 1)
    axes.set_xticks(ticks, [f"1e{tick:.0f}" for tick in ticks])
    axes.yaxis.set_major_formatter(percent())
    grid(axes)


def _kld(axes: Axes, report: ParityReport) -> None:
    passages = [np.maximum(np.where(np.isfinite(k), k, np.nan), _LEAST_KLD) for k in report.samples.kld_by_passage]
    position = np.concatenate([np.arange(len(k)) for k in passages])
    kld = np.concatenate(passages)
    keep = thinned(len(kld))
    axes.scatter(position[keep], kld[keep], s=7, color=ACCENT, alpha=0.35, linewidths=0)
    edges = np.unique(np.linspace(0, position.max() + 1, 25).astype(int))
    spans = [(a, b, kld[(position >= a) & (position < b)]) for a, b in pairwise(edges)]
    middles = [((a + b - 1) / 2, np.nanmedian(k)) for a, b, k in spans if np.isfinite(k).any()]
    log_scale(axes)
    if middles:
        axes.plot(*zip(*middles, strict=True), color=SECOND, linewidth=1.6)
    else:
        axes.set_ylim(_LEAST_KLD, 1)
    if report.thresholds.max_kld is not None and report.thresholds.max_kld > 0:
        axes.axhline(report.thresholds.max_kld, color=BAD, linewidth=1, linestyle="--", label="limit of the mean")
        axes.legend(loc="best", fontsize=8)
    axes.set(xlabel="position in the passage", ylabel="nats")
    grid(axes)


def _top1(axes: Axes, report: ParityReport) -> None:
    shares = [passage.top1 for passage in report.passages]
    places = range(len(shares))
    # Edge to edge where there are too many for names: gaps would only flicker.
    axes.bar(places, shares, width=0.8 if len(shares) <= _LABELLED_BARS else 1.0, color=ACCENT, alpha=0.75)
    limit = report.thresholds.min_top1
    floor = min([*shares, *([limit] if limit is not None else [])])
    axes.set_ylim(max(0.0, floor - max(0.02, (1 - floor) * 0.5)), 1)
    if limit is not None:
        axes.axhline(limit, color=BAD, linewidth=1, linestyle="--", label=f"limit of the mean, {limit:.3g}")
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), fontsize=8)
    axes.yaxis.set_major_formatter(percent())
    if len(shares) <= _LABELLED_BARS:
        labels = [p.label if len(p.label) <= 18 else p.label[:17] + "…" for p in report.passages]
        axes.set_xticks(places, labels, rotation=40, ha="right", fontsize=7, rotation_mode="anchor")
    else:
        axes.set(xlabel="passage")
    grid(axes)


def _layers(axes: Axes, report: ParityReport) -> None:
    errors = report.layers or []
    values = np.asarray([e.relative for e in errors])
    places = np.arange(len(errors))
    shown = np.maximum(np.where(np.isfinite(values), values, np.nan), 1e-9)
    axes.plot(places, shown, color=MUTED, linewidth=1)
    kinds = [(e.kind.startswith("attention"), e.kind.startswith("conv")) for e in errors]
    groups = (("attention", SECOND, [a for a, _ in kinds]), ("convolution", ACCENT, [c for _, c in kinds]))
    for label, colour, chosen in (*groups, ("embedding, norm", INK, [not (a or c) for a, c in kinds])):
        if any(chosen):
            axes.scatter(places[chosen], shown[chosen], s=26, color=colour, label=label, zorder=3)
    axes.axhline(report.thresholds.layer_error, color=BAD, linewidth=1, linestyle="--", label="limit")
    log_scale(axes)
    step = max(1, len(errors) // 16)
    axes.set_xticks(places[::step], [e.name for e in errors][::step], fontsize=8)
    axes.set(xlabel="after layer", ylabel="relative error")
    axes.legend(loc="best", fontsize=8, ncols=2)
    grid(axes)


def _tasks(axes: Axes, report: ParityReport) -> None:
    assert report.tasks is not None
    categories = report.tasks.by_category
    places = range(len(categories))
    axes.barh(places, [right / count for right, count in categories.values()], color=ACCENT, alpha=0.75)
    if report.reference_tasks is not None:
        pairs = [report.reference_tasks.by_category.get(name, (0, 1)) for name in categories]
        marks = [right / count for right, count in pairs]
        axes.scatter(marks, places, marker="|", s=160, color=SECOND, linewidths=2.5, label="reference", zorder=3)
    for place, (right, count) in zip(places, categories.values(), strict=True):
        axes.annotate(
            f"{right}/{count}", (0, place), xytext=(4, 0), textcoords="offset points", va="center", fontsize=7.5
        )
    axes.set_yticks(places, list(categories), fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.02)
    axes.xaxis.set_major_formatter(percent())
    grid(axes)
