"""What an adaptation to a conversation must not make worse: unrelated text, and the last turns.

Takes messages and a model; gives score requests, all bounded, and losses in nats a token. The last
turns are the assistant's last answers, each given what stood before it. Where the model itself
wrote them, by how much their loss rises estimates how far the adapted model has moved away from it
in this conversation (the Kullback-Leibler divergence, in nats a token); so the limit is a trust
region too.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from aios.core.errors import RunInterrupted
from aios.core.evaluation.ab_test import retention_requests
from aios.core.protocols import LanguageModel, ShouldStop
from aios.core.types import Score, ScoreRequest, TrainExample

RETENTION_TEXT = """\
Water freezes at zero degrees Celsius and boils at one hundred at sea level. On a high mountain the
air is thinner, so water boils there at a lower temperature and food takes longer to cook.

The committee met on Tuesday to talk about the new library. Most of its members wanted a building
near the station, but a few thought that the old school would be cheaper to rebuild.

To make the dough, mix flour, yeast and a little salt, then add warm water and knead it until it is
smooth. Let it rest under a cloth for an hour before you shape the loaves.

She closed the door behind her and looked down the street. Nobody was there, only a cat that sat on
the wall and watched the rain run along the gutter.
"""
_SLICE_TOKENS = 256  # scored at a time
_TURNS = 2  # answers that are looked at
_MESSAGES_BEFORE = 2  # that stand before each of them
_CHARACTERS_BEFORE = 300  # of each of those, its end
_CHARACTERS = 240  # of an answer, its start


@dataclass(frozen=True, slots=True)
class LossChange:
    """A mean loss before and after, in nats a token."""

    before: float
    after: float

    @property
    def rise(self) -> float:
        """After minus before."""
        return self.after - self.before


class Breaks:
    """Asks whether to stop, and keeps count of how long the asking took (a `ShouldStop`).

    Attributes:
        waited: Seconds that the asking took.
    """

    def __init__(self, should_stop: ShouldStop) -> None:
        self._should_stop = should_stop
        self.waited = 0.0

    def __call__(self) -> bool:
        """Whether to stop."""
        began = time.monotonic()
        stop = self._should_stop()
        self.waited += time.monotonic() - began
        return stop

    def check(self) -> None:
        """Ends the adaptation where it is to stop.

        Raises:
            RunInterrupted: It is.
        """
        if self():
            raise RunInterrupted("the adaptation was stopped")


def default_retention() -> tuple[ScoreRequest, ...]:
    """Four everyday paragraphs, about 160 tokens together."""
    return retention_requests(RETENTION_TEXT)


def turn_requests(
    messages: Sequence[Mapping[str, str]], model: LanguageModel
) -> tuple[ScoreRequest, ...]:
    """The last answers of the assistant, each given the messages before it.

    Without any answer it is the user's last message, given those before it. Long texts are cut,
    and what still does not fit the model's context is left out.
    """
    spoken = [m for m in messages if m["role"] != "system" and m["content"].strip()]
    answers = [i for i, m in enumerate(spoken) if m["role"] == "assistant" and i > 0]
    chosen = answers[-_TURNS:] or ([len(spoken) - 1] if spoken else [])
    requests = [_turn_request(spoken, i, model) for i in chosen]
    return tuple(
        request
        for request in requests
        if model.count_tokens(request.prompt + request.continuation) <= model.context_length
    )


def _turn_request(
    spoken: Sequence[Mapping[str, str]], index: int, model: LanguageModel
) -> ScoreRequest:
    before = [
        {"role": m["role"], "content": m["content"][-_CHARACTERS_BEFORE:]}
        for m in spoken[max(0, index - _MESSAGES_BEFORE) : index]
    ]
    text = spoken[index]["content"].strip()[:_CHARACTERS]
    if spoken[index]["role"] == "assistant":
        return ScoreRequest(model.format_chat(before), text)
    return ScoreRequest("".join(f"{m['content']}\n\n" for m in before), text)


def example_requests(examples: Iterable[TrainExample]) -> tuple[ScoreRequest, ...]:
    """Training examples as score requests: what carries loss, given the text before it."""
    return tuple(
        ScoreRequest(example.text[: example.loss_spans[0][0]], example.text[slice(*span)])
        for example in examples
        for span in [(example.loss_spans[0][0], example.loss_spans[-1][1])]
    )


def mean_loss(
    model: LanguageModel,
    requests: Sequence[ScoreRequest],
    between: Callable[[], None] = lambda: None,
) -> float | None:
    """Mean loss over all tokens of the continuations (nats a token); None without any.

    Args:
        model: Whose loss.
        requests: The texts; they are scored a few hundred tokens at a time.
        between: Called before each of these slices.

    Raises:
        BackendError: A text cannot be scored.
    """
    scores: list[Score] = []
    for some in _slices(model, requests):
        between()
        scores += model.score(some)
    if not scores:
        return None
    return -math.fsum(s.logprob for s in scores) / sum(s.tokens for s in scores)


def _slices(
    model: LanguageModel, requests: Sequence[ScoreRequest]
) -> Iterator[Sequence[ScoreRequest]]:
    part: list[ScoreRequest] = []
    tokens = 0
    for request in requests:
        size = model.count_tokens(request.prompt + request.continuation)
        if part and tokens + size > _SLICE_TOKENS:
            yield part
            part, tokens = [], 0
        part.append(request)
        tokens += size
    if part:
        yield part
