"""Reads calibration text from files that nobody has checked: plain texts and JSON lines, within fixed limits."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..strict_json import JsonObject, shown

DEFAULT_CALIBRATION = Path(__file__).parent / "calibration"

_TEXT_SUFFIXES = (".md", ".txt")
_LINES_SUFFIXES = (".jsonl",)
_EXPECTED = "a .txt, .md or .jsonl file"
# Calibration uses some thousand tokens: more text than this is a mistake, and would only cost time.
MAX_BYTES = 64 << 20
_MAX_LINE_BYTES = 1 << 20
MAX_FILES = 4096
_MAX_LINES = 1_000_000
# Paragraphs are joined until a passage is worth a sequence, in UTF-8 bytes: a measure that is fair to all scripts.
_PASSAGE_BYTES = 400
_LONGEST_PASSAGE = 4000
_MOST_BYTES_OF_CHARACTER = 4
_PARAGRAPH_END = re.compile(r"\n[ \t]*\n\s*")


@dataclass(frozen=True)
class Document:
    """A text, or a conversation with its tools; ``where`` names the file and line for messages."""

    where: str
    text: str | None = None
    messages: Sequence[Mapping[str, Any]] = ()
    tools: Sequence[Mapping[str, Any]] | None = None


@dataclass(frozen=True)
class CalibrationFile:
    """One file, checked as a whole. Lines of a .jsonl are kept as bytes and parsed again on use: parsed JSON is big."""

    path: Path
    units: Sequence[tuple[int, str | bytes]]
    """(line number, passage of a text or line of a .jsonl)"""

    def document(self, index: int) -> Document:
        """The index-th unit."""
        number, unit = self.units[index]
        where = f"{self.path}, line {number}"
        return Document(where, text=unit) if isinstance(unit, str) else _document(unit, where)


def read_calibration(path: Path) -> list[CalibrationFile]:
    """All files of a folder (and its folders) in the order of their names, or the one file given.

    Hidden files are left out. Raises InputError: a file of another kind, not UTF-8, empty, a line that is neither
    {"text": …} nor {"messages": […]}, or more than the limits allow.
    """
    files, left = [], MAX_BYTES
    for file in _listed(path):
        data = _read(file, left)
        left -= len(data)
        units: Iterable[tuple[int, str | bytes]]
        units = _lines(data, file) if file.suffix.lower() in _LINES_SUFFIXES else passages(_decoded(data, file))
        files.append(CalibrationFile(file, list(units)))
        if not files[-1].units:
            raise InputError(f"{file}: expected text, found an empty file")
    return files


def _listed(path: Path) -> list[Path]:
    if not os.path.isdir(path):
        if not os.path.exists(path):
            raise InputError(f"{path}: not found; expected {_EXPECTED}, or a folder of such files")
        return [_calibration_file(path)]
    files: list[Path] = []
    for folder, folders, names in os.walk(path):
        folders[:] = [name for name in folders if not name.startswith(".")]
        files += [_calibration_file(Path(folder, name)) for name in names if not name.startswith(".")]
        if len(files) > MAX_FILES:
            raise InputError(f"{path}: more than {MAX_FILES} files; give a selection of them")
    if not files:
        raise InputError(f"{path}: holds no file; expected {_EXPECTED}")
    return sorted(files, key=lambda file: file.relative_to(path).as_posix())


def _calibration_file(path: Path) -> Path:
    if path.suffix.lower() not in _TEXT_SUFFIXES + _LINES_SUFFIXES or not os.path.isfile(path):
        raise InputError(f"{path}: expected {_EXPECTED}")
    return path


def _read(path: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    if len(data) > limit:
        raise InputError(f"{path}: more than {MAX_BYTES >> 20} MiB of calibration text; give a part of it")
    return data


def _decoded(data: bytes, path: Path) -> str:
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}, line {line}: expected UTF-8 text, found the byte {data[error.start]:#04x}") from None


def passages(text: str) -> Iterable[tuple[int, str]]:
    """Paragraphs, short ones joined, endless ones cut, each with the number of its first line."""
    start, line = 0, 1
    ends = (match.end() for match in _PARAGRAPH_END.finditer(text))
    for end in chain(ends, (len(text),)):
        while end - start > _LONGEST_PASSAGE:
            space = max(text.rfind(mark, start + 1, start + _LONGEST_PASSAGE) for mark in " \n")
            cut = space + 1 if space > 0 else start + _LONGEST_PASSAGE
            if text[start:cut].strip():
                yield line, text[start:cut]
            line += text.count("\n", start, cut)
            start = cut
        if (end - start) * _MOST_BYTES_OF_CHARACTER < _PASSAGE_BYTES and end < len(text):
            continue
        passage = text[start:end]
        if len(passage.encode()) >= _PASSAGE_BYTES or end == len(text):
            if passage.strip():
                stripped = passage.lstrip("\n")
                yield line + len(passage) - len(stripped), stripped.rstrip("\n")
            line += passage.count("\n")
            start = end


def _lines(data: bytes, path: Path) -> Iterable[tuple[int, bytes]]:
    if data.count(b"\n") > _MAX_LINES:
        raise InputError(f"{path}: more than {_MAX_LINES} lines; give a part of it")
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if line.strip():
            _document(line, f"{path}, line {number}")
            yield number, line


def _document(line: bytes, where: str) -> Document:
    if len(line) > _MAX_LINE_BYTES:
        raise InputError(f"{where}: a line of {len(line)} bytes; expected at most {_MAX_LINE_BYTES}")
    fields = JsonObject.parse(line, where, InputError)
    if ("text" in fields) == ("messages" in fields):
        members = ", ".join(sorted(fields.data))
        raise fields.wrong(f'expected {{"text": …}} or {{"messages": […]}}, found {shown(members)}')
    if "text" in fields:
        if not fields.text("text").strip():
            raise fields.refuse("text", "a text that is not blank")
        return Document(where, text=fields.text("text"))
    messages = fields.objects("messages", may_be_empty=False)
    for message in messages:
        message.text("role")
        if not isinstance(message.data.get("content", ""), (str, list, type(None))):
            raise message.refuse("content", "a text, a list or null")
    tools = fields.objects("tools", may_be_empty=False) if "tools" in fields else None
    return Document(where, messages=_dicts(messages), tools=None if tools is None else _dicts(tools))


def _dicts(items: Sequence[JsonObject]) -> list[dict[str, Any]]:
    return [dict(item.data) for item in items]
