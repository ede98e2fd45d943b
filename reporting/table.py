"""The figures of a report as titled tables of text cells, which console, Markdown and HTML all show alike."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """A title, column heads, and rows of cells; ``marks`` says of each row whether it passed (None: no verdict).

    folded: a long list, that a reader opens when something is wrong.
    """

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    marks: list[bool | None]
    folded: bool = False


def figure(value: float) -> str:
    """A number in at most four significant digits, small ones in scientific notation."""
    if value == 0:
        return "0"
    return f"{value:.4g}" if 1e-3 <= abs(value) < 1e5 else f"{value:.2e}"
