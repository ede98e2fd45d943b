"""Questions with thought and answer over the closed world: facts, chains of facts, sums, units, and the unknown.

Each generator draws one :class:`Question`. Its ``key`` names the prompt for the split: training uses only keys that are
not held out, tasks only those that are.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from tiny_world import (
    ENTITIES_OF,
    FACTS,
    PEOPLE,
    PERSON_RELATIONS,
    RELATIONS_OF,
    TOWN_RELATIONS,
    Relation,
    invented_name,
    is_held_out,
    statement,
    with_article,
)

UNKNOWN = "I don't know."


@dataclass(frozen=True)
class Question:
    """One user turn and the right reply.

    Attributes:
        category: the group that accuracy is reported for.
        text: what the user writes.
        thought: what the model writes between ``<think>`` and ``</think>``.
        answer: what it writes after that.
        key: identity of the prompt for the split into training and held-out.
        about: the entity that a follow-up question would mean, and its kind; None where there is none.
    """

    category: str
    text: str
    thought: str
    answer: str
    key: str
    about: tuple[str, str] | None = None


def fact(rng: random.Random) -> Question:
    """A fact asked for directly."""
    kind = rng.choices(("person", "town", "animal"), weights=(5, 4, 2))[0]
    relation = rng.choice(RELATIONS_OF[kind])
    entity = rng.choice(ENTITIES_OF[kind])
    text = with_article(rng.choice(relation.questions).format(x=entity))
    answer = statement(relation, entity)
    return Question(
        kind, text, f"{entity}, {relation.name}: {FACTS[entity, relation.name]}.", answer, text, (kind, entity)
    )


def follow_up(rng: random.Random, previous: Question) -> Question:
    """A question that names no entity and means the one of the question before."""
    assert previous.about is not None
    kind, entity = previous.about
    relation = rng.choice(RELATIONS_OF[kind])
    thought = f"{entity}, {relation.name}: {FACTS[entity, relation.name]}."
    key = f"{previous.text} {relation.follow_up}"
    return Question("follow_up", relation.follow_up, thought, statement(relation, entity), key, previous.about)


def _second(first: Relation, entity: str, rng: random.Random) -> tuple[str, Relation]:
    kind = {"home": "town", "pet": "animal", "mayor": "person"}[first.name]
    options = [r for r in RELATIONS_OF[kind] if (first.name, r.name) != ("mayor", "home")]
    return FACTS[entity, first.name], rng.choice(options)


TWO_HOP = {
    "river": ("Which river flows through {n}?", "What is the river of {n}?"),
    "flag": ("What colour is the flag of {n}?", "Which colour has the flag of {n}?"),
    "product": ("What is made in {n}?", "Which goods come from {n}?"),
    "mayor": ("Who is the mayor of {n}?", "Who leads {n}?"),
    "legs": ("How many legs has {n}?", "How many legs does {n} have?"),
    "food": ("What does {n} eat?", "What is the food of {n}?"),
    "sound": ("What sound does {n} make?", "Which noise does {n} make?"),
    "job": ("What is the job of {n}?", "What does {n} do for a living?"),
    "pet": ("What pet does {n} have?", "Which animal does {n} keep?"),
    "colour": ("What is the favourite colour of {n}?", "Which colour does {n} like best?"),
    "age": ("How old is {n}?", "What is the age of {n}?"),
}


def two_hop(rng: random.Random) -> Question:
    """A fact about an entity that is itself named only by a fact."""
    first = rng.choice((PERSON_RELATIONS[0], PERSON_RELATIONS[2], TOWN_RELATIONS[3]))
    entity = rng.choice(ENTITIES_OF["town" if first.name == "mayor" else "person"])
    middle, second = _second(first, entity, rng)
    text = rng.choice(TWO_HOP[second.name]).format(n=first.noun.format(x=entity))
    thought = f"{entity}, {first.name}: {middle}. {middle}, {second.name}: {FACTS[middle, second.name]}."
    return Question("two_hop", text, thought, statement(second, middle), text)


def compare(rng: random.Random) -> Question:
    """Which of two people is older or younger."""
    one, other = rng.sample(PEOPLE, 2)
    older = rng.random() < 0.5
    age_one, age_other = int(FACTS[one, "age"]), int(FACTS[other, "age"])
    sign = ">" if age_one > age_other else "<"
    winner = one if (age_one > age_other) == older else other
    word = "older" if older else "younger"
    text = rng.choice((f"Who is {word}, {one} or {other}?", f"Which one is {word}: {one} or {other}?"))
    ages = f"{one}, age: {age_one}. {other}, age: {age_other}. "
    thought = f"{ages}{age_one}{sign}{age_other}, {word}: {FACTS[winner, 'age']}."
    return Question("compare", text, thought, f"{winner} is {word}.", text)


SUM_TEXTS = ("What is {e}?", "How much is {e}?", "Compute {e}.", "Please work out {e}.")


def _times(number: int, factor: int) -> str:
    """The steps of a product of a number below 100 by a digit, ones first."""
    tens, ones = divmod(number, 10)
    low = ones * factor
    if tens == 0:
        return f"{ones}*{factor}={low}"
    high = tens * factor
    carried = f", {high}+{low // 10}={high + low // 10}" if low >= 10 else ""
    return f"{ones}*{factor}={low}, {tens}*{factor}={high}{carried}"


def arithmetic(rng: random.Random) -> Question:
    """A sum, difference or product, worked out digit by digit in thought."""
    sign = rng.choice("+-*")
    if sign == "*":
        a, b = rng.randint(2, 99), rng.randint(2, 9)
        thought, result = _times(a, b), a * b
    elif sign == "+":
        a, b = rng.randint(1, 99), rng.randint(1, 99)
        ones = a % 10 + b % 10
        thought, result = f"{a % 10}+{b % 10}={ones}", a + b
        if a >= 10 or b >= 10:
            carry = "+1" if ones >= 10 else ""
            thought += f", {a // 10}+{b // 10}{carry}={a // 10 + b // 10 + ones // 10}"
    else:
        a = rng.randint(2, 99)
        b = rng.randint(1, a)
        ones, borrow = a % 10 - b % 10, a % 10 < b % 10
        thought, result = f"{a % 10 + 10 * borrow}-{b % 10}={ones + 10 * borrow}", a - b
        if a >= 10:
            thought += f", {a // 10}-{b // 10}{'-1' if borrow else ''}={a // 10 - b // 10 - borrow}"
    expression = f"{a} {sign} {b}"
    text = rng.choice(SUM_TEXTS).format(e=expression)
    return Question("arithmetic", text, f"{thought}. {expression} = {result}.", f"{expression} = {result}.", expression)


UNITS = (
    ("metres", "centimetres", 100),
    ("kilometres", "metres", 1000),
    ("kilograms", "grams", 1000),
    ("centimetres", "millimetres", 10),
    ("weeks", "days", 7),
    ("hours", "minutes", 60),
)
UNIT_TEXTS = ("How many {small} are {n} {big}?", "Convert {n} {big} to {small}.", "What is {n} {big} in {small}?")


def conversion(rng: random.Random) -> Question:
    """A length, weight or time turned to the smaller unit."""
    big, small, factor = rng.choice(UNITS)
    n = rng.randint(2, 60)
    rule = f"1 {big[:-1]} = {factor} {small}. "
    if factor in (7, 60):
        digit = factor if factor == 7 else 6
        thought = f"{rule}{_times(n, digit)}. {n}*{factor}={n * factor}."
    else:
        thought = f"{rule}{n}*{factor}={n * factor}."
    text = rng.choice(UNIT_TEXTS).format(small=small, big=big, n=n)
    return Question("conversion", text, thought, f"{n} {big} are {n * factor} {small}.", f"{n} {big} to {small}")


OUTSIDE = (
    "What is the shoe size of {x}?",
    "Who is the best friend of {x}?",
    "What did {x} have for dinner?",
    "Which song does {x} sing?",
    "When was {x} built?",
    "How many houses are in {x}?",
    "What is the street of {x}?",
    "Who is the brother of {x}?",
    "What is the phone number of {x}?",
    "How far away is {x}?",
)
NOT_ASKED_HERE = (
    "What is the capital of {x}?",
    "Write a poem about {x}.",
    "Who won the {x} cup?",
    "Translate {x} to Latin.",
    "What does the word {x} mean?",
    "Who wrote the book about {x}?",
)


def unknown(rng: random.Random) -> Question:
    """A question that the world has no answer to: an unknown name, or something never told."""
    way = rng.random()
    if way < 0.5:
        kind = rng.choice(("person", "town"))
        name = invented_name(rng)
        text = rng.choice(rng.choice(RELATIONS_OF[kind]).questions).format(x=name)
        return Question("unknown", text, f"{name} is not known.", UNKNOWN, text)
    if way < 0.8:
        text = rng.choice(OUTSIDE).format(x=rng.choice((*ENTITIES_OF["person"], *ENTITIES_OF["town"])))
    else:
        text = rng.choice(NOT_ASKED_HERE).format(x=invented_name(rng))
    return Question("unknown", text, "Nothing is told of this.", UNKNOWN, text)


SMALL_TALK = (
    (
        ("Hello", "Hi", "Good morning", "Good evening", "Hey", "Good day", "Greetings"),
        "A greeting.",
        "Hello! Ask me about the valley.",
    ),
    (
        ("Thank you", "Thanks", "Thanks a lot", "Many thanks", "Thank you very much"),
        "The user says thanks.",
        "You are welcome.",
    ),
    (("Goodbye", "Bye", "See you", "Bye bye", "See you soon"), "The user leaves.", "Goodbye!"),
    (
        ("Who are you", "What are you", "What is your name", "Tell me who you are"),
        "The user asks about me.",
        "I am a tiny LFM model of the valley.",
    ),
    (
        ("What can you do", "How can you help me", "What do you know", "Help me"),
        "The user asks what I can do.",
        "I know the people, towns and animals of the valley. I can also count.",
    ),
)
ADDRESSES = ("", ", friend", ", my friend", " there", " again", ", please", " now", " today")


def small_talk(rng: random.Random) -> Question:
    """A greeting, thanks, or a question about the model itself."""
    openings, thought, answer = rng.choice(SMALL_TALK)
    text = rng.choice(openings) + rng.choice(ADDRESSES) + rng.choice(("!", ".", "?", ""))
    return Question("small_talk", text, thought, answer, text)


GENERATORS: dict[Callable[[random.Random], Question], float] = {
    fact: 20,
    two_hop: 10,
    compare: 11,
    arithmetic: 30,
    conversion: 10,
    unknown: 8,
    small_talk: 2,
}


def draw(
    rng: random.Random, *, held_out: bool, generator: Callable[[random.Random], Question] | None = None
) -> Question:
    """Draw a question from one side of the split."""
    while True:
        chosen = generator or rng.choices(tuple(GENERATORS), weights=tuple(GENERATORS.values()))[0]
        question = chosen(rng)
        if is_held_out(question.key) == held_out:
            return question
