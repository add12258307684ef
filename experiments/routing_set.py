"""A labelled set for routing: which expert should answer a message, if any.

    python experiments/routing_set.py --data seal_train100.json

Experts are groups of SQuAD articles; the messages that they should answer are the questions about
their passages. Out of domain are the questions about all other articles and everyday messages.
Half of the passages of each expert, of the other articles and of the everyday messages are the
development part, on which everything is chosen; the other half is the test part. An expert knows
all of its passages, as a trained one does.

Who wrote SQuAD's questions had the passage before their eyes, and uses its words. Some questions
are therefore in the set a second time, rephrased.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from aios.core.data.readers import read_passages
from aios.core.experts.routing_signals import ExpertProfile
from aios.core.training.examples import passage_text
from aios.core.types import Passage, Question, content_hash

MESSAGES = Path(__file__).parent / "routing_messages.json"
Kind = Literal["in", "rephrased", "near", "far", "everyday"]
Part = Literal["dev", "test"]


@dataclass(frozen=True)
class Domain:
    """An expert of the set: what people would write about it, and the articles that it learns."""

    name: str
    description: str
    goals: tuple[str, ...]
    articles: tuple[str, ...]


# Descriptions and goals say what a person would say who has not seen the questions.
DOMAINS = {
    "cities": Domain(
        "Cities",
        "Knows cities of the world: districts, population, economy, newspapers",
        ("Answer questions about Seattle, Miami, London and other cities",),
        ("Seattle", "Miami", "Ann Arbor, Michigan", "London", "New Delhi", "Strasbourg", "Nanjing"),
    ),
    "games-and-gadgets": Domain(
        "Games and gadgets",
        "Consoles, video games and consumer electronics",
        ("Answer questions about PlayStation, Xbox and Nintendo", "Know iPod, Dell and YouTube"),
        (
            "Super Nintendo Entertainment System",
            "PlayStation 3",
            "Xbox 360",
            "The Legend of Zelda: Twilight Princess",
            "IPod",
            "Dell",
            "YouTube",
        ),
    ),
    "natural-science": Domain(
        "Natural science",
        "Chemistry and biology",
        ("Explain plants, insects and bacteria", "Know the elements hydrogen and uranium"),
        ("Botany", "Uranium", "Hydrogen", "Bacteria", "Insect"),
    ),
    "british-history": Domain(
        "British history",
        "The United Kingdom from Queen Victoria to today",
        ("Answer questions about the British Empire and the Blitz", "Know the royal family"),
        (
            "British Empire",
            "The Blitz",
            "Queen Victoria",
            "Buckingham Palace",
            "The Times",
            "Pub",
        ),
    ),
    "languages": Domain(
        "Languages",
        "Languages, their history and writing",
        ("Answer questions about Czech, Estonian and Hokkien",),
        ("Czech language", "Estonian language", "Hokkien"),
    ),
    "religion": Domain(
        "Religion",
        "Christianity, Islam and church law",
        ("Answer questions about churches, believers and holy books",),
        ("Christian", "Quran", "Canon law", "Jehovah%27s Witnesses", "Muslim world"),
    ),
    "architecture": Domain(
        "Architecture",
        "Styles of building and their architects",
        ("Explain Gothic, classical and neoclassical architecture",),
        (
            "Architecture",
            "Gothic architecture",
            "Neoclassical architecture",
            "Royal Institute of British Architects",
        ),
    ),
    "greece": Domain(
        "Greece",
        "Greece and the Greek world, ancient and modern",
        ("Answer questions about Hellenistic kings", "Know the economy of Greece and Cyprus"),
        ("Hellenistic period", "Greece", "Economy of Greece", "Cyprus"),
    ),
}
# Articles that no expert learnt and that border on what one is for: hard to tell apart.
NEAR = {
    "Age of Enlightenment",
    "Appalachian Mountains",
    "Capacitor",
    "Comcast",
    "Computer security",
    "Copyright infringement",
    "Egypt",
    "Empiricism",
    "Estonia",
    "Franco-Prussian War",
    "History of science",
    "Lighting",
    "List of numbered streets in Manhattan",
    "Near East",
    "North Carolina",
    "Rule of law",
    "Saint Helena",
    "Tennessee",
    "University of Kansas",
    "Warsaw Pact",
}


@dataclass(frozen=True)
class Message:
    """A message and who should answer it.

    Attributes:
        text: What the user says.
        expert: The expert that should answer; empty: none.
        kind: ``in`` domain, ``rephrased`` in domain, or how it is out of domain.
        part: Development or test.
        passage: The passage that it asks about; for everyday messages, one of its own.
        article: That passage's article.
        question: The question with its answers; None for everyday messages.
    """

    text: str
    expert: str
    kind: Kind
    part: Part
    passage: str
    article: str
    question: Question | None = None


@dataclass(frozen=True)
class RoutingSet:
    """The labelled set."""

    profiles: tuple[ExpertProfile, ...]
    passages: dict[str, tuple[Passage, ...]]
    messages: tuple[Message, ...]
    follow_ups: tuple[str, ...]

    def of(self, part: Part) -> list[Message]:
        """The messages of a part."""
        return [message for message in self.messages if message.part == part]


def build(data: Path, messages: Path = MESSAGES) -> RoutingSet:
    """Makes the set of a file with SQuAD passages and questions."""
    passages = list(read_passages(data, on_reject=lambda reject: None))
    expert_of = {title: name for name, domain in DOMAINS.items() for title in domain.articles}
    learnt: dict[str, list[Passage]] = {name: [] for name in DOMAINS}
    others: list[Passage] = []
    for passage in passages:
        expert = expert_of.get(passage.title)
        (learnt[expert] if expert else others).append(passage)
    found = [
        message
        for name, own in learnt.items()
        for passage, part in zip(own, halves([p.id for p in own]), strict=True)
        for message in questions_of(passage, name, "in", part)
    ]
    articles = sorted({passage.title for passage in others})
    parts = dict(zip(articles, halves(articles), strict=True))
    for passage in others:
        kind: Kind = "near" if passage.title in NEAR else "far"
        found += questions_of(passage, "", kind, parts[passage.title])
    spoken = json.loads(messages.read_text(encoding="utf-8"))
    asked = {message.text: message for message in found if message.expert}
    for row in spoken["rephrased"]:
        found.append(replace(asked[row["question"]], text=row["text"], kind="rephrased"))
    everyday = spoken["everyday"]
    for text, part in zip(everyday, halves(everyday), strict=True):
        found.append(Message(text, "", "everyday", part, content_hash(text), ""))
    return RoutingSet(
        tuple(profile_of(name, own) for name, own in learnt.items()),
        {name: tuple(own) for name, own in learnt.items()},
        tuple(found),
        tuple(spoken["follow_ups"]),
    )


def profile_of(name: str, passages: Sequence[Passage]) -> ExpertProfile:
    """An expert as the router knows it."""
    domain = DOMAINS[name]
    return ExpertProfile(
        name,
        domain.name,
        domain.description,
        goals=domain.goals,
        passages=tuple((passage.id, passage_text(passage)) for passage in passages),
    )


def questions_of(passage: Passage, expert: str, kind: Kind, part: Part) -> list[Message]:
    """The questions about a passage as messages."""
    return [
        Message(question.question, expert, kind, part, passage.id, passage.title, question)
        for question in passage.questions
    ]


def halves(keys: Sequence[str]) -> list[Part]:
    """Every other of the keys, in the order of their hashes, is in the development part."""
    order = sorted(range(len(keys)), key=lambda n: content_hash("routing", keys[n]))
    place = {n: rank for rank, n in enumerate(order)}
    return ["dev" if place[n] % 2 == 0 else "test" for n in range(len(keys))]


def main() -> None:
    """Prints what is in the set."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="SQuAD passages with questions")
    made = build(parser.parse_args().data)
    for profile in made.profiles:
        counts = Counter(m.part for m in made.messages if m.expert == profile.expert_id)
        sys.stdout.write(f"{profile.expert_id}: {len(profile.passages)} passages, {dict(counts)}\n")
    kinds = Counter((m.kind, m.part) for m in made.messages)
    sys.stdout.write(f"{dict(kinds)}\n")


if __name__ == "__main__":
    main()
