"""A language model that finishes its requests in another order than it takes them.

It takes up to `ahead` requests from the iterator and gives the outcome of one of those, chosen by
a seed; what it writes depends on prompt and seed of the request alone. What it is told to fail on
fails as an outcome (`fails`), or ends the whole stream (`breaks`).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence

from aios.backends.scripted import ScriptedModel
from aios.core.errors import BackendError
from aios.core.streaming import Generated, collect
from aios.core.types import Completion, FinishReason, GenerationRequest, Score, ScoreRequest

Judge = Callable[[GenerationRequest], BackendError | None]


def never(request: GenerationRequest) -> BackendError | None:
    """Fails on nothing."""
    return None


def whenever(text: str, *, times: int = 10**9, retryable: bool = True) -> Judge:
    """Fails on prompts with a text in them, so many times."""
    left = times

    def judge(request: GenerationRequest) -> BackendError | None:
        nonlocal left
        if text not in request.prompt or left <= 0:
            return None
        left -= 1
        return BackendError(f"no text for {text}", "ask later", retryable=retryable)

    return judge


class ShuffledModel(ScriptedModel):
    """See the module.

    Args:
        seed: Of the order in which requests are finished.
        ahead: Most requests that it has taken and not finished.
        fails: Gives the error of a request, or None.
        breaks: Gives what the stream breaks with when it takes a request, or None.
        holds: Prompts with this text are finished when there is nothing else left to do.
        late: Prompts with this text run into their deadline.

    Attributes:
        width: The `width` of the last stream.
        asked: Every request taken.
        most: Most requests taken and not finished at a time.
        streams: How many streams were begun.
    """

    def __init__(
        self,
        seed: int = 0,
        ahead: int = 6,
        *,
        fails: Judge = never,
        breaks: Judge = never,
        holds: str = "\0",
        late: str = "\0",
    ) -> None:
        super().__init__(name="shuffled", context_length=10**6)
        self._rng = random.Random(seed)
        self._ahead = ahead
        self._fails = fails
        self._breaks = breaks
        self._holds = holds
        self._late = late
        self._taking = False
        self.width: int | None = None
        self.asked: list[GenerationRequest] = []
        self.most = 0
        self.streams = 0

    def stream(
        self, requests: Iterable[GenerationRequest], *, width: int | None = None
    ) -> Iterator[Generated]:
        """Outcomes in a random order.

        Raises:
            BackendError: `breaks` said so.
        """
        self.width = width
        self.streams += 1
        source = enumerate(requests)
        taken: list[tuple[int, GenerationRequest]] = []
        more = True
        while more or taken:
            while more and len(taken) < self._ahead:
                self._taking = True
                following = next(source, None)
                self._taking = False
                if following is None:
                    more = False
                    break
                self.asked.append(following[1])
                error = self._breaks(following[1])
                if error is not None:
                    raise error
                taken.append(following)
            self.most = max(self.most, len(taken))
            if taken:
                yield self._outcome(*taken.pop(self._choose(taken)))

    def score(self, requests: Sequence[ScoreRequest]) -> list[Score]:
        """Scores, but not while it takes a request."""
        assert not self._taking, "the model is taking requests"
        return super().score(requests)

    def generate(self, requests: Sequence[GenerationRequest]) -> list[list[Completion]]:
        """In order, as every model."""
        return collect(self.stream(requests))

    def _choose(self, taken: Sequence[tuple[int, GenerationRequest]]) -> int:
        free = [i for i, (_, request) in enumerate(taken) if self._holds not in request.prompt]
        return self._rng.choice(free) if free else 0

    def _outcome(self, index: int, request: GenerationRequest) -> Generated:
        error = self._fails(request)
        if error is not None:
            return Generated(index, error=error, seconds=0.25)
        reason: FinishReason = "deadline" if self._late in request.prompt else "stop"
        first = request.prompt.split()[0]
        written = tuple(
            Completion(f"{first} has letter {seed}", 5, reason, seed) for seed in request.seeds
        )
        return Generated(index, written, seconds=0.5)
