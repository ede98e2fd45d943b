"""From prompts of any kind (built in, text, JSON lines, tasks) to chunks of token ids within a budget."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...checkpoint.tokenizer import ChatTokenizer
from ...errors import InputError
from .default_prompts import CHATS, TEXTS
from .tasks import Task, objects, read_json_lines

if TYPE_CHECKING:
    from .compare import ParityOptions

# No tokenizer in use makes more characters into one token than this, in running text.
_CHARACTERS_PER_TOKEN = 32
_RANDOM_LENGTHS = (64, 2, 17, 1, 128, 33)


@dataclass(frozen=True)
class Prompt:
    """A raw text, or a conversation with its tools."""

    label: str
    text: str | None = None
    messages: Sequence[dict[str, Any]] = ()
    tools: Sequence[dict[str, Any]] | None = None


@dataclass(frozen=True)
class Chunk:
    """Token ids that both models read in one go, from position 0."""

    label: str
    ids: list[int]


def chunks_to_compare(
    options: ParityOptions,
    tasks: Sequence[Task],
    tokenizer: ChatTokenizer | None,
    vocab_size: int,
    context_length: int,
    progress: Callable[[str], None],
) -> list[Chunk]:
    """What ``options`` ask for: token ids, random ones without a tokenizer, prompts from a file, of the tasks, or ours.

    InputError where that is nothing, or where a greedy continuation would not fit behind it into ``context_length``.
    """
    limit = min(options.chunk_tokens, context_length - options.greedy_tokens)
    if limit < 1 or options.tokens < 1:
        raise InputError(f"nothing to compare: {options.tokens} tokens, {limit} of them in one chunk")
    if options.token_ids is not None:
        longest = max(map(len, options.token_ids), default=0)
        if not options.token_ids or longest + options.greedy_tokens > context_length:
            raise InputError(
                f"expected 1 or more chunks that leave {options.greedy_tokens} tokens of the context "
                f"({context_length}), found {len(options.token_ids)} of up to {longest} tokens"
            )
        return [Chunk(f"ids {number}", list(ids)) for number, ids in enumerate(options.token_ids, 1)]
    if tokenizer is None:
        progress("no tokenizer in the artifact: comparing on random token ids")
        return random_chunks(vocab_size, tokens=options.tokens, chunk_tokens=limit)
    if options.prompts is not None:
        prompts = read_prompts(options.prompts, options.tokens)
    elif tasks:
        prompts = task_prompts(tasks)
    else:
        prompts = default_prompts(chats=tokenizer.has_template)
    return chunks_of(prompts, tokenizer, tokens=options.tokens, chunk_tokens=limit)


def default_prompts(*, chats: bool) -> list[Prompt]:
    """The built-in ones; without conversations where the tokenizer has no template."""
    texts = [Prompt(label, text=text) for label, text in TEXTS]
    return [*(Prompt(label, messages=m, tools=t) for label, m, t in CHATS if chats), *texts]


def read_prompts(path: Path, tokens: int) -> list[Prompt]:
    """A .jsonl file with "text", "prompt" or "messages" (and "tools") on each line, or any other as one plain text.

    Of a plain text only so much is read as ``tokens`` can hold. Raises InputError.
    """
    if path.suffix.lower() in (".jsonl", ".ndjson"):
        prompts = [_prompt(data, where, f"line {n}") for n, (where, data) in enumerate(read_json_lines(path), 1)]
    else:
        try:
            with path.open(encoding="utf-8") as file:
                text = file.read(tokens * _CHARACTERS_PER_TOKEN)
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


def chunks_of(prompts: Sequence[Prompt], tokenizer: ChatTokenizer, *, tokens: int, chunk_tokens: int) -> list[Chunk]:
    """At most ``tokens`` tokens in chunks of at most ``chunk_tokens``; InputError if there are none.

    A text that is longer becomes several chunks, each beginning with the tokenizer's own first tokens (bos).
    """
    found: list[Chunk] = []
    left = tokens
    for label, ids in _pieces(prompts, tokenizer, chunk_tokens):
        # A single token has no next one to predict; it is only worth having if there is nothing else.
        if left < 2 and found:
            break
        found.append(Chunk(label, ids[:left]))
        left -= len(found[-1].ids)
    if not found:
        raise InputError("the prompts hold no tokens: nothing to compare")
    return found


def random_chunks(vocab_size: int, *, tokens: int, chunk_tokens: int) -> list[Chunk]:
    """Seeded random token ids, for a model that has no tokenizer: chunks of 1 to 128 tokens."""
    random = np.random.default_rng(0)
    found: list[Chunk] = []
    for number, length in enumerate(_RANDOM_LENGTHS, 1):
        length = min(length, chunk_tokens, tokens - sum(len(chunk.ids) for chunk in found))
        if length > 0:
            found.append(Chunk(f"random ids {number}", random.integers(0, vocab_size, length).tolist()))
    return found


def _pieces(prompts: Sequence[Prompt], tokenizer: ChatTokenizer, chunk_tokens: int) -> Iterator[tuple[str, list[int]]]:
    for prompt in prompts:
        if prompt.text is None:
            whose_turn = prompt.messages[-1].get("role") != "assistant"
            rendered = tokenizer.render(prompt.messages, prompt.tools or None, add_generation_prompt=whose_turn)
            prefix, body = [], tokenizer.encode(rendered)
        else:
            prefix, body = tokenizer.encode("", add_special=True), tokenizer.encode(prompt.text)
        size = max(1, chunk_tokens - len(prefix))
        count = -(-len(body) // size)
        for number in range(count):
            label = prompt.label if count == 1 else f"{prompt.label}, part {number + 1}"
            yield label, [*prefix, *body[number * size : (number + 1) * size]][:chunk_tokens]


def _prompt(data: dict[str, Any], where: str, label: str) -> Prompt:
    label = data["id"] if isinstance(data.get("id"), str) else label
    if "messages" in data:
        tools = objects(data["tools"], where, "tools") if data.get("tools") else None
        return Prompt(label, messages=objects(data["messages"], where, "messages"), tools=tools)
    text = data.get("text", data.get("prompt"))
    if not isinstance(text, str):
        raise InputError(f'{where}: expected a "text", "prompt" or "messages" of the right kind, found none')
    return Prompt(label, text=text)


def _dicts(tools: Iterable[Any] | None) -> list[dict[str, Any]] | None:
    return [dict(tool) for tool in tools] if tools else None
