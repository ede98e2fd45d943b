"""JSON from an untrusted file: duplicate keys, NaN, endless nesting and values of a wrong type are refused."""

from __future__ import annotations

import codecs
import json
import re
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

_LONGEST_SHOWN = 80
_MOST_BYTES = 16 << 20
_REQUIRED: Any = object()
_HALF_PAIR = re.compile(r"\\u[dD][89a-fA-F]")


def parse_json(data: bytes) -> Any:
    """Parse JSON in UTF-8; ValueError (one line, the reason only) for anything that the standard does not define.

    A byte order mark, which PowerShell and other editors of Windows write, is taken, and with one UTF-16 too.

    A number beyond float64, such as 1e400, parses to infinity: who reads a number checks its range.
    """
    try:
        text = decode_text(data)
        value = json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_no_constant)
        if _HALF_PAIR.search(text):
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except UnicodeEncodeError as error:
        half = error.object[error.start].encode("unicode_escape").decode()
        raise ValueError(f"{half} is half of a surrogate pair, no character") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"not {error.encoding.upper()} at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None


def decode_text(data: bytes) -> str:
    """Text in UTF-8, with or without a byte order mark, or in UTF-16 with one. UnicodeDecodeError for any other."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16")
    return data.removeprefix(codecs.BOM_UTF8).decode("utf-8")


def read_untrusted(path: Path, error: type[Exception], most_bytes: int = _MOST_BYTES) -> bytes:
    """The bytes of a file that nobody has checked: a regular one, or a link to one, of at most ``most_bytes``.

    Raises ``error`` in one line; a pipe or a device, which may never end, is not opened.
    """
    try:
        require_regular_file(path, error)
        too_large = path.stat().st_size > most_bytes
        with path.open("rb") as file:
            data = b"" if too_large else file.read(most_bytes + 1)
    except OSError as problem:
        raise error(f"{path}: cannot be read: {problem.strerror or problem}") from None
    if too_large or len(data) > most_bytes:
        raise error(f"{path}: larger than {most_bytes >> 20} MB, which no such file is")
    return data


def require_regular_file(path: Path, error: type[Exception]) -> None:
    """Raise ``error`` for a folder, a pipe or a device, and where nothing is there that can be looked at."""
    try:
        mode = path.stat().st_mode
    except OSError as problem:
        raise error(f"{path}: cannot be read: {problem.strerror or problem}") from None
    if not stat.S_ISREG(mode):
        raise error(f"{path}: cannot be read: it is no regular file")


def shown(value: object) -> str:
    """A value from an untrusted file as it may stand in a one-line message: ASCII, short, whatever it holds."""
    if isinstance(value, int) and value.bit_length() > 128:
        return f"an integer of {value.bit_length()} bits"
    try:
        text = json.dumps(value)
    except (ValueError, TypeError, RecursionError):
        return f"a {type(value).__name__}"
    return text if len(text) <= _LONGEST_SHOWN else text[: _LONGEST_SHOWN - 3] + "..."


class JsonObject:
    """One JSON object of a file; what a member must be is said where it is read, and refused by its name otherwise.

    where: what messages call the file. error: the type of exception that is raised. place: of the object in the file,
    such as ``rotary.``. advice: what to do about a wrong file, at the end of every message. A member that is missing
    has the default, where one is given.
    """

    def __init__(
        self, data: Any, where: str, error: type[Exception], *, place: str = "", advice: str | None = None
    ) -> None:
        self.where = where
        self.place = place
        self._error = error
        self._advice = advice
        if not isinstance(data, Mapping):
            subject = f"{place[:-1]} is {shown(data)}, expected an object" if place else ""
            raise self.wrong(subject or f"expected a JSON object, found {shown(data)}")
        self.data: Mapping[str, Any] = data

    @classmethod
    def parse(cls, data: bytes, where: str, error: type[Exception], *, advice: str | None = None) -> JsonObject:
        """The object that ``data`` is the text of."""
        try:
            parsed = parse_json(data)
        except ValueError as problem:
            raise error(_message(where, str(problem), advice)) from None
        return cls(parsed, where, error, advice=advice)

    @classmethod
    def read(
        cls, path: Path, error: type[Exception], *, most_bytes: int = _MOST_BYTES, advice: str | None = None
    ) -> JsonObject:
        """The object that a file holds; see ``read_untrusted``."""
        return cls.parse(read_untrusted(path, error, most_bytes), str(path), error, advice=advice)

    def __contains__(self, name: str) -> bool:
        return name in self.data

    def wrong(self, what: str) -> Exception:
        """The error to raise for the object as a whole."""
        return self._error(_message(self.where, what, self._advice))

    def refuse(self, name: str, expected: str) -> Exception:
        """The error to raise for a member: its value, or that it is missing, and what was expected."""
        found = f"is {shown(self.data[name])}" if name in self.data else "is missing"
        return self.wrong(f"{self._path(name)} {found}, expected {expected}")

    def require_only(self, names: Sequence[str]) -> None:
        """Refuse the object where it has other members than these."""
        if unknown := sorted(set(self.data) - set(names)):
            raise self.wrong(f"{self._path(unknown[0])} is unknown, expected {', '.join(names)}")

    def integer(self, name: str, low: int | None = None, high: int | None = None, default: Any = _REQUIRED) -> int:
        """An integer, low and high included."""
        value = self.data.get(name, default)
        if not _is_integer(value, low, high):
            raise self.refuse(name, _with_range("an integer", low, high))
        return int(value)

    def number(self, name: str, low: float, high: float, default: Any = _REQUIRED) -> float:
        """A number, low and high included; NaN and infinity lie outside of every range."""
        value = self.data.get(name, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
            raise self.refuse(name, f"a number from {low:g} to {high:g}")
        return float(value)

    def flag(self, name: str, default: Any = _REQUIRED) -> bool:
        """True or false; 0 and 1 are refused."""
        value = self.data.get(name, default)
        if not isinstance(value, bool):
            raise self.refuse(name, "true or false")
        return value

    def text(self, name: str, choices: Sequence[str] | None = None, default: Any = _REQUIRED) -> str:
        """A text, one of ``choices`` where they are given."""
        value = self.data.get(name, default)
        if not isinstance(value, str) or (choices is not None and value not in choices):
            raise self.refuse(name, "a text" if choices is None else f"one of {', '.join(choices)}")
        return value

    def path_inside(self, name: str) -> str:
        """A path with ``/`` that stays in the folder it is relative to."""
        value = self.text(name)
        pure = PurePosixPath(value)
        if pure.is_absolute() or ".." in pure.parts or "\\" in value or ":" in value or not pure.parts:
            raise self.refuse(name, "a path that stays in the folder")
        return value

    def object(self, name: str, default: Any = _REQUIRED) -> JsonObject:
        """An object, whose own members are refused by their full place, such as ``rotary.base``."""
        value = self.data.get(name, default)
        if not isinstance(value, Mapping):
            raise self.refuse(name, "an object")
        return self._inner(value, f"{self._path(name)}.")

    def object_or_null(self, name: str) -> JsonObject | None:
        """An object, or None for null; a member that is missing is refused."""
        return None if self.data.get(name, _REQUIRED) is None else self.object(name)

    def array(self, name: str, expected: str = "a list", default: Any = _REQUIRED) -> list[Any]:
        """A list of anything. expected: what it is a list of, for the message."""
        value = self.data.get(name, default)
        if not isinstance(value, (list, tuple)):
            raise self.refuse(name, expected)
        return list(value)

    def objects(self, name: str, *, may_be_empty: bool = True) -> list[JsonObject]:
        """A list of objects, with one or more where it may not be empty."""
        expected = "a list of objects" if may_be_empty else "a list of one object or more"
        items = self.array(name, expected)
        if not items and not may_be_empty:
            raise self.refuse(name, expected)
        return [self._inner(item, f"{self._path(name)}[{index}].") for index, item in enumerate(items)]

    def integers(self, name: str, low: int | None = None) -> list[int]:
        """A list of integers, each ``low`` or more where that is given; it may be empty."""
        expected = f"a list, each {_with_range('an integer', low, None)}"
        items = self.array(name, expected)
        if not all(_is_integer(item, low, None) for item in items):
            raise self.refuse(name, expected)
        return items

    def texts(self, name: str) -> list[str]:
        """A list of texts; it may be empty."""
        items = self.array(name, "a list of texts")
        if not all(isinstance(item, str) for item in items):
            raise self.refuse(name, "a list of texts")
        return items

    def all_objects(self) -> dict[str, JsonObject]:
        """Every member, each an object."""
        return {name: self.object(name) for name in self.data}

    def all_integers(self, low: int | None = None) -> dict[str, int]:
        """Every member, each an integer."""
        return {name: self.integer(name, low) for name in self.data}

    def all_texts(self) -> dict[str, str]:
        """Every member, each a text."""
        return {name: self.text(name) for name in self.data}

    def _path(self, name: str) -> str:
        """Where a member is; a name that comes from the file itself may hold anything."""
        return self.place + (name if name.isidentifier() else shown(name))

    def _inner(self, data: Any, place: str) -> JsonObject:
        return JsonObject(data, self.where, self._error, place=place, advice=self._advice)


def _message(where: str, what: str, advice: str | None) -> str:
    return f"{where}: {what}" + (f"; {advice}" if advice else "")


def _is_integer(value: Any, low: int | None, high: int | None) -> bool:
    if isinstance(value, bool) or not isinstance(value, int):
        return False
    return (low is None or low <= value) and (high is None or value <= high)


def _with_range(kind: str, low: int | None, high: int | None) -> str:
    if low is not None and high is not None:
        return f"{kind} from {low} to {high}"
    if low is not None:
        return f"{kind} of {low} or more"
    return kind if high is None else f"{kind} of at most {high}"


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members: dict[str, Any] = {}
    for key, value in pairs:
        if key in members:
            raise ValueError(f"key {shown(key)} appears twice in one object")
        members[key] = value
    return members


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")
