"""From prompts to passages: pieces of text as token ids, within a budget, that both models read from the start."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ...checkpoint.tokenizer import ChatTokenizer
from ...errors import InputError
from .options import ParityOptions
from .prompts import Prompt, default_prompts, read_prompts, task_prompts
from .tasks import Task

_RANDOM_LENGTHS = (64, 2, 17, 1, 128, 33)


@dataclass(frozen=True)
class Passage:
    """Token ids that both models read in one go, from position 0."""

    label: str
    ids: list[int]


def passages_to_compare(
    options: ParityOptions,
    tasks: Sequence[Task],
    tokenizer: ChatTokenizer | None,
    vocab_size: int,
    context_length: int,
    progress: Callable[[str], None],
) -> list[Passage]:
    """What ``options`` ask for: token ids, random ones without a tokenizer, prompts from a file, of the tasks, or ours.

    InputError where that is nothing, or where a greedy continuation would not fit behind it into ``context_length``.
    """
    limit = min(options.passage_tokens, context_length - options.greedy_tokens)
    if limit < 1 or options.tokens < 1:
        raise InputError(f"nothing to compare: {options.tokens} tokens, {limit} of them in one passage")
    if options.token_ids is not None:
        longest = max(map(len, options.token_ids), default=0)
        if not options.token_ids or longest + options.greedy_tokens > context_length:
            raise InputError(
                f"expected 1 or more passages that leave {options.greedy_tokens} tokens of the context "
                f"({context_length}), found {len(options.token_ids)} of up to {longest} tokens"
            )
        return [Passage(f"ids {number}", list(ids)) for number, ids in enumerate(options.token_ids, 1)]
    if tokenizer is None:
        progress("no tokenizer in the artifact: comparing on random token ids")
        return random_passages(vocab_size, tokens=options.tokens, passage_tokens=limit)
    if options.prompts is not None:
        prompts = read_prompts(options.prompts, options.tokens)
    elif tasks:
        prompts = task_prompts(tasks)
    else:
        prompts = default_prompts(chats=tokenizer.has_template)
    return passages_of(prompts, tokenizer, tokens=options.tokens, passage_tokens=limit)


def passages_of(
    prompts: Sequence[Prompt], tokenizer: ChatTokenizer, *, tokens: int, passage_tokens: int
) -> list[Passage]:
    """At most ``tokens`` tokens in passages of at most ``passage_tokens``; InputError if there are none.

    A text that is longer becomes several passages, each beginning with the tokenizer's own first tokens (bos).
    """
    passages: list[Passage] = []
    left = tokens
    for label, ids in _pieces(prompts, tokenizer, passage_tokens):
        # A single token has no next one to predict; it is only worth having if there is nothing else.
        if left < 2 and passages:
            break
        passages.append(Passage(label, ids[:left]))
        left -= len(passages[-1].ids)
    if not passages:
        raise InputError("the prompts hold no tokens: nothing to compare")
    return passages


def random_passages(vocab_size: int, *, tokens: int, passage_tokens: int) -> list[Passage]:
    """Seeded random token ids, for a model that has no tokenizer: passages of 1 to 128 tokens."""
    random = np.random.default_rng(0)
    passages: list[Passage] = []
    for number, length in enumerate(_RANDOM_LENGTHS, 1):
        length = min(length, passage_tokens, tokens - sum(len(passage.ids) for passage in passages))
        if length > 0:
            passages.append(Passage(f"random ids {number}", random.integers(0, vocab_size, length).tolist()))
    return passages


def _pieces(
    prompts: Sequence[Prompt], tokenizer: ChatTokenizer, passage_tokens: int
) -> Iterator[tuple[str, list[int]]]:
    for prompt in prompts:
        if prompt.text is None:
            whose_turn = prompt.messages[-1].get("role") != "assistant"
            rendered = tokenizer.render(prompt.messages, prompt.tools or None, add_generation_prompt=whose_turn)
            prefix, body = [], tokenizer.encode(rendered)
        else:
            prefix, body = tokenizer.encode("", add_special=True), tokenizer.encode(prompt.text)
        size = max(1, passage_tokens - len(prefix))
        count = -(-len(body) // size)
        for number in range(count):
            label = prompt.label if count == 1 else f"{prompt.label}, part {number + 1}"
            yield label, [*prefix, *body[number * size : (number + 1) * size]][:passage_tokens]
