"""A parity report as Markdown: the verdict and its tables."""

from __future__ import annotations

from .report import ParityReport
from .report_tables import Table, report_tables

_ESCAPED = str.maketrans({c: "\\" + c for c in "\\|`*_<>[]"} | {"\n": " ", "\r": " "})


def markdown_report(report: ParityReport) -> str:
    """The whole document."""
    head = f"# Parity: {'passed' if report.passed else 'missed'}\n\n{_cell(report.verdict)}.\n"
    return "\n".join([head, *map(_table, report_tables(report))])


def _table(table: Table) -> str:
    lines = [f"## {table.title}", "", _row(table.columns), _row(["---"] * len(table.columns))]
    lines += [_row([_cell(cell) for cell in row]) for row in table.rows]
    return "\n".join(lines) + "\n"


def _row(cells: tuple[str, ...] | list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _cell(text: str) -> str:
    return text.translate(_ESCAPED)
