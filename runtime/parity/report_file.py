"""Writes a parity report to a file, as its name asks for: .html or .md."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from ...errors import InputError, OutputError
from .report import ParityReport

_SUFFIXES = (".html", ".htm", ".md")


def require_report_file(path: Path) -> None:
    """Refuse, before hours of work, a report that could not be written: InputError or OutputError."""
    if path.suffix.lower() not in _SUFFIXES:
        raise InputError(f"--report {path}: expected a name that ends in .html or .md")
    if path.suffix.lower() != ".md" and importlib.util.find_spec("matplotlib") is None:
        raise InputError('an HTML report needs matplotlib: run pip install "lfm-onnx[report]", or take a name in .md')
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise OutputError(f"--report {path}: expected a file in a folder that exists")


def write_report(report: ParityReport, path: Path) -> None:
    """Write ``path``; replaces an older report. Raises InputError, OutputError."""
    require_report_file(path)
    if path.suffix.lower() == ".md":
        from .report_markdown import markdown_report

        text = markdown_report(report)
    else:
        from .report_html import html_report

        text = html_report(report)
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"--report {path}: cannot be written: {error.strerror or error}") from error
