"""Plots as SVG that takes its colours from the page it stands in, so that light and dark both fit."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WITHOUT_MATPLOTLIB = 'an HTML report needs matplotlib: run pip install "lfm-onnx[report]", or take a name in .md'
# Stand-ins for colours that the page defines, replaced in the finished SVG.
INK, MUTED, GRID, ACCENT, SECOND, BAD = "#010203", "#010204", "#010205", "#010206", "#010207", "#010208"
THIRD, OK = "#010209", "#01020a"
_PAGE_COLOURS = {
    INK: "ink", MUTED: "muted", GRID: "line", ACCENT: "accent", SECOND: "second", BAD: "bad", THIRD: "third", OK: "ok"
}  # fmt: skip
_MOST_POINTS = 2500
_FEW_DECADES = 200
"""Below this ratio, powers of ten alone are too few ticks."""
_WIDTH, HEIGHT = 5.6, 3.3
"""Inches, at which 9 points are the page's small print."""


@dataclass(frozen=True)
class Plot:
    """A picture, what it is called, and one sentence that says how to read it; ``table``: the title of its figures."""

    title: str
    caption: str
    svg: str
    table: str = ""


def plot(title: str, caption: str, draw: Callable[[Axes], None], *, height: float = HEIGHT, table: str = "") -> Plot:
    """What ``draw`` puts on its axes; the same bytes in every run. InputError where matplotlib is not installed."""
    try:
        import matplotlib
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError(WITHOUT_MATPLOTLIB) from error
    style: Any = {
        "svg.fonttype": "none", "font.size": 9, "text.color": INK, "axes.edgecolor": GRID, "axes.labelcolor": MUTED,
        "xtick.color": GRID, "ytick.color": GRID, "xtick.labelcolor": MUTED, "ytick.labelcolor": MUTED,
        "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False, "text.parse_math": False,
        "axes.unicode_minus": False,
        # The salt keeps ids of one plot apart from those of the others on the page, and the same in every run.
        "svg.hashsalt": title,
    }  # fmt: skip
    buffer = io.StringIO()
    with matplotlib.rc_context(style):
        canvas = Figure(figsize=(_WIDTH, height), layout="constrained")
        FigureCanvasSVG(canvas)
        draw(canvas.add_subplot())
        canvas.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return Plot(title, caption, _inline(buffer.getvalue(), title), table)


def _inline(svg: str, title: str) -> str:
    svg = svg[svg.index("<svg") :]
    # A style sheet inside an inline SVG would hold for the whole page; the page has this rule itself.
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    # matplotlib calls parts of every plot patch_1 and the like; on one page only ids that something refers to may stay.
    used = set(re.findall(r"#([\w.-]+)", svg))
    svg = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", svg)
    for stand_in, name in _PAGE_COLOURS.items():
        svg = svg.replace(stand_in, f"var(--{name})")
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(title)}"', 1)


def log_scale(axes: Axes) -> None:
    """Powers of ten in the form that the tables use; what is drawn already says whether there is room for more."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_yscale("log")
    low, high = axes.get_ylim()
    if low > 0 and high < _FEW_DECADES * low:
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _place: f"{value:.0e}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def percent() -> Any:
    """Formats the ticks of an axis of shares."""
    from matplotlib.ticker import FuncFormatter

    return FuncFormatter(lambda share, _place: f"{100 * share:.4g}%")


def grid(axes: Axes) -> None:
    """Thin lines, behind everything."""
    axes.grid(color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)


def thinned(count: int) -> Any:
    """Evenly spread indices of at most as many points as a page draws quickly."""
    return np.unique(np.linspace(0, count - 1, min(count, _MOST_POINTS)).astype(int)) if count else slice(0)


def label(text: str, longest: int = 18) -> str:
    """``text`` as it may stand beside an axis, on one line, whatever it holds."""
    text = "".join(c if c.isprintable() else " " for c in text)
    return text if len(text) <= longest else text[: longest - 1] + "…"
