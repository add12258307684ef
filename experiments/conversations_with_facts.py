"""Scripted conversations for `test_time_adaptation.py`: facts early, other things after them.

Names and numbers are invented, so that no model knows them; everything follows from a split's name
and a number.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from aios.core.seeds import derive

Message = dict[str, str]
FACTS, FILLERS = 3, 6

_STARTS = "Bra Tol Mer Kav Ost Lin Dor Wel Sar Pim Hal Ger Nis Rud Fen Jor".split()
_ENDS = "vik den ra lo mir ta wen ko sa neth gard bel rin dal".split()
_ACKS = ("Thank you, I will keep that in mind.", "Good to know.", "I see, thanks for telling me.")
_FILLERS = (
    (
        "Can you give me a tip for keeping bread fresh?",
        "Keep it in a paper bag or a wooden box at room temperature, cut side down. For longer than"
        " two days, slice it and put it into the freezer.",
    ),
    (
        "How do I get candle wax out of a tablecloth?",
        "Let the wax harden, scrape off what you can, then put paper over the stain and press it"
        " with a warm iron until the paper has soaked up the rest.",
    ),
    (
        "Why is the sky red in the evening?",
        "The light of a low sun has a long way through the air. On that way most of the blue light"
        " is scattered aside, so that mainly red light is left.",
    ),
    (
        "Explain to me what a glacier is.",
        "It is a large mass of ice that forms where more snow falls than melts. Its own weight"
        " turns the snow into ice and makes it flow slowly downhill.",
    ),
    (
        "What should I look for when I buy a used bicycle?",
        "Look at the frame for cracks, turn the wheels to see if they run true, try the brakes and"
        " gears, and ask for a receipt so that you know it was not stolen.",
    ),
    (
        "Tell me how to repot a plant.",
        "Choose a pot that is a little wider, loosen the roots with your fingers, fill in fresh"
        " soil around them, press it gently, and water the plant well.",
    ),
    (
        "How can I fall asleep faster?",
        "Go to bed at the same time each day, keep the room cool and dark, put screens away an"
        " hour before, and leave coffee for the morning.",
    ),
    (
        "What is the difference between a violin and a viola?",
        "A viola is somewhat larger and is tuned a fifth lower, so its sound is darker. Its music"
        " is mostly written in the alto clef.",
    ),
    (
        "Why do cats purr?",
        "They purr when they are content, but also when they are hurt or afraid. Muscles in the"
        " throat narrow the airway again and again while the cat breathes.",
    ),
    (
        "Suggest a simple soup for a cold day.",
        "Fry an onion and two carrots in some oil, add red lentils and vegetable stock, and let it"
        " all simmer until soft. Season it with lemon and cumin.",
    ),
)


@dataclass(frozen=True)
class Fact:
    """What is said early, what is asked late, and the part of the answer that tells."""

    statement: str
    question: str
    opening: str
    key: str


@dataclass(frozen=True)
class Conversation:
    """A scripted conversation without its last questions."""

    id: str
    facts: tuple[Fact, ...]
    early: tuple[Message, ...]
    late: tuple[Message, ...]


def name(rng: random.Random) -> str:
    return rng.choice(_STARTS) + rng.choice(_ENDS)


def all_facts(rng: random.Random) -> list[Fact]:
    """One fact of each kind, with invented names and numbers."""
    pet = rng.choice(("dog", "parrot", "horse", "rabbit"))
    lock = rng.choice(("locker", "bicycle lock", "garden gate"))
    kin = rng.choice(("sister", "brother", "aunt", "uncle"))
    helper = rng.choice(("dentist", "landlord", "neighbour"))
    pet_name, town, where, table = (name(rng) for _ in range(4))
    code, platform = rng.randint(1000, 9999), rng.randint(11, 48)
    person = f"{name(rng)} {name(rng)}"
    return [
        Fact(
            f"My {pet} is called {pet_name}.",
            f"What is my {pet} called?",
            f"Your {pet} is called",
            pet_name,
        ),
        Fact(
            f"The code of my {lock} is {code}.",
            f"What is the code of my {lock}?",
            f"The code of your {lock} is",
            str(code),
        ),
        Fact(
            f"My {kin} lives in {town}.",
            f"Where does my {kin} live?",
            f"Your {kin} lives in",
            town,
        ),
        Fact(
            f"My train to {where} leaves from platform {platform}.",
            f"Which platform does my train to {where} leave from?",
            f"Your train to {where} leaves from platform",
            str(platform),
        ),
        Fact(
            f"The name of my new {helper} is {person}.",
            f"What is the name of my new {helper}?",
            f"The name of your new {helper} is",
            person,
        ),
        Fact(
            f"I have booked a table at the restaurant {table} for Friday.",
            "At which restaurant have I booked a table?",
            "You have booked a table at the restaurant",
            table,
        ),
    ]


def conversation(split: str, number: int) -> Conversation:
    """The conversation of a number; the splits share no seed."""
    rng = random.Random(derive(0, "tta", split, number))
    facts = tuple(rng.sample(all_facts(rng), FACTS))
    early = [turn for fact in facts for turn in turns(fact.statement, rng.choice(_ACKS))]
    late = [turn for asked in rng.sample(_FILLERS, FILLERS) for turn in turns(*asked)]
    return Conversation(f"{split}-{number}", facts, tuple(early), tuple(late))


def turns(asked: str, answered: str) -> tuple[Message, Message]:
    return {"role": "user", "content": asked}, {"role": "assistant", "content": answered}


def other_key(rng: random.Random, key: str) -> str:
    """Invented words, or a number, of the same form."""
    if key.isdigit():
        return str(rng.randint(10 ** (len(key) - 1), 10 ** len(key) - 1))
    return " ".join(name(rng) for _ in key.split())
