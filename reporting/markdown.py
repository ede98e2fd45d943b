"""A report as Markdown: a heading, the verdict, and its tables."""

from __future__ import annotations

from collections.abc import Sequence

from .table import Table

_ESCAPED = str.maketrans({c: "\\" + c for c in "\\|`*_<>[]"} | {"\n": " ", "\r": " "})


def document(heading: str, verdict: str, tables: Sequence[Table]) -> str:
    """The whole document; all texts may hold anything."""
    return "\n".join([f"# {_cell(heading)}\n\n{_cell(verdict)}\n", *map(_table, tables)])


def _table(table: Table) -> str:
    lines = [f"## {_cell(table.title)}", "", _row(table.columns), _row(["---"] * len(table.columns))]
    lines += [_row([_cell(cell) for cell in row]) for row in table.rows]
    return "\n".join(lines) + "\n"


def _row(cells: tuple[str, ...] | list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _cell(text: str) -> str:
    return text.translate(_ESCAPED)
