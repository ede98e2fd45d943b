"""Writes a report to a file, as its name asks for: .html or .md."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

from ..errors import InputError, OutputError
from .plot import WITHOUT_MATPLOTLIB

_SUFFIXES = (".html", ".htm", ".md")


def require_report_file(path: Path) -> None:
    """Refuse, before hours of work, a report that could not be written: InputError or OutputError."""
    if path.suffix.lower() not in _SUFFIXES:
        raise InputError(f"--report {path}: expected a name that ends in .html or .md")
    if path.suffix.lower() != ".md" and importlib.util.find_spec("matplotlib") is None:
        raise InputError(WITHOUT_MATPLOTLIB)
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise OutputError(f"--report {path}: expected a file in a folder that exists")


def write_report_file(path: Path, html: Callable[[], str], markdown: Callable[[], str]) -> None:
    """Write the document that ``path`` asks for; replaces an older one. Raises InputError, OutputError."""
    require_report_file(path)
    text = markdown() if path.suffix.lower() == ".md" else html()
    try:
        # What no UTF-8 text holds (half a surrogate pair, in a hostile name) must not cost the report.
        path.write_text(text, encoding="utf-8", errors="replace")
    except OSError as error:
        raise OutputError(f"--report {path}: cannot be written: {error.strerror or error}") from error
