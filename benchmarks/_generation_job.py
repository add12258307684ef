"""What every contestant of the generation benchmark is given, and what it gives back.

A job is the prompts of some passages, how many completions each gets, and how tokens are drawn. A
contestant writes them all; the wall time of that, prompts included, and the tokens really written
(up to the end token or the limit) are its result.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from aios.core.seeds import derive
from aios.core.types import SamplingParams


@dataclass(frozen=True, slots=True)
class Job:
    """Prompts to be gone on with.

    Attributes:
        prompts: Rendered, one a passage.
        candidates: Completions of each.
        sampling: How tokens are drawn.
        seed: Every round has its own.
    """

    prompts: tuple[str, ...]
    candidates: int
    sampling: SamplingParams
    seed: int = 0

    @property
    def completions(self) -> int:
        """Completions of the whole job."""
        return len(self.prompts) * self.candidates

    def seeds_of(self, prompt: int) -> tuple[int, ...]:
        """The seeds of a prompt's completions, below 2³¹."""
        return tuple(
            derive(self.seed, prompt, candidate) % 2**31 for candidate in range(self.candidates)
        )

    def with_seed(self, seed: int) -> Job:
        return replace(self, seed=seed)

    def part(self, prompts: int, new_tokens: int) -> Job:
        """The first prompts of it, with fewer tokens to write."""
        limit = min(new_tokens, self.sampling.max_new_tokens)
        return replace(
            self,
            prompts=self.prompts[:prompts],
            sampling=replace(self.sampling, max_new_tokens=limit),
        )


@dataclass(frozen=True, slots=True)
class Tally:
    """What a contestant has done in how many seconds."""

    completions: int
    tokens: int
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds

    @property
    def completions_per_second(self) -> float:
        return self.completions / self.seconds


class Contestant(Protocol):
    """One way of writing a job's completions."""

    @property
    def name(self) -> str:
        """Its name in the tables."""
        ...

    @property
    def settings(self) -> dict[str, Any]:
        """What it was run with, for the results file."""
        ...

    def prepare(self) -> None:
        """Forgets what earlier jobs have left behind (prompts read before, say); not timed."""
        ...

    def write(self, job: Job) -> list[int]:
        """Writes all completions; the number of tokens of each, in any order."""
        ...

    def close(self) -> None:
        """Frees what it holds."""
        ...


def measure(contestant: Contestant, job: Job) -> Tally:
    """Has a contestant do a job.

    Raises:
        RuntimeError: It has not written as many completions as it should.
    """
    contestant.prepare()
    began = time.perf_counter()
    lengths = contestant.write(job)
    seconds = time.perf_counter() - began
    if len(lengths) != job.completions or not all(lengths):
        raise RuntimeError(
            f"{contestant.name} wrote {len(lengths)} completions of {job.completions}"
        )
    return Tally(len(lengths), sum(lengths), seconds)


def warm_up_job(job: Job) -> Job:
    """A tiny job whose prompts are none of the benchmark's: no cache can know those from it."""
    sampling = replace(job.sampling, max_new_tokens=4)
    return Job(("The weather in the hills was", "Seven boats left the"), 2, sampling)


def even_batches(rows: int, most: int) -> list[range]:
    """Splits rows into as few batches of at most `most` as can be, of nearly equal size."""
    count = math.ceil(rows / most)
    edges = [round(rows * i / count) for i in range(count + 1)]
    return [range(a, b) for a, b in itertools.pairwise(edges)]


def rotated(items: Sequence[Any], by: int) -> list[Any]:
    """The items with the first `by` of them put last."""
    by %= max(len(items), 1)
    return [*items[by:], *items[:by]]
