"""Tasks with one right answer each: reading the file, answering greedily, grading by exact match."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...checkpoint.tokenizer import ChatTokenizer
from ...errors import InputError
from ...strict_json import JsonObject, read_untrusted
from .report.contents import TaskAccuracy, TaskAnswer

_END_OF_THOUGHT = "</think>"
_MAX_FILE_BYTES = 256 << 20


@dataclass(frozen=True)
class Task:
    """A conversation, the tools that it may use, and the text that the assistant must answer with."""

    task_id: str
    category: str
    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] | None
    expected: str
    max_new_tokens: int

    def prompt_ids(self, tokenizer: ChatTokenizer) -> list[int]:
        """The conversation through the checkpoint's chat template, up to where the assistant begins."""
        return tokenizer.encode(tokenizer.render(self.messages, self.tools or None))


def read_tasks(path: Path) -> list[Task]:
    """One object per line: id, category, messages, expected, max_new_tokens and perhaps tools. Raises InputError."""
    tasks = [_task(fields) for fields in read_json_lines(path)]
    if not tasks:
        raise InputError(f"{path}: holds no task, expected one JSON object per line")
    return tasks


def read_json_lines(path: Path) -> list[JsonObject]:
    """The object of every line that is not blank; InputError says which line is no JSON object."""
    lines = read_untrusted(path, InputError, _MAX_FILE_BYTES).splitlines()
    return [
        JsonObject.parse(line, f"{path}, line {number}", InputError)
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]


def objects(fields: JsonObject, name: str) -> list[dict[str, Any]]:
    """The member ``name``, a list of at least one object."""
    return [dict(item.data) for item in fields.objects(name, may_be_empty=False)]


def _task(fields: JsonObject) -> Task:
    return Task(
        fields.text("id"),
        fields.text("category"),
        objects(fields, "messages"),
        objects(fields, "tools") if fields.data.get("tools") else None,
        fields.text("expected"),
        fields.integer("max_new_tokens", 1, 1 << 20),
    )


def final_answer(tokenizer: ChatTokenizer, ids: Sequence[int], eos_token_ids: Collection[int]) -> str:
    """The graded part of a reply: up to its first end token, after its last ``</think>``, without outer blanks."""
    end = next((i for i, token in enumerate(ids) if token in eos_token_ids), len(ids))
    return tokenizer.decode(list(ids[:end]), skip_special=False).rpartition(_END_OF_THOUGHT)[2].strip()


def answer_tasks(
    tasks: Sequence[Task],
    tokenizer: ChatTokenizer,
    greedy: Callable[[Sequence[int], int, Collection[int]], list[int]],
    eos_token_ids: Collection[int],
    context_length: int,
    progress: Callable[[str], None],
) -> TaskAccuracy:
    """Answer every task with ``greedy(prompt ids, max_new_tokens, eos)``; InputError where one exceeds the context."""
    counts: dict[str, tuple[int, int]] = {}
    wrong = []
    for number, task in enumerate(tasks, 1):
        prompt = task.prompt_ids(tokenizer)
        if len(prompt) + task.max_new_tokens > context_length:
            raise InputError(
                f"task {task.task_id}: {len(prompt)} prompt tokens and {task.max_new_tokens} new ones exceed the "
                f"artifact's context of {context_length}; export it with a longer `context_length`"
            )
        answer = final_answer(tokenizer, greedy(prompt, task.max_new_tokens, eos_token_ids), eos_token_ids)
        right, count = counts.get(task.category, (0, 0))
        correct = answer == task.expected
        counts[task.category] = (right + correct, count + 1)
        if not correct:
            wrong.append(TaskAnswer(task.task_id, task.category, task.expected, answer))
        if number % 25 == 0 or number == len(tasks):
            progress(f"{number} of {len(tasks)}, {number - len(wrong)} right")
    return TaskAccuracy(dict(sorted(counts.items())), wrong)
