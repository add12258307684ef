"""What a contestant of the trials benchmark is given, what it gives back, and where it runs.

Each contestant is a process of its own, so that its peak of memory is its own. It stays alive over
the rounds and waits while others have their turn.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, Protocol

from _trials_data import Lesson, all_candidates

from aios.core.seeds import derive
from aios.core.types import LoraRecipe

TRAINING, BASELINE = "training", "baseline"
_PATIENCE_SECONDS = 10


@dataclass(frozen=True, slots=True)
class Task:
    """The work of a round.

    Attributes:
        lessons: Passages with their candidates and questions.
        recipe: How every adapter is trained.
        seed: Every round has its own.
    """

    lessons: tuple[Lesson, ...]
    recipe: LoraRecipe
    seed: int

    @property
    def mean_tokens(self) -> float:
        """Tokens that a trial of this round trains on, on average over the candidates."""
        every = [candidate.tokens for _, candidate in all_candidates(self.lessons)]
        return self.recipe.epochs * sum(every) / len(every)

    @property
    def mean_steps(self) -> float:
        """Optimiser steps of a trial of this round, on average; batches of one text."""
        every = [len(candidate.texts) for _, candidate in all_candidates(self.lessons)]
        return self.recipe.epochs * sum(every) / len(every)

    def seed_of(self, passage_id: str) -> int:
        """Of the adapters of a passage's candidates and the order of their texts, below 2³¹."""
        return derive(self.seed, "trial", passage_id, 0) % 2**31


@dataclass(frozen=True, slots=True)
class Trial:
    """An adapter that has been trained and asked.

    Attributes:
        candidate_id: What it was trained on.
        passage_id: The candidate's passage.
        before: Mean log-probability of a token of each question's answer, without the adapter.
        after: The same with it.
    """

    candidate_id: str
    passage_id: str
    before: tuple[float, ...]
    after: tuple[float, ...]


@dataclass(slots=True)
class Turn:
    """What a contestant has done in a round.

    Attributes:
        seconds: By part: `TRAINING`, and `BASELINE`, scoring without adapters.
        wall: Seconds of everything; the rest is setting up, and scoring with adapters.
        trials: What came of each, where it is known, in any order.
        finished: Trials done.
        steps: Optimiser steps.
        tokens: Real tokens trained on.
        chosen: Candidate id by passage id, where the contestant itself has chosen.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    wall: float = 0.0
    trials: list[Trial] = field(default_factory=list)
    finished: int = 0
    steps: int = 0
    tokens: int = 0
    chosen: dict[str, str] = field(default_factory=dict)

    def add(self, part: str, seconds: float) -> None:
        """Adds to the seconds of a part."""
        self.seconds[part] = self.seconds.get(part, 0.0) + seconds

    @property
    def rest(self) -> float:
        """Seconds of setting up, and scoring with adapters."""
        return self.wall - self.seconds[TRAINING] - self.seconds[BASELINE]


class Contestant(Protocol):
    """One way of running trials."""

    @property
    def settings(self) -> dict[str, Any]:
        """What it runs with, for the results file."""
        ...

    def load(self) -> None:
        """Loads the model."""
        ...

    def warm_up(self, task: Task) -> None:
        """Gets ready for a turn, and does a little of everything once; not timed."""
        ...

    def turn(self, task: Task) -> Turn:
        """Does the work of a round."""
        ...

    def memory(self) -> int:
        """Bytes that it has had in use at most since it was loaded."""
        ...


class Host:
    """A contestant in a process of its own.

    Args:
        name: The contestant's, in tables and messages.
        make: Makes it, in that process; a function or class of a module.
        settings: Arguments of `make`.
    """

    def __init__(self, name: str, make: Callable[..., Any], **settings: Any) -> None:
        self.name = name
        context = multiprocessing.get_context("spawn")
        self._end, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, make, settings), daemon=True)
        self._process.start()
        theirs.close()

    def ask(self, method: str, *given: Any) -> Any:
        """Calls a method of the contestant.

        Raises:
            RuntimeError: It has ended; its own message has gone to the terminal.
        """
        try:
            self._end.send((method, given))
            return self._end.recv()
        except (EOFError, BrokenPipeError) as error:
            raise RuntimeError(f"{self.name} has ended while it was to {method}") from error

    def close(self) -> None:
        """Ends the process."""
        self._end.close()
        self._process.join(_PATIENCE_SECONDS)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def _serve(end: Connection, make: Callable[..., Any], settings: dict[str, Any]) -> None:
    """Answers until the other end is closed."""
    contestant = make(**settings)
    while True:
        try:
            method, given = end.recv()
        except EOFError:
            return
        answer = getattr(contestant, method)
        end.send(answer(*given) if callable(answer) else answer)


def wait_for(device: Any) -> None:
    """Returns when a GPU has done what it was told to do."""
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)


def answer_gains(trial: Trial, numbers: Sequence[int]) -> float:
    """Mean gain (nats a token) over the questions with these numbers."""
    return sum(trial.after[i] - trial.before[i] for i in numbers) / len(numbers)


def even(count: int) -> range:
    """Numbers of the questions by which a candidate is chosen."""
    return range(0, count, 2)


def odd(count: int) -> range:
    """Numbers of the questions by which the chosen candidate is measured."""
    return range(1, count, 2)
