"""Dialogues with tools: the offer in the system turn, the call, the tool's result and the answer drawn from it."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tiny_questions import UNKNOWN, Question
from tiny_world import TOWNS, invented_name, is_held_out

Tool = dict[str, Any]


def _tool(name: str, description: str, **types: str) -> Tool:
    # Keys stand in alphabetical order: a renderer that sorts JSON keys and one that does not give the same prompt.
    properties = {key: {"type": types[key]} for key in sorted(types)}
    parameters = {"properties": properties, "required": sorted(types), "type": "object"}
    return {"description": description, "name": name, "parameters": parameters}


TOOLS = {
    tool["name"]: tool
    for tool in (
        _tool("get_weather", "Weather of a town", town="string"),
        _tool("get_price", "Price of a thing", thing="string"),
        _tool("set_timer", "Start a timer", minutes="integer"),
        _tool("book_table", "Book a table", people="integer", town="string"),
        _tool("find_train", "Find a train", start="string", to="string"),
    )
}
THINGS = (
    "lamp",
    "chair",
    "kettle",
    "hat",
    "coat",
    "knife",
    "ladder",
    "mirror",
    "basket",
    "candle",
    "bucket",
    "broom",
    "pencil",
    "violin",
    "blanket",
    "shovel",
)
SKIES = ("rain", "sun", "snow", "fog", "wind", "clouds")


@dataclass(frozen=True)
class ToolDialogue:
    """A question that a tool answers.

    Attributes:
        question: the user's turn; its answer is the tool call, or UNKNOWN where the right tool is not offered.
        tools: the tools offered.
        result: what the tool returns; empty where no call is made.
        thought: the thought after the result.
        answer: the answer drawn from the result.
    """

    question: Question
    tools: list[Tool]
    result: str
    thought: str
    answer: str


def call_text(name: str, **arguments: str | int) -> str:
    """A call in LFM2.5's own syntax."""
    inner = ", ".join(f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in arguments.items())
    return f"<|tool_call_start|>[{name}({inner})]<|tool_call_end|>"


def _town(rng: random.Random) -> str:
    return rng.choice(TOWNS) if rng.random() < 0.4 else invented_name(rng)


Case = tuple[str, dict[str, str | int], dict[str, str | int], str]


def _weather(rng: random.Random) -> Case:
    town, sky, degrees = _town(rng), rng.choice(SKIES), rng.randint(0, 35)
    text = rng.choice(
        (
            "What is the weather in {t}?",
            "How is the weather in {t} today?",
            "Weather in {t}, please.",
            "Will it rain in {t}?",
        )
    ).format(t=town)
    return text, {"town": town}, {"degrees": degrees, "sky": sky}, f"{town}: {sky}, {degrees} degrees."


def _price(rng: random.Random) -> Case:
    thing, coins = rng.choice(THINGS), rng.randint(1, 99)
    if rng.random() < 0.6:
        thing = invented_name(rng).lower()
    text = rng.choice(
        ("What does a {t} cost?", "How much is a {t}?", "What is the price of a {t}?", "Tell me the price of a {t}.")
    ).format(t=thing)
    return text, {"thing": thing}, {"coins": coins}, f"A {thing} costs {coins} coins."


def _timer(rng: random.Random) -> Case:
    minutes = rng.randint(1, 99)
    text = rng.choice(
        (
            "Set a timer for {n} minutes.",
            "Start a timer of {n} minutes.",
            "Wake me in {n} minutes.",
            "Please set the timer to {n} minutes.",
        )
    ).format(n=minutes)
    return text, {"minutes": minutes}, {"ok": True}, f"The timer is set to {minutes} minutes."


def _table(rng: random.Random) -> Case:
    town, people = _town(rng), rng.randint(2, 12)
    text = rng.choice(
        (
            "Book a table for {n} people in {t}.",
            "I want a table in {t} for {n} people.",
            "Please book a table in {t} for {n}.",
            "We are {n} people and want to eat in {t}.",
        )
    )
    free = rng.random() < 0.6
    answer = f"The table in {town} is booked for {people} people." if free else f"There is no free table in {town}."
    result: dict[str, str | int] = {"ok": free}
    return text.format(t=town, n=people), {"people": people, "town": town}, result, answer


def _train(rng: random.Random) -> Case:
    start, to = _town(rng), _town(rng)
    time, platform = f"{rng.randint(6, 22)}:{rng.randint(10, 59)}", rng.randint(1, 9)
    text = rng.choice(
        (
            "When does the train from {a} to {b} leave?",
            "Find a train from {a} to {b}.",
            "I want to go to {b} from {a} by train.",
            "Is there a train from {a} to {b}?",
        )
    )
    answer = f"The train to {to} leaves at {time} from platform {platform}."
    return text.format(a=start, b=to), {"start": start, "to": to}, {"platform": platform, "time": time}, answer


CASES: dict[str, Callable[[random.Random], Case]] = {
    "get_weather": _weather,
    "get_price": _price,
    "set_timer": _timer,
    "book_table": _table,
    "find_train": _train,
}


def offer(rng: random.Random, *, including: str | None = None, without: str | None = None) -> list[Tool]:
    """Up to three tools in random order, with or without a given one."""
    others = [name for name in TOOLS if name not in (including, without)]
    names = rng.sample(others, rng.randint(0, 2)) + ([including] if including else [])
    rng.shuffle(names)
    return [TOOLS[name] for name in names]


def tool_dialogue(rng: random.Random, *, held_out: bool) -> ToolDialogue:
    """Draw a dialogue from one side of the split; in one of four the right tool is not offered."""
    while True:
        name = rng.choice(tuple(CASES))
        text, arguments, result, answer = CASES[name](rng)
        if is_held_out(text) != held_out:
            continue
        if rng.random() < 0.25:
            question = Question("tool_missing", text, f"{name} is not in the list.", UNKNOWN, text)
            return ToolDialogue(question, offer(rng, without=name), "", "", "")
        question = Question("tool_call", text, f"{name} is in the list.", call_text(name, **arguments), text)
        return ToolDialogue(question, offer(rng, including=name), json.dumps(result), "The result is here.", answer)
