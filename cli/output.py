"""What commands print: any text on any terminal, pipe or disk, whatever its encoding holds and whoever wrote the text.

Text of files may hold escape sequences, which would move a terminal's cursor or set its title, and characters that the
output's encoding lacks: both are printed escaped. Output that cannot be written ends the command, see ``OutputFailed``.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import re
import sys
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.text import Text

OUTPUT_FAILED = 74
"""Exit code when results cannot be printed, as sysexits.h has it (EX_IOERR)."""

# Control characters but tab and newline, the line separators, and what turns the direction of text around.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


class OutputFailed(Exception):
    """Standard output takes no more: a full disk, a closed pipe. The message says why."""


def printable(text: str) -> str:
    """``text`` with control characters escaped, lines and tabs apart."""
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


def one_line(text: str) -> str:
    """``text`` with every control character escaped: one line, whatever it holds."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


def print_line(text: str) -> None:
    """A line, or several, to stdout."""
    sys.stdout.write(printable(text) + "\n")
    sys.stdout.flush()


def print_json(value: Any, *, indent: int | None = None) -> None:
    """One JSON document to stdout: valid JSON always, so numbers that are none become null."""
    finite = _finite(value)
    text = json.dumps(finite, indent=indent, ensure_ascii=False, allow_nan=False)
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        text = json.dumps(finite, indent=indent, allow_nan=False)
    sys.stdout.write(_CONTROL.sub(lambda match: f"\\u{ord(match[0]):04x}", text) + "\n")
    sys.stdout.flush()


def print_error(text: str) -> None:
    """A line to stderr. That nobody can read it changes nothing."""
    if sys.stderr is not None:
        with contextlib.suppress(OSError):
            sys.stderr.write(text + "\n")
            sys.stderr.flush()


def console(**settings: Any) -> Console:
    """A console for tables: text is text to it, neither markup nor control characters."""
    return _PlainConsole(highlight=False, markup=False, emoji=False, **settings)


class _PlainConsole(Console):
    def render_str(self, text: str, **settings: Any) -> Text:
        return super().render_str(printable(text), **settings)


def prepare_streams() -> None:
    """Make stdout escape what its encoding lacks and tell its failures apart from others.

    A closed stdin becomes an empty one.

    Raises OutputFailed where stdout is closed, before any work is done for it.
    """
    closed = sys.stdout is None
    if sys.stdin is None:
        sys.stdin = io.StringIO()
    for descriptor in (0, 1, 2):  # a file that a command opens must not get the place of a closed stream
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    if closed:
        raise OutputFailed("it is closed")
    if isinstance(sys.stderr, io.TextIOWrapper):
        sys.stderr.reconfigure(errors="backslashreplace")
    stdout = sys.stdout
    if not isinstance(stdout, io.TextIOWrapper):
        return
    raw: object = getattr(stdout.buffer, "raw", stdout.buffer)  # PYTHONUNBUFFERED leaves out the buffer
    if not isinstance(raw, io.FileIO):  # a console of Windows, a test
        stdout.reconfigure(errors="backslashreplace")
        return
    stdout.flush()
    file = io.BufferedWriter(_OutputFile(raw))
    sys.stdout = io.TextIOWrapper(
        file, stdout.encoding, "backslashreplace", line_buffering=stdout.line_buffering, write_through=True
    )


def abandon_stdout() -> None:
    """Send what is still to be written to nowhere: the interpreter's last flush must not fail once more."""
    with contextlib.suppress(OSError, AttributeError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


class _OutputFile(io.RawIOBase):
    """Standard output's file; a write that fails raises OutputFailed."""

    name = "<stdout>"

    def __init__(self, raw: io.RawIOBase) -> None:
        self._raw = raw

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._raw.fileno()

    def isatty(self) -> bool:
        return self._raw.isatty()

    def write(self, data: Any) -> int | None:
        try:
            return self._raw.write(data)
        except OSError as error:
            raise OutputFailed(error.strerror or str(error)) from error


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
