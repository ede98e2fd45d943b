"""Chats made of questions and tool dialogues, and the held-out tasks that the sample model is graded on."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from typing import Any

from tiny_questions import (
    Question,
    arithmetic,
    compare,
    conversion,
    draw,
    fact,
    follow_up,
    small_talk,
    two_hop,
    unknown,
)
from tiny_tokenizer import render
from tiny_tool_dialogues import Tool, offer, tool_dialogue
from tiny_world import INVENTED_NAMES, is_held_out

Message = dict[str, str]
Chat = tuple[list[Message], list[Tool]]

SYSTEM_TEXTS = (
    "You are a helpful assistant.",
    "You are a helpful assistant of the valley.",
    "Answer in one sentence.",
    "You know the people, towns and animals of the valley.",
    "Think first, then answer.",
)


def reply(thought: str, answer: str) -> Message:
    """An assistant turn with its thinking."""
    return {"role": "assistant", "content": f"<think>{thought}</think>{answer}"}


def user(text: str) -> Message:
    """A user turn."""
    return {"role": "user", "content": text}


def _exchange(question: Question) -> list[Message]:
    return [user(question.text), reply(question.thought, question.answer)]


def _follow_up_of(rng: random.Random, previous: Question, *, held_out: bool) -> Question:
    while True:
        question = follow_up(rng, previous)
        if is_held_out(question.key) == held_out:
            return question


def _tool_exchange(rng: random.Random) -> tuple[list[Message], list[Tool]]:
    dialogue = tool_dialogue(rng, held_out=False)
    messages = _exchange(dialogue.question)
    if dialogue.result:
        if rng.random() < 0.4:  # a client may hand the call back without the thinking before it
            messages[1] = {"role": "assistant", "content": dialogue.question.answer}
        messages += [{"role": "tool", "content": dialogue.result}, reply(dialogue.thought, dialogue.answer)]
    return messages, dialogue.tools


def training_chat(rng: random.Random) -> Chat:
    """One chat of one to four exchanges, none of them held out.

    Returns:
        The messages, assistant turns with thinking, and the tools offered in the system turn.
    """
    messages: list[Message] = []
    tools: list[Tool] = []
    if rng.random() < 0.4:
        messages.append({"role": "system", "content": rng.choice(SYSTEM_TEXTS)})
    with_tools = rng.random() < 0.36
    if with_tools and rng.random() < 0.1:
        tools = offer(rng)
        messages += _exchange(draw(rng, held_out=False))
    elif with_tools:
        exchange, tools = _tool_exchange(rng)
        before = _exchange(draw(rng, held_out=False)) if rng.random() < 0.15 else []
        after = _exchange(draw(rng, held_out=False)) if rng.random() < 0.3 else []
        messages += before + exchange + after
    else:
        for _ in range(rng.choices((1, 2, 3, 4), weights=(4, 3, 2, 2))[0]):
            question = draw(rng, held_out=False)
            messages += _exchange(question)
            if question.about and rng.random() < 0.35:
                messages += _exchange(_follow_up_of(rng, question, held_out=False))
    return messages, tools


def training_chats(seed: int) -> Iterator[tuple[list[Message], list[Tool], bool]]:
    """Endless training chats, the same for the same seed.

    Yields:
        Messages, tools, and whether earlier thinking stays in the prompt (chats differ in that by client).
    """
    rng = random.Random(f"chats {seed}")
    while True:
        messages, tools = training_chat(rng)
        yield messages, tools, rng.random() < 0.8


def tokenizer_texts(seed: int) -> Iterator[str]:
    """What the tokenizer learns its merges from: rendered chats, and the invented names wherever they may stand.

    The names are repeated so that a syllable is one token at a word's start, after a space and in lower case: a name
    is then copied token by token.
    """
    for messages, tools, keep in itertools.islice(training_chats(seed), 12000):
        yield render(messages, tools, keep_past_thinking=keep)
    for name in INVENTED_NAMES * 4:
        yield from (name, f" {name}", name.lower(), f" {name.lower()}")


GENERATOR_OF: dict[str, Callable[[random.Random], Question]] = {
    "person": fact,
    "town": fact,
    "animal": fact,
    "two_hop": two_hop,
    "compare": compare,
    "arithmetic": arithmetic,
    "conversion": conversion,
    "unknown": unknown,
    "small_talk": small_talk,
}
TASKS_PER_CATEGORY = {
    "person": 26,
    "town": 22,
    "animal": 10,
    "two_hop": 24,
    "compare": 16,
    "arithmetic": 36,
    "conversion": 14,
    "unknown": 14,
    "small_talk": 4,
    "follow_up": 14,
    "tool_call": 20,
    "tool_answer": 14,
    "tool_missing": 4,
}


def _task(rng: random.Random, category: str) -> tuple[list[Message], list[Tool], str]:
    if category == "follow_up":
        while True:
            previous = draw(rng, held_out=False, generator=fact)
            if any(is_held_out(follow_up(rng, previous).key) for _ in range(40)):
                break
        question = _follow_up_of(rng, previous, held_out=True)
        past = [user(previous.text), {"role": "assistant", "content": previous.answer}]
        return [*past, user(question.text)], [], question.answer
    if category.startswith("tool"):
        wanted = "tool_missing" if category == "tool_missing" else "tool_call"
        while (dialogue := tool_dialogue(rng, held_out=True)).question.category != wanted:
            pass
        messages = [user(dialogue.question.text)]
        if category != "tool_answer":
            return messages, dialogue.tools, dialogue.question.answer
        messages.append({"role": "assistant", "content": dialogue.question.answer})
        return [*messages, {"role": "tool", "content": dialogue.result}], dialogue.tools, dialogue.answer
    while (question := draw(rng, held_out=True, generator=GENERATOR_OF[category])).category != category:
        pass
    return [user(question.text)], [], question.answer


def held_out_tasks(seed: int = 0) -> list[dict[str, Any]]:
    """The graded tasks: prompts that training never draws, with the one right answer.

    Returns:
        One dict a task: ``id, category, messages, tools`` (where offered), ``expected, max_new_tokens``.
    """
    rng = random.Random(f"tasks {seed}")
    tasks: list[dict[str, Any]] = []
    seen: set[str] = set()
    for category, count in TASKS_PER_CATEGORY.items():
        number = 0
        while number < count:
            messages, tools, expected = _task(rng, category)
            if repr(messages) in seen:
                continue
            seen.add(repr(messages))
            if rng.random() < 0.4:
                messages = [{"role": "system", "content": rng.choice(SYSTEM_TEXTS)}, *messages]
            task: dict[str, Any] = {"id": f"{category}-{number:02d}", "category": category, "messages": messages}
            if tools:
                task["tools"] = tools
            tasks.append({**task, "expected": expected, "max_new_tokens": 96})
            number += 1
    return tasks
