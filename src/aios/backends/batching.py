"""Continuous batching: many requests through one decoder, each completion's place used at once.

Takes generation requests from an iterator and gives each one's outcome when its completions are
done. A few requests are looked at ahead, so that prompts of like length are read one after the
other. A completion draws from its own seed; with `aios.backends.decoding`'s sums it comes out the
same whatever is written beside it (where that holds is said there).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import torch

from aios.backends.decoding import ROWS, Decoder
from aios.backends.decoding_cache import Prompt
from aios.backends.encoding import encode_with_room
from aios.backends.sampling import Dice, Draw, Sampler
from aios.core.errors import BackendError
from aios.core.streaming import Generated
from aios.core.types import Completion, FinishReason, GenerationRequest

_LOOK_AHEAD = 8  # requests whose prompts are sorted by length


@dataclass(eq=False, slots=True)
class _Job:
    """A request while its completions are being written; `seconds` is its share of the time."""

    index: int
    request: GenerationRequest
    prompt: list[int]
    done: dict[int, Completion] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass(eq=False, slots=True)
class _Row:
    """A completion that is being written; `seconds` is its share of the time so far."""

    job: _Job
    number: int
    prompt: Prompt
    dice: Dice
    limit: int
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    seconds: float = 0.0


class ContinuousBatch:
    """Writes the completions of a stream of requests.

    Args:
        tokenizer: The model's tokenizer.
        active: Gives the model for the time of a block; between two outcomes it may be used
            otherwise.
        width: Most completions at a time.
        context_length: Most tokens of prompt and completion together.
        end_tokens: Tokens that end a completion.
    """

    def __init__(
        self,
        tokenizer: Any,
        active: Callable[[], AbstractContextManager[Any]],
        *,
        width: int,
        context_length: int,
        end_tokens: frozenset[int],
    ) -> None:
        self._tokenizer = tokenizer
        self._active = active
        self._width = width
        self._context_length = context_length
        self._end_tokens = end_tokens
        self._sampler = Sampler()
        self._breaks: dict[int, int] = {}  # newlines in a token
        self._waiting: deque[_Job] = deque()  # taken, not yet begun
        self._pending: deque[_Row] = deque()  # begun, waiting for a place
        self._rows: list[_Row] = []  # in the order of the decoder's slots
        self._outcomes: deque[Generated] = deque()
        self._taken = 0
        self._exhausted = False

    def run(self, requests: Iterable[GenerationRequest]) -> Iterator[Generated]:
        """Outcomes, each as it is ready.

        Raises:
            BackendError: The model cannot write (`NonFiniteError`, `OutOfMemoryError`, …).
            ModelError: It is of a kind that cannot write here.
        """
        source = iter(requests)
        decoder: Decoder | None = None
        while True:
            if self._has_room and not self._waiting and not self._exhausted:
                self._take(source)
            while self._outcomes:
                yield self._outcomes.popleft()
            if not (self._waiting or self._pending or self._rows):
                if self._exhausted:
                    return
                continue
            with self._active() as model, torch.inference_mode():
                decoder = decoder or Decoder(model, self._width)
                self._work(decoder)

    @property
    def _has_room(self) -> bool:
        return len(self._rows) + len(self._pending) < self._width

    def _work(self, decoder: Decoder) -> None:
        """Goes on until there is an outcome, or room for another request."""
        while not self._outcomes:
            while self._has_room and self._waiting:
                self._begin(decoder, self._waiting.popleft())
            while self._pending and len(self._rows) < self._width:
                row = self._pending.popleft()
                decoder.open(row.prompt)
                self._rows.append(row)
            if self._rows:
                self._step(decoder)
            if self._has_room and not self._waiting and not (self._exhausted and self._rows):
                return

    # ------------------------------------------------------------ beginning

    def _take(self, source: Iterator[GenerationRequest]) -> None:
        """Takes the next few requests, the longest prompts first."""
        jobs = []
        for _ in range(_LOOK_AHEAD):
            request = next(source, None)
            if request is None:
                self._exhausted = True
                break
            index, self._taken = self._taken, self._taken + 1
            try:
                prompt = self._encode(request, index)
            except BackendError as error:
                self._outcomes.append(Generated(index, error=error))
                continue
            if request.seeds:
                jobs.append(_Job(index, request, prompt))
            else:
                self._outcomes.append(Generated(index))
        self._waiting.extend(sorted(jobs, key=lambda job: -len(job.prompt)))

    def _encode(self, request: GenerationRequest, index: int) -> list[int]:
        """The tokens of a prompt.

        Raises:
            BackendError: It is empty, or leaves no room in the context.
        """
        return encode_with_room(
            self._tokenizer, request.prompt, self._context_length, f"prompt {index}"
        )

    def _begin(self, decoder: Decoder, job: _Job) -> None:
        """Reads a prompt and draws the first token of each of its completions."""
        began = time.perf_counter()
        request = job.request
        count = len(request.seeds)
        prompt, logits = decoder.read(job.prompt, rows=count)
        dice = [Dice.of(seed, request.sampling) for seed in request.seeds]
        equal = logits.expand(max(count, ROWS), -1)  # as many rows as the others have, at least
        draws = self._sampler.draw(equal, dice)
        seconds = time.perf_counter() - began
        job.seconds += seconds
        limit = min(self._context_length - len(job.prompt), request.sampling.max_new_tokens)
        for number, (die, first) in enumerate(zip(dice, draws, strict=True)):
            row = _Row(job, number, prompt, die, limit, seconds=seconds / count)
            if self._extend(row, first):
                decoder.release(prompt)
            else:
                self._pending.append(row)

    # ------------------------------------------------------------ writing

    def _step(self, decoder: Decoder) -> None:
        """Writes one token of every completion."""
        began = time.perf_counter()
        logits = decoder.step([row.tokens[-1] for row in self._rows])
        draws = self._sampler.draw(logits, [row.dice for row in self._rows])
        share = (time.perf_counter() - began) / len(self._rows)
        ended = []
        for place, (row, drawn) in enumerate(zip(self._rows, draws, strict=True)):
            row.seconds += share
            row.job.seconds += share
            if self._extend(row, drawn):
                ended.append(place)
        for place in reversed(ended):  # the last one takes the place of one that has ended
            decoder.close(place)
            self._rows[place] = self._rows[-1]
            self._rows.pop()

    def _extend(self, row: _Row, drawn: Draw) -> bool:
        """Adds a token to a completion; whether it has ended with it."""
        row.tokens.append(drawn.token)
        row.logprobs.append(drawn.logprob)
        sampling, deadline = row.job.request.sampling, row.job.request.deadline_seconds
        reason: FinishReason | None = None
        if drawn.token in self._end_tokens:
            reason = "stop"
        elif len(row.tokens) >= row.limit:
            reason = "length"
        elif deadline is not None and row.seconds > deadline:
            reason = "deadline"
        if reason is None and not sampling.stop:
            return False
        written = row.tokens[:-1] if drawn.token in self._end_tokens else row.tokens
        text: str = self._tokenizer.decode(
            written, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        cuts = [at for stop in sampling.stop if stop and (at := text.find(stop)) >= 0]
        if cuts:
            text, reason = text[: min(cuts)], "stop"
        if reason is None:
            return False
        losses = self._line_losses(text, written, row.logprobs)
        seed = row.job.request.seeds[row.number]
        self._finish(row, Completion(text, len(row.tokens), reason, seed, losses))
        return True

    def _finish(self, row: _Row, completion: Completion) -> None:
        job = row.job
        job.done[row.number] = completion
        if len(job.done) == len(job.request.seeds):
            completions = tuple(job.done[number] for number in sorted(job.done))
            self._outcomes.append(Generated(job.index, completions, seconds=job.seconds))

    def _line_losses(
        self, text: str, tokens: Sequence[int], logprobs: Sequence[float]
    ) -> tuple[float, ...]:
        """Mean loss of the tokens that begin in each line; 0 for a line in which none does."""
        lines: list[list[float]] = [[]]
        for token, logprob in zip(tokens, logprobs, strict=False):
            lines[-1].append(-logprob)
            lines.extend([] for _ in range(self._newlines(token)))
        count = text.count("\n") + 1
        if len(lines) < count:
            return ()
        return tuple(round(fmean(line), 4) if line else 0.0 for line in lines[:count])

    def _newlines(self, token: int) -> int:
        if token not in self._breaks:
            self._breaks[token] = self._tokenizer.decode([token]).count("\n")
        return self._breaks[token]
