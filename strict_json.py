"""JSON from an untrusted file: duplicate keys, NaN and endless nesting are refused, never passed on."""

from __future__ import annotations

import json
from typing import Any, NoReturn

_LONGEST_SHOWN = 80


def parse_json(data: bytes) -> Any:
    """Parse UTF-8 JSON; ValueError (one line, the reason only) for anything that the standard does not define.

    A number beyond float64, such as 1e400, parses to infinity: who reads a number checks its range.
    """
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=_unique_keys, parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None


def shown(value: object) -> str:
    """A value from an untrusted file as it may stand in a one-line message: ASCII, short, whatever it holds."""
    if isinstance(value, int) and value.bit_length() > 128:
        return f"an integer of {value.bit_length()} bits"
    try:
        text = json.dumps(value)
    except (ValueError, TypeError, RecursionError):
        return f"a {type(value).__name__}"
    return text if len(text) <= _LONGEST_SHOWN else text[: _LONGEST_SHOWN - 3] + "..."


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members: dict[str, Any] = {}
    for key, value in pairs:
        if key in members:
            raise ValueError(f"key {shown(key)} appears twice in one object")
        members[key] = value
    return members


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")
