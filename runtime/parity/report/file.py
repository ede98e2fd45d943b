"""Writes a parity report to a file, as its name asks for: .html or .md."""

from __future__ import annotations

from pathlib import Path

from ....reporting.file import write_report_file
from .contents import ParityReport


def write_report(report: ParityReport, path: Path) -> None:
    """Write ``path``; replaces an older report. Raises InputError, OutputError."""
    from .document import html_report
    from .markdown import markdown_report

    write_report_file(path, lambda: html_report(report), lambda: markdown_report(report))
