"""One pass over passages: what is missing of each is written in one stream, and put together.

Takes passages with what the cache has of them (`PassageWork`) and a language model; gives each
passage back when nothing is left to be written for it, which need not be in order. A passage that
fails holds up no other. Where the whole stream breaks, each passage in flight is tried alone:
first with its own seeds, as what failed may be the passage beside it, then with new ones.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from itertools import chain

from aios.core.errors import BackendError
from aios.core.protocols import LanguageModel
from aios.core.seal.strategies import guarded_plug_in
from aios.core.seal.strategy_mix import MixPart
from aios.core.seeds import derive
from aios.core.streaming import Generated
from aios.core.types import Completion, Failure, GenerationRequest, Passage, SamplingParams

GIVE_UP_AFTER = 20  # passages that fail one after the other: it is not the passages then
_LOOK_AHEAD = 64  # passages that need nothing written are handed on after so many at the latest


@dataclass(slots=True)
class PartWork:
    """The candidates of one strategy for a passage, while they are being collected.

    Attributes:
        part: The strategy and its number of candidates.
        keys: The candidates' cache keys.
        found: Candidates by their number within the part.
        cached: How many of them came from the cache.
        fresh: Those that belong into the cache.
        new_tokens: Tokens of each candidate that was written.
        attempt: Tries so far with other seeds.
        wanted: Numbers of the candidates that are being written.
        seeds: Their seeds.
        answers: The model's answers so far, by request.
        open: Requests without an outcome.
        error: What went wrong in this attempt, or None.
    """

    part: MixPart
    keys: list[str]
    found: dict[int, Completion] = field(default_factory=dict)
    cached: int = 0
    fresh: list[int] = field(default_factory=list)
    new_tokens: list[int] = field(default_factory=list)
    attempt: int = 0
    wanted: list[int] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)
    answers: list[tuple[Completion, ...]] = field(default_factory=list)
    open: int = 0
    error: BackendError | None = None

    @property
    def complete(self) -> bool:
        """Whether all candidates are there."""
        return len(self.found) == self.part.num_edits

    def in_order(self) -> list[tuple[int, Completion]]:
        """The candidates that are there, by their number."""
        return sorted(self.found.items())


@dataclass(slots=True)
class PassageWork:
    """A passage while its candidates are being collected; `seconds` is its share of the time."""

    number: int
    passage: Passage
    parts: list[PartWork]
    failure: Failure | None = None
    seconds: float = 0.0
    retries: int = 0
    pending: int = 0  # parts that are not written yet
    blamed: bool = False  # whether what failed may be the backend's fault


@dataclass(frozen=True, slots=True)
class StreamSettings:
    """How candidates are asked for.

    Attributes:
        sampling: How tokens are drawn.
        deadline_seconds: Time for a completion.
        max_retries: New tries, with other seeds.
        width: Most completions in flight.
        seed: Seed that all others are derived from.
    """

    sampling: SamplingParams
    deadline_seconds: float | None
    max_retries: int
    width: int
    seed: int


_Turn = tuple[PassageWork, PartWork]  # a part, and whose it is


@dataclass(slots=True)
class _Ticket:
    """A request in flight: whose answer it is."""

    work: PassageWork
    part: PartWork
    place: int


def candidate_seeds(seed: int, part: MixPart, passage: Passage, attempt: int) -> list[int]:
    """The seeds of a part's candidates; they are the same in a mix as alone."""
    name = part.strategy.name
    return [
        derive(seed, "self-edit", passage.id, name, number, attempt)
        for number in range(part.num_edits)
    ]


class EditStream:
    """Has the missing candidates of passages written.

    Args:
        model: The generator.
        settings: How it is asked.
    """

    def __init__(self, model: LanguageModel, settings: StreamSettings) -> None:
        self._model = model
        self._settings = settings
        self._queue: deque[_Turn] = deque()  # to be asked for: the next parts, and new tries
        self._begun: dict[int, _Turn] = {}  # parts that have requests out, by identity
        self._flying: dict[int, _Ticket] = {}  # requests in flight, by number in the stream
        self._unasked: deque[_Turn] = deque()  # parts that needed no request
        self._ready: deque[PassageWork] = deque()
        self._exhausted = False
        self._source_error: BackendError | None = None
        self._dead = 0  # passages in a row that the backend has failed on
        self._last: BackendError | None = None  # what the last of them failed with

    def run(self, works: Iterator[PassageWork]) -> Iterator[PassageWork]:
        """Gives every passage back once: complete, or with its failure.

        Raises:
            BackendError: The backend is dead: `GIVE_UP_AFTER` passages failed in a row. They have
                been given back.
        """
        while self._queue or not self._exhausted:
            requests = self._requests(works)
            first = next(requests, None)
            if first is not None:
                broken = yield from self._write(chain([first], requests))
                if broken is not None:
                    yield from self._try_alone(broken)
            yield from self._hand_on()
            if self._dead >= GIVE_UP_AFTER and self._last is not None:
                raise BackendError(
                    f"{self._dead} passages in a row could not be written; the last: "
                    f"{self._last.message}",
                    self._last.remedy or "check the model or its endpoint",
                ) from self._last
        if self._source_error is not None:
            raise self._source_error

    def _write(
        self, requests: Iterator[GenerationRequest]
    ) -> Generator[PassageWork, None, BackendError | None]:
        """One stream of the model; gives what it broke with, or None."""
        try:
            for outcome in self._model.stream(requests, width=self._settings.width):
                self._take(outcome)
                yield from self._hand_on()
                if self._dead >= GIVE_UP_AFTER:
                    return None
        except BackendError as error:
            return error
        return _ended_early(len(self._flying)) if self._begun else None

    def _hand_on(self) -> Iterator[PassageWork]:
        while self._unasked:
            self._settle(*self._unasked.popleft())
        while self._ready:
            yield self._ready.popleft()

    def _requests(self, works: Iterator[PassageWork]) -> Iterator[GenerationRequest]:
        """The requests of this stream, made as the model takes them.

        Ends early after many passages that need nothing written, so that these are handed on.
        """
        number = 0
        while self._queue or self._take_up(works):
            work, part = self._queue.popleft()
            requests = self._open(work, part)
            if requests:
                self._begun[id(part)] = work, part
            else:  # assembling may score, which is not for while the model takes requests
                self._unasked.append((work, part))
            for place, request in enumerate(requests):
                self._flying[number] = _Ticket(work, part, place)
                yield request
                number += 1

    def _take_up(self, works: Iterator[PassageWork]) -> bool:
        """Queues what the next passage lacks; False where none is to be begun for now."""
        while not self._queue and len(self._ready) + len(self._unasked) < _LOOK_AHEAD:
            try:
                work = next(works, None)
            except BackendError as error:  # of where passages come from, not of this stream
                self._source_error, work = error, None
            if work is None:
                self._exhausted = True
                break
            missing = [part for part in work.parts if not part.complete]
            work.pending = len(missing)
            self._queue.extend((work, part) for part in missing)
            if not missing:
                self._ready.append(work)
        return bool(self._queue)

    def _open(self, work: PassageWork, part: PartWork) -> list[GenerationRequest]:
        """Starts an attempt at what is missing of a part; its requests."""
        settings = self._settings
        all_seeds = candidate_seeds(settings.seed, part.part, work.passage, part.attempt)
        part.wanted = [n for n in range(part.part.num_edits) if n not in part.found]
        part.seeds = [all_seeds[n] for n in part.wanted]
        part.error = None
        requests: list[GenerationRequest] = []
        strategy = part.part.strategy
        try:
            with guarded_plug_in(strategy, "requests"):
                requests = strategy.requests(
                    self._model,
                    work.passage,
                    part.seeds,
                    settings.sampling,
                    settings.deadline_seconds,
                )
        except BackendError as error:
            part.error = error
        part.answers = [() for _ in requests]
        part.open = len(requests)
        return requests

    def _take(self, outcome: Generated) -> None:
        ticket = self._flying.pop(outcome.index)
        _record(ticket, outcome)
        if not ticket.part.open:
            del self._begun[id(ticket.part)]
            self._settle(ticket.work, ticket.part)

    def _settle(self, work: PassageWork, part: PartWork) -> None:
        """All requests of a part have their outcome: its candidates, a new try, or a failure."""
        error = self._assemble(work, part)
        if error is not None and self._again(error, work, part):
            self._queue.append((work, part))
            return
        self._close(work, error, blamed=error is not None and error.retryable)

    def _again(self, error: BackendError, work: PassageWork, part: PartWork) -> bool:
        """Whether a part is tried again, with other seeds."""
        if not error.retryable or part.attempt >= self._settings.max_retries:
            return False
        part.attempt += 1
        work.retries += 1
        return True

    def _assemble(self, work: PassageWork, part: PartWork) -> BackendError | None:
        """Makes a part's candidates of its answers; what went wrong in this attempt, or None."""
        if part.error is not None:
            return part.error
        strategy = part.part.strategy
        try:
            with guarded_plug_in(strategy, "assemble"):
                completions = strategy.assemble(self._model, work.passage, part.seeds, part.answers)
                made = list(zip(part.wanted, completions, strict=True))
        except BackendError as error:
            part.error = error
            return error
        for number, completion in made:
            part.found[number] = completion
            part.new_tokens.append(completion.tokens)
            if part.attempt == 0 and completion.finish_reason != "deadline":
                part.fresh.append(number)
        return None

    def _close(self, work: PassageWork, error: BackendError | None, *, blamed: bool) -> None:
        """A part is done; `blamed`: it failed, and that may be the backend's fault."""
        if error is not None:
            known = work.failure
            if known is None or (blamed and not known.retryable):
                work.failure = Failure("generate", work.passage.id, error.message, blamed)
            self._last = error
        work.blamed = work.blamed or blamed
        work.pending -= 1
        if not work.pending:
            if work.blamed:
                self._dead += 1
            elif any(each.answers for each in work.parts):  # the model was asked, and has answered
                self._dead = 0
            self._ready.append(work)

    def _try_alone(self, broken: BackendError) -> Iterator[PassageWork]:
        """What had requests out when the stream broke, a part at a time.

        Whatever breaks a stream counts as retryable when the run goes on: the backend failed, and
        maybe not on this passage.
        """
        begun = list(self._begun.values())
        self._begun, self._flying = {}, {}
        alone = len(begun) == 1  # then it has had its own seeds' try
        for work, part in begun:
            error = broken if alone else self._write_alone(work, part)
            while error is not None and self._again(error, work, part):
                error = self._write_alone(work, part)
            blamed = error is not None and (error.retryable or error is not part.error)
            self._close(work, error, blamed=blamed)
            yield from self._hand_on()
            if self._dead >= GIVE_UP_AFTER:
                return

    def _write_alone(self, work: PassageWork, part: PartWork) -> BackendError | None:
        """Tries a part by itself; what went wrong, or None.

        What a request failed with is `part.error`; any other error broke the stream.
        """
        requests = self._open(work, part)
        try:
            for outcome in self._model.stream(requests, width=self._settings.width):
                _record(_Ticket(work, part, outcome.index), outcome)
        except BackendError as error:
            return error
        return _ended_early(part.open) if part.open else self._assemble(work, part)


def _record(ticket: _Ticket, outcome: Generated) -> None:
    work, part = ticket.work, ticket.part
    work.seconds += outcome.seconds
    work.retries += outcome.retries
    part.answers[ticket.place] = outcome.completions
    part.error = part.error or outcome.error
    part.open -= 1


def _ended_early(missing: int) -> BackendError:
    return BackendError(
        f"the model's stream ended without an outcome for {missing} requests", retryable=True
    )
