"""Strategies without any parsing to speak of, for tests of what is around them."""

from __future__ import annotations

from collections.abc import Sequence

from aios.core.protocols import LanguageModel
from aios.core.seal.strategies import SelfEditStrategy
from aios.core.types import (
    Completion,
    FinishReason,
    GenerationRequest,
    Passage,
    SamplingParams,
    ScoreRequest,
)


def passage(number: int) -> Passage:
    text = (
        f"The mill of Arn {number} was built by Tove Lind in the year {1800 + number}. "
        f"Its wheel turns {number + 2} stones for the bakers of the valley."
    )
    return Passage.make(text, id=f"p{number}")


class Letters(SelfEditStrategy):
    """One request a passage; its prompt begins with the passage's id and the strategy's name."""

    def __init__(self, name: str = "letters") -> None:
        super().__init__(name)

    def prompt_text(self, model: LanguageModel, passage: Passage) -> str:
        return f"{passage.id} {self.name} of {passage.text}"

    def parse_output(
        self, completion: str, passage: Passage, *, finish_reason: FinishReason | None = None
    ) -> list[str]:
        return [completion] if completion else []


class Syllables(Letters):
    """Three requests a candidate, and a score of each when they are put together."""

    def __init__(self, name: str = "syllables") -> None:
        super().__init__(name)

    def requests(
        self,
        model: LanguageModel,
        passage: Passage,
        seeds: Sequence[int],
        sampling: SamplingParams,
        deadline_seconds: float | None = None,
    ) -> list[GenerationRequest]:
        prompt = self.prompt_text(model, passage)
        return [
            GenerationRequest(f"{prompt} {place}", (seed + place,), sampling, deadline_seconds)
            for seed in seeds
            for place in range(3)
        ]

    def assemble(
        self,
        model: LanguageModel,
        passage: Passage,
        seeds: Sequence[int],
        answers: Sequence[Sequence[Completion]],
    ) -> list[Completion]:
        whole = []
        for number, seed in enumerate(seeds):
            three = [written for (written,) in answers[3 * number : 3 * number + 3]]
            model.score([ScoreRequest(passage.text, f" {one.text}") for one in three])
            text = " / ".join(one.text for one in three)
            whole.append(Completion(text, sum(one.tokens for one in three), "stop", seed))
        return whole


class Silent(Letters):
    """No request at all; the model scores what is put together."""

    def __init__(self, name: str = "silent") -> None:
        super().__init__(name)

    def requests(
        self,
        model: LanguageModel,
        passage: Passage,
        seeds: Sequence[int],
        sampling: SamplingParams,
        deadline_seconds: float | None = None,
    ) -> list[GenerationRequest]:
        return []

    def assemble(
        self,
        model: LanguageModel,
        passage: Passage,
        seeds: Sequence[int],
        answers: Sequence[Sequence[Completion]],
    ) -> list[Completion]:
        assert not answers
        model.score([ScoreRequest(passage.text, " silence")])
        return [Completion(f"{passage.id} is silent {seed}", 0, "stop", seed) for seed in seeds]
