"""Writes a report to a file, as its name asks for: .html or .md."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from ..errors import InputError, OutputError
from .plot import WITHOUT_MATPLOTLIB

_SUFFIXES = (".html", ".htm", ".md")


def require_report_file(path: Path) -> None:
    """Refuse, before hours of work, a report that could not be written: InputError or OutputError."""
    if path.suffix.lower() not in _SUFFIXES:
        raise InputError(f"`report`: {path}: expected a name that ends in .html or .md")
    if path.suffix.lower() != ".md" and importlib.util.find_spec("matplotlib") is None:
        raise InputError(WITHOUT_MATPLOTLIB)
    if os.path.isdir(path) or not os.path.isdir(path.absolute().parent):
        raise OutputError(f"`report`: {path}: expected a file in a folder that exists")
    if os.path.islink(os.path.realpath(path)) or (
        os.path.exists(path) and not (os.path.isfile(path) and os.access(path, os.W_OK))
    ):
        raise OutputError(f"`report`: {path}: cannot be written")
    with _in_place(path), contextlib.suppress(FileNotFoundError):
        os.lstat(path)  # OSError where its name is too long


def write_report_file(path: Path, html: Callable[[], str], markdown: Callable[[], str]) -> None:
    """Write the document that ``path`` asks for. InputError, OutputError: an older report then stays as it is."""
    require_report_file(path)
    text = markdown() if path.suffix.lower() == ".md" else html()
    with _in_place(path) as beside:
        # What no UTF-8 text holds (half a surrogate pair, in a hostile name) must not cost the report.
        with beside.open("w", encoding="utf-8", errors="replace") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            shutil.copymode(path, beside)
        os.replace(beside, os.path.realpath(path))


@contextlib.contextmanager
def _in_place(path: Path) -> Iterator[Path]:
    """A new, empty file in the folder where ``path`` lies, removed in the end; OutputError where it cannot be."""
    real = Path(os.path.realpath(path))
    beside = real.with_name(f".{os.getpid()}-report.partial")
    try:
        beside.touch(exist_ok=False)
        try:
            yield beside
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"`report`: {path}: cannot be written: {error.strerror or error}") from error
