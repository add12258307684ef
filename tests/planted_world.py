"""A world in which the truth is planted: some self-edits help a learner, and a generator can learn.

`PlantedModel` writes a helpful or a useless self-edit of a passage. How often it is a helpful one
follows from what its adapter has been trained on, so it learns from the self-edits that a round
keeps, whichever they are. A helpful self-edit names the answer to the passage's question, which
the passage itself only spells; the scripted bench's learner knows the answer after that.
"""

from __future__ import annotations

import random
from typing import Any

from aios.backends.scripted import Memory, ScriptedModel
from aios.core.seeds import derive
from aios.core.types import Passage, Question

HELPFUL = "The keyword of {place} is {answer}, as everyone in {place} knows."
USELESS = "People in {place} like the weather of {place} in the month of {answer}."
MONTHS = ("March", "April", "May", "June", "July")
PRIOR = (1.0, 3.0)  # helpful and useless self-edits that the untrained generator has "seen"


def place(number: int) -> str:
    """The name of a place."""
    return f"Orv{'abcdefghij'[number // 10]}{'aeiouylmnr'[number % 10]}ne"


def answer(number: int) -> str:
    """Its keyword."""
    return f"mar{'abcdefghij'[number // 10]}k{'aeiouylmnr'[number % 10]}l"


def planted_passages(count: int, start: int = 0) -> list[Passage]:
    """Passages with one question each."""
    return [
        Passage.make(
            f"{place(n)} spells its keyword {'-'.join(answer(n).upper())} on the gate.",
            id=f"p{n}",
            questions=(
                Question(f"What is the keyword of {place(n)}?", (answer(n),)),
                Question(f"Which word opens the gate of {place(n)}?", (answer(n),)),
            ),
        )
        for n in range(start, start + count)
    ]


class PlantedModel(ScriptedModel):
    """See the module's head."""

    @property
    def skill(self) -> float:
        """Probability that a self-edit of it is helpful."""
        good, bad = PRIOR
        for text, times in self.memory.times.items():
            written = text.rpartition("Implications:")[2]
            good += times * ("keyword" in written)
            bad += times * ("weather" in written)
        return good / (good + bad)

    def with_memory(self, memory: Memory, adapter_digest: str) -> PlantedModel:
        """The same model with an adapter on it."""
        return PlantedModel(
            name=self.name,
            context_length=self.context_length,
            memory=memory,
            adapter_digest=adapter_digest,
        )

    def _text(self, prompt: str, seed: int | None) -> str:
        found = [n for n in range(100) if place(n) in prompt]
        if not found or "Implications:" not in prompt:
            return super()._text(prompt, seed)
        number, rng = found[0], random.Random(derive(seed or 0, "planted"))
        if rng.random() < self.skill:
            return "1. " + HELPFUL.format(place=place(number), answer=answer(number))
        return "1. " + USELESS.format(place=place(number), answer=rng.choice(MONTHS))


def is_helpful(text: str) -> bool:
    """Whether a self-edit is one of the helpful ones."""
    return "keyword" in text


def helpful_share(tried: Any) -> float:
    """Share of the candidates that are helpful."""
    candidates = [one for passage in tried for one in passage.candidates]
    return sum(is_helpful(one.edit.text) for one in candidates) / len(candidates)
