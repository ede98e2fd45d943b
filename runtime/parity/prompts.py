"""Prompts of any kind: built in, a text, JSON lines, tasks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from ...errors import InputError
from ...strict_json import JsonObject, require_regular_file
from .default_prompts import CHATS, TEXTS
from .tasks import Task, objects, read_json_lines

# No tokenizer in use makes more characters into one token than this, in running text.
_CHARACTERS_PER_TOKEN = 32
_MOST_CHARACTERS = 64 << 20


@dataclass(frozen=True)
class Prompt:
    """A raw text, or a conversation with its tools."""

    label: str
    text: str | None = None
    messages: Sequence[dict[str, Any]] = ()
    tools: Sequence[dict[str, Any]] | None = None


def default_prompts(*, chats: bool) -> list[Prompt]:
    """The built-in ones; without conversations where the tokenizer has no template."""
    texts = [Prompt(label, text=text) for label, text in TEXTS]
    return [*(Prompt(label, messages=m, tools=t) for label, m, t in CHATS if chats), *texts]


def read_prompts(path: Path, tokens: int) -> list[Prompt]:
    """A .jsonl file with "text", "prompt" or "messages" (and "tools") on each line, or any other as one plain text.

    Of a plain text only so much is read as ``tokens`` can hold. Raises InputError.
    """
    if path.suffix.lower() in (".jsonl", ".ndjson"):
        prompts = [_prompt(fields, f"line {n}") for n, fields in enumerate(read_json_lines(path), 1)]
    else:
        try:
            require_regular_file(path, InputError)
            with path.open(encoding="utf-8-sig") as file:
                text = file.read(min(tokens * _CHARACTERS_PER_TOKEN, _MOST_CHARACTERS))
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
        except UnicodeDecodeError as error:
            raise InputError(f"{path}: not UTF-8 at byte {error.start}; prompts are plain text or .jsonl") from error
        prompts = [Prompt(path.name, text=text)] if text.strip() else []
    if not prompts:
        raise InputError(f"{path}: holds no prompt")
    return prompts


def task_prompts(tasks: Iterable[Task]) -> list[Prompt]:
    """The tasks' conversations, one of each category in turn, so that a small budget of tokens meets all of them."""
    by_category: dict[str, list[Task]] = {}
    for task in tasks:
        by_category.setdefault(task.category, []).append(task)
    in_turn = (task for group in zip_longest(*by_category.values()) for task in group if task is not None)
    return [Prompt(task.task_id, messages=[*map(dict, task.messages)], tools=_dicts(task.tools)) for task in in_turn]


def _prompt(fields: JsonObject, label: str) -> Prompt:
    if isinstance(fields.data.get("id"), str):
        label = fields.text("id")
    if "messages" in fields:
        tools = objects(fields, "tools") if fields.data.get("tools") else None
        return Prompt(label, messages=objects(fields, "messages"), tools=tools)
    if "text" not in fields and "prompt" not in fields:
        raise fields.wrong('expected a "text", "prompt" or "messages", found none')
    return Prompt(label, text=fields.text("text" if "text" in fields else "prompt"))


def _dicts(tools: Iterable[Any] | None) -> list[dict[str, Any]] | None:
    return [dict(tool) for tool in tools] if tools else None
