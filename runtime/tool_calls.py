"""Tool calls in a model's text, <|tool_call_start|>[name(arg="v")]<|tool_call_end|>: read, never executed."""

from __future__ import annotations

import ast
import math
import warnings
from dataclasses import dataclass
from typing import Any

from ..strict_json import parse_json

TOOL_CALL_START = "<|tool_call_start|>"
TOOL_CALL_END = "<|tool_call_end|>"
# Python's parser needs memory far above the text's own size; no real call comes near this.
MAX_CALL_CHARACTERS = 200_000
_MOST_LEVELS = 100
_MOST_BITS = 1024
"""Of an integer: those of the largest float64, beyond which JSON's numbers mean something else to every reader."""
_JSON_NAMES = {"true": True, "false": False, "null": None}


@dataclass(frozen=True)
class ToolCall:
    """One call that the model asks for; name and ``arguments`` are what a JSON text of them reads back as."""

    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class ToolCallText:
    """A text taken apart: ``content`` is the free text around the calls, ``malformed`` the calls nobody can read."""

    content: str
    calls: tuple[ToolCall, ...]
    malformed: tuple[str, ...] = ()


class _Malformed(ValueError):
    pass


def parse_tool_calls(text: str) -> ToolCallText:
    """Find every marked block in ``text`` and read its calls; a block that was cut off counts as malformed."""
    content: list[str] = []
    calls: list[ToolCall] = []
    malformed: list[str] = []
    rest = text
    while True:
        before, start, rest = rest.partition(TOOL_CALL_START)
        content.append(before)
        if not start:
            break
        block, end, rest = rest.partition(TOOL_CALL_END)
        try:
            if not end:
                raise _Malformed
            calls += parse_block(block)
        except _Malformed:
            malformed.append(block)
    return ToolCallText("".join(content).strip(), tuple(calls), tuple(malformed))


def parse_block(block: str) -> list[ToolCall]:
    """The calls of one block's inner text, whichever of both forms it has. ValueError if it has neither."""
    stripped = block.strip()
    if not stripped or len(stripped) > MAX_CALL_CHARACTERS:
        raise _Malformed("empty or too long")
    if stripped[0] == "{" or (stripped[0] == "[" and stripped[1:].lstrip()[:1] in ("{", "]")):
        return _json_calls(stripped)
    return _python_calls(stripped)


def _json_calls(text: str) -> list[ToolCall]:
    data = _json_value(text)
    return [_json_call(item) for item in (data if isinstance(data, list) else [data])]


def _json_value(text: str) -> Any:
    try:
        return parse_json(text.encode("utf-8", "surrogatepass"))
    except ValueError as error:
        raise _Malformed(str(error)) from error


def _json_call(item: Any) -> ToolCall:
    if isinstance(item, dict) and isinstance(item.get("function"), dict):
        item = item["function"]
    if not isinstance(item, dict) or not isinstance(item.get("name"), str):
        raise _Malformed("expected an object with a name")
    arguments = item.get("arguments", item.get("parameters", {}))
    if isinstance(arguments, str):
        arguments = _json_value(arguments)
    if not isinstance(arguments, dict):
        raise _Malformed("expected the arguments as an object")
    return ToolCall(_json_text(item["name"]), _json_data(arguments))


def _python_calls(text: str) -> list[ToolCall]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an unknown escape such as "\d" is the model's text, not our warning
            tree = ast.parse(_escape_line_breaks(text), mode="eval").body
        nodes = tree.elts if isinstance(tree, (ast.List, ast.Tuple)) else [tree]
        return [_python_call(node) for node in nodes]
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise _Malformed(str(error)) from error


def _python_call(node: ast.expr) -> ToolCall:
    name = ""
    while isinstance(node, ast.BinOp) and isinstance(node.op, ast.Sub):  # a dash in a tool's name parses as minus
        name = _dotted_name(node.left) + "-" + name
        node = node.right
    if not isinstance(node, ast.Call) or node.args:
        raise _Malformed("expected name(argument=value, …)")
    arguments = {}
    for keyword in node.keywords:
        if keyword.arg is None or keyword.arg in arguments:
            raise _Malformed("expected each argument once, by name")
        arguments[keyword.arg] = _plain_value(keyword.value)
    return ToolCall(name + _dotted_name(node.func), _json_data(arguments))


def _dotted_name(node: ast.expr) -> str:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{_dotted_name(node.value)}.{node.attr}"
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Sub):
        return f"{_dotted_name(node.left)}-{_dotted_name(node.right)}"
    raise _Malformed("expected a tool's name")


def _plain_value(node: ast.expr) -> Any:
    if isinstance(node, ast.Name) and node.id in _JSON_NAMES:
        return _JSON_NAMES[node.id]
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_plain_value(item) for item in node.elts]
    if isinstance(node, ast.Dict):
        keys = [_plain_value(key) if key is not None else key for key in node.keys]
        if not all(isinstance(key, (str, int, float, bool)) for key in keys):
            raise _Malformed("expected plain keys")
        return {key: _plain_value(value) for key, value in zip(keys, node.values, strict=True)}
    value = ast.literal_eval(node)
    if value is not None and not isinstance(value, (str, int, float, bool)):
        raise _Malformed(f"expected plain data, found {type(value).__name__}")
    return value


def _json_data(value: Any, level: int = 0) -> Any:
    """Plain data as JSON holds it: keys are texts, numbers finite; _Malformed for what it cannot hold."""
    if level > _MOST_LEVELS:
        raise _Malformed("nested too deeply")
    if isinstance(value, str):
        return _json_text(value)
    if isinstance(value, list):
        return [_json_data(item, level + 1) for item in value]
    if isinstance(value, dict):
        members = {_json_key(key): _json_data(item, level + 1) for key, item in value.items()}
        if len(members) < len(value):
            raise _Malformed("expected each key once")
        return members
    if isinstance(value, float) and not math.isfinite(value):
        raise _Malformed("expected finite numbers")
    if isinstance(value, int) and value.bit_length() > _MOST_BITS:
        raise _Malformed("expected numbers within float64")
    return value


def _json_key(key: str | float) -> str:
    if isinstance(key, bool):
        return "true" if key else "false"
    return _json_text(key) if isinstance(key, str) else str(_json_data(key))


def _json_text(text: str) -> str:
    """Halves of a character, written as two escapes, put together; _Malformed for a half alone."""
    try:
        return text.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError as error:
        raise _Malformed("expected whole characters") from error


def _escape_line_breaks(text: str) -> str:
    """Models write line breaks inside quotes as they are, which Python forbids: escape them."""
    out: list[str] = []
    quote = ""
    escaped = False
    for character in text:
        if quote:
            if character == "\n" and not escaped:
                character = "\\n"
            elif character == "\r" and not escaped:
                character = "\\r"
            elif character == quote and not escaped:
                quote = ""
            escaped = character == "\\" and not escaped
        elif character in "\"'":
            quote = character
        out.append(character)
    return "".join(out)
