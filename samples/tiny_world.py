"""The closed world that the sample model learns: a valley of people, towns and animals, and the facts about them.

Everything is drawn once from a fixed seed, so the world is the same on every machine. A fact is a triple
(entity, relation, value); a relation knows how it is asked for, how it is recalled in thought and how it is answered.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


PEOPLE = _words(
    "Mira Tobin Anouk Bertil Calla Dorin Elske Farid Greta Hamo Ilva Jonas Kerstin Lubo Maren Nils "
    "Odile Pavel Quinn Runa Sorin Tilda Ulf Vesna Wanda Xenia Yorick Zora Alma Bruno Cyra Dario"
)
TOWNS = _words(
    "Orla Velm Brisk Tarn Hollow Quay Sandel Mirefield Oakby Lund Fennick Stonewell Ashport Drift Kestrel Pell"
)
RIVERS = _words("Senn Ulva Marl Tessa Brook Ivel Dorna Kell")
COLOURS = _words("red blue green yellow white black orange purple")
PRODUCTS = _words("cheese glass bells rope honey paper salt wool boats clocks soap tea bricks lamps shoes drums")
PROFESSIONS = _words("baker smith teacher doctor farmer sailor painter miller tailor gardener cook miner")
ANIMALS = _words("cat dog hen goat duck horse sheep rabbit owl frog bee spider")
LEGS = _words("4 4 2 4 2 4 4 4 2 4 6 8")
FOODS = _words("fish meat corn leaves bread hay grass carrots mice flies nectar insects")
SOUNDS = _words("meows barks clucks bleats quacks neighs baas squeaks hoots croaks buzzes clicks")
SYLLABLES = _words(
    "ba ce do fi gu ha jo ka li mo nu pe ri so tu va we xo ya zi bren dal fos grim lor mek nar pos rund sev"
)
INVENTED_NAMES = tuple(
    name for one in SYLLABLES for other in SYLLABLES if (name := (one + other).capitalize()) not in (*PEOPLE, *TOWNS)
)

HELD_OUT_PER_MILLE = 70


@dataclass(frozen=True)
class Relation:
    """One kind of fact.

    Attributes:
        name: the word that the thought uses for the relation, e.g. ``home``.
        questions: phrasings with ``{x}`` for the entity; each pair (phrasing, entity) is a prompt of its own.
        noun: ``the town where {x} lives``: the relation inside a longer question.
        follow_up: the question that leaves the entity out and means the one spoken of before.
        statement: the fact as a sentence, ``{x}`` the entity and ``{v}`` the value.
    """

    name: str
    questions: tuple[str, ...]
    noun: str
    follow_up: str
    statement: str


PERSON_RELATIONS = (
    Relation(
        "home",
        (
            "Where does {x} live?",
            "In which town does {x} live?",
            "What is the home town of {x}?",
            "Which town is {x} from?",
            "Tell me where {x} lives.",
            "Do you know where {x} lives?",
        ),
        "the town where {x} lives",
        "And where does this person live?",
        "{x} lives in {v}.",
    ),
    Relation(
        "job",
        (
            "What is the job of {x}?",
            "What does {x} do for a living?",
            "What is the profession of {x}?",
            "Which work does {x} do?",
            "Tell me the job of {x}.",
            "Do you know what {x} works as?",
        ),
        "the job of {x}",
        "And what is the job of this person?",
        "{x} is a {v}.",
    ),
    Relation(
        "pet",
        (
            "What pet does {x} have?",
            "Which animal does {x} keep?",
            "What is the pet of {x}?",
            "Which pet lives with {x}?",
            "Tell me which pet {x} has.",
            "Do you know the pet of {x}?",
        ),
        "the pet of {x}",
        "And which pet does this person have?",
        "The pet of {x} is a {v}.",
    ),
    Relation(
        "colour",
        (
            "What is the favourite colour of {x}?",
            "Which colour does {x} like best?",
            "What colour does {x} love?",
            "Which colour is the favourite of {x}?",
            "Tell me the favourite colour of {x}.",
            "Do you know which colour {x} likes?",
        ),
        "the favourite colour of {x}",
        "And which colour does this person like best?",
        "{x} likes {v} best.",
    ),
    Relation(
        "age",
        (
            "How old is {x}?",
            "What is the age of {x}?",
            "What age is {x}?",
            "How many years old is {x}?",
            "Tell me the age of {x}.",
            "Do you know how old {x} is?",
        ),
        "the age of {x}",
        "And how old is this person?",
        "{x} is {v} years old.",
    ),
)
TOWN_RELATIONS = (
    Relation(
        "river",
        (
            "Which river flows through {x}?",
            "What is the river of {x}?",
            "On which river does {x} lie?",
            "Which river runs by {x}?",
            "Tell me the river of {x}.",
            "Do you know the river of {x}?",
        ),
        "the river of {x}",
        "And which river flows through this town?",
        "The river of {x} is the {v}.",
    ),
    Relation(
        "flag",
        (
            "What colour is the flag of {x}?",
            "Which colour has the flag of {x}?",
            "What is the colour of the flag in {x}?",
            "Which flag flies over {x}?",
            "Tell me the colour of the flag of {x}.",
            "Do you know the flag of {x}?",
        ),
        "the flag of {x}",
        "And what colour is the flag of this town?",
        "The flag of {x} is {v}.",
    ),
    Relation(
        "product",
        (
            "What is made in {x}?",
            "What is {x} known for?",
            "Which goods come from {x}?",
            "What does {x} sell?",
            "Tell me what {x} makes.",
            "Do you know what {x} is famous for?",
        ),
        "the goods from {x}",
        "And what is made in this town?",
        "{x} is known for its {v}.",
    ),
    Relation(
        "mayor",
        (
            "Who is the mayor of {x}?",
            "Who leads {x}?",
            "Who runs the town of {x}?",
            "Which person is mayor in {x}?",
            "Tell me who the mayor of {x} is.",
            "Do you know the mayor of {x}?",
        ),
        "the mayor of {x}",
        "And who is the mayor of this town?",
        "The mayor of {x} is {v}.",
    ),
)
ANIMAL_RELATIONS = (
    Relation(
        "legs",
        (
            "How many legs does a {x} have?",
            "How many legs has a {x}?",
            "What is the number of legs of a {x}?",
            "On how many legs does a {x} walk?",
            "Tell me how many legs a {x} has.",
            "Count the legs of a {x}.",
        ),
        "the number of legs of {x}",
        "And how many legs does this animal have?",
        "A {x} has {v} legs.",
    ),
    Relation(
        "food",
        (
            "What does a {x} eat?",
            "What is the food of a {x}?",
            "What do you feed a {x}?",
            "What does a {x} live on?",
            "Tell me what a {x} eats.",
            "Do you know what a {x} likes to eat?",
        ),
        "the food of {x}",
        "And what does this animal eat?",
        "A {x} eats {v}.",
    ),
    Relation(
        "sound",
        (
            "What sound does a {x} make?",
            "Which noise does a {x} make?",
            "What is the sound of a {x}?",
            "How does a {x} sound?",
            "Tell me the sound of a {x}.",
            "Do you know which sound a {x} makes?",
        ),
        "the sound of {x}",
        "And what sound does this animal make?",
        "A {x} {v}.",
    ),
)
RELATIONS_OF = {"person": PERSON_RELATIONS, "town": TOWN_RELATIONS, "animal": ANIMAL_RELATIONS}
ENTITIES_OF: dict[str, tuple[str, ...]] = {"person": PEOPLE, "town": TOWNS, "animal": ANIMALS}


def _draw_facts() -> dict[tuple[str, str], str]:
    rng = random.Random("the valley")
    facts: dict[tuple[str, str], str] = {}
    ages = rng.sample(range(18, 90), len(PEOPLE))
    for person, age in zip(PEOPLE, ages, strict=True):
        facts[person, "home"] = rng.choice(TOWNS)
        facts[person, "job"] = rng.choice(PROFESSIONS)
        facts[person, "pet"] = rng.choice(ANIMALS)
        facts[person, "colour"] = rng.choice(COLOURS)
        facts[person, "age"] = str(age)
    mayors = rng.sample(PEOPLE, len(TOWNS))
    products = rng.sample(PRODUCTS, len(TOWNS))
    for town, mayor, product in zip(TOWNS, mayors, products, strict=True):
        facts[town, "river"] = rng.choice(RIVERS)
        facts[town, "flag"] = rng.choice(COLOURS)
        facts[town, "product"] = product
        facts[town, "mayor"] = mayor
    for animal, legs, food, sound in zip(ANIMALS, LEGS, FOODS, SOUNDS, strict=True):
        facts[animal, "legs"] = legs
        facts[animal, "food"] = food
        facts[animal, "sound"] = sound
    return facts


FACTS = _draw_facts()


def statement(relation: Relation, entity: str) -> str:
    """The fact (entity, relation) as a sentence, with ``an`` where English wants it."""
    value = FACTS[entity, relation.name]
    return with_article(relation.statement.format(x=entity, v=value))


def with_article(text: str) -> str:
    """Replace ``a`` by ``an`` before the vowels that occur in this world."""
    return text.replace(" a owl", " an owl").replace("A owl", "An owl")


def is_held_out(key: str) -> bool:
    """Whether the prompt with this key is kept out of training; decided by a hash, so it needs no list."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") % 1000 < HELD_OUT_PER_MILLE


def invented_name(rng: random.Random) -> str:
    """A name that stands for nobody and nowhere in the world."""
    return rng.choice(INVENTED_NAMES)
