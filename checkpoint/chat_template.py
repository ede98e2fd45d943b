"""Renders a checkpoint's chat template as transformers does, in a sandbox with limits on work and size."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from ..errors import TokenizerError

THINK_START, THINK_END = "<think>", "</think>"
# Far above any conversation that fits a context of 128000 tokens.
MAX_LOOP_STEPS = 1_000_000
MAX_CHARACTERS = 16_000_000
MAX_BITS = 4096
_WIDE_FORMAT = re.compile(r"%[^%a-zA-Z]*(\d{5}|\*)")
_REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")


class ChatTemplate:
    """A compiled template. The source comes with the checkpoint, so it is untrusted: see ``_Sandbox``."""

    def __init__(self, source: str) -> None:
        """Compile ``source``; TokenizerError if it is not a template."""
        try:
            self._environment = _Sandbox()
            self._template = self._environment.from_string(source)
        except Exception as error:  # a hostile source makes the compiler fail in any way: deep nesting, bad names
            raise _failed("cannot be compiled", error) from error

    def render(self, messages: Sequence[Mapping[str, Any]], **variables: Any) -> str:
        """The prompt text of ``messages``. TokenizerError, one line, when the template fails or exceeds its limits."""
        self._environment.loop_steps = 0
        pieces: list[str] = []
        size = 0
        try:
            for piece in self._template.generate(messages=[_message(message) for message in messages], **variables):
                pieces.append(piece)
                size += len(piece)
                _bounded(size, MAX_CHARACTERS, "characters of text")
        except Exception as error:
            raise _failed("cannot render this conversation", error) from error
        return "".join(pieces)


def _failed(what: str, error: Exception) -> TokenizerError:
    reason = " ".join(str(error).split()) or type(error).__name__
    line = getattr(error, "lineno", None)
    return TokenizerError(f"the chat template {what}: {reason[:300]}{f' (template line {line})' if line else ''}")


def _message(message: Mapping[str, Any]) -> Mapping[str, Any]:
    present = {key: value for key, value in message.items() if value is not None}
    reasoning = next((present[key] for key in _REASONING_KEYS if key in present), None)
    return present if reasoning is None else {"thinking": reasoning, **present, "reasoning_content": reasoning}


def _bounded(size: int, limit: int, unit: str) -> None:
    if size > limit:
        raise jinja2.exceptions.SecurityError(f"it exceeds the limit of {limit} {unit}")


class _Sandbox(ImmutableSandboxedEnvironment):
    """jinja2's sandbox, whitespace rules and extra names as chat templates expect them, and two budgets.

    jinja2 bounds a single range() only: here every pass of any loop counts against ``MAX_LOOP_STEPS``, and text may
    not grow by ``+``, ``~``, ``*`` or ``%`` beyond ``MAX_CHARACTERS``.
    """

    intercepted_binops = frozenset(("+", "*", "%", "**"))

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _GenerationTag])
        self.loop_steps = 0
        self.filters["tojson"] = _to_json
        self.globals.update(
            raise_exception=_raise_exception,
            strftime_now=lambda pattern: datetime.now().strftime(pattern),
            namespace=_PlainNamespace,
        )

    def call_binop(self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "+":
            _bounded(_length(left) + _length(right), MAX_CHARACTERS, "items in one value")
        elif operator == "**":
            _bounded(_bits(left) * abs(right), MAX_BITS, "bits in a number")
        elif operator == "*":
            _bounded(_bits(left) + _bits(right), MAX_BITS, "bits in a number")
            for value, times in ((left, right), (right, left)):
                if isinstance(times, int):
                    _bounded(_length(value) * max(times, 0), MAX_CHARACTERS, "items in one value")
        elif isinstance(left, str) and _WIDE_FORMAT.search(left):
            raise jinja2.exceptions.SecurityError("a format asks for too wide a field")
        return super().call_binop(context, operator, left, right)

    def count_loop_step(self) -> bool:
        self.loop_steps += 1
        _bounded(self.loop_steps, MAX_LOOP_STEPS, "loop steps")
        return True

    def concatenate(self, *parts: Any) -> str:
        texts = [str(part) for part in parts]
        _bounded(sum(map(len, texts)), MAX_CHARACTERS, "characters of text")
        return "".join(texts)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        return _Budgeted().visit(super()._parse(source, name, filename))


class _Budgeted(NodeTransformer):
    """Makes every loop pass and every ``~`` of a parsed template go through the sandbox's budgets."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        self.generic_visit(node)
        step = nodes.Call(nodes.EnvironmentAttribute("count_loop_step"), [], [], None, None)
        node.body.insert(0, nodes.ExprStmt(step).set_lineno(node.lineno))
        if node.test is not None:
            node.test = nodes.And(step, node.test).set_lineno(node.lineno)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Call:
        self.generic_visit(node)
        return nodes.Call(nodes.EnvironmentAttribute("concatenate"), node.nodes, [], None, None, lineno=node.lineno)


class _GenerationTag(Extension):
    """{% generation %}…{% endgeneration %} marks the assistant's part for training; rendering shows its body."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: jinja2.parser.Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _PlainNamespace(Namespace):
    """namespace() without names that begin with an underscore."""

    def __setitem__(self, name: str, value: Any) -> None:
        if str(name).startswith("_"):
            raise jinja2.exceptions.SecurityError(f"a namespace cannot hold the name {name}")
        super().__setitem__(name, value)


def _length(value: Any) -> int:
    return len(value) if isinstance(value, (str, list, tuple)) else 0


def _bits(value: Any) -> int:
    return value.bit_length() if isinstance(value, int) else 0


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> Callable[..., Any]:
    raise jinja2.exceptions.TemplateError(message)
