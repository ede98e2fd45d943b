"""A parity report as Markdown: the verdict and its tables."""

from __future__ import annotations

from ....reporting.markdown import document
from .contents import ParityReport
from .tables import report_tables


def markdown_report(report: ParityReport) -> str:
    """The whole document."""
    heading = f"Parity: {'passed' if report.passed else 'missed'}"
    return document(heading, f"{report.verdict}.", report_tables(report))
