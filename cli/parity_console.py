"""A parity report on the terminal: checks, figures and the verdict line."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table as RichTable

from ..reporting.table import Table
from ..runtime.parity.report.contents import ParityReport
from ..runtime.parity.report.tables import report_tables

_NOT_ON_CONSOLE = ("Passages", "What was compared")


def print_report(report: ParityReport, console: Console) -> None:
    """Print everything but the passages; the verdict comes last, where the eye is."""
    for table in report_tables(report):
        if table.title not in _NOT_ON_CONSOLE:
            console.print(_rich_table(table))
    colour = "green" if report.passed else "red"
    console.print(report.verdict, style=f"bold {colour}")


def _rich_table(table: Table) -> RichTable:
    rich = RichTable(title=table.title, title_justify="left", title_style="bold", header_style="dim")
    for column in table.columns:
        rich.add_column(column, overflow="fold")
    for row, passed in zip(table.rows, table.marks, strict=True):
        rich.add_row(*row, style="red" if passed is False else None)
    return rich
