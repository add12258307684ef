"""What a run of ReST-EM does, counted: trials, and tokens by stage.

Takes the settings of a run and the sizes of its texts (`Workload`); gives tokens by what is done
with them (`Tokens`). What is not known exactly is a `Span`. Pure arithmetic.

The work of a run, with R rounds of P passages and k candidates each (SEAL, Zweiger et al. 2025,
arXiv 2506.10943, section 3.1):

* propose: R·P·k self-edits are written;
* try: each passage has its baseline's trials and those of its candidates, k·r with r repeats, and
  under racing k + 2·(r − 1); each trial trains on T tokens and answers the passage's questions;
* fit: the generator learns from prompt and self-edit of what was kept, E times;
* held-out: H other passages are written and tried with every generator, R + 1 times;
* expert: the final expert, where it is asked for.

Not counted: the quality filter, and trials that fail and are run again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

from aios.core import estimates

FINALISTS = 2  # of a passage, under racing
_MANY = 10**9
End = Literal["low", "middle", "high"]
ENDS: tuple[End, ...] = ("low", "middle", "high")


@dataclass(frozen=True, slots=True)
class Span:
    """A quantity that is not known exactly; low ≤ middle ≤ high, none below 0."""

    low: float
    middle: float
    high: float

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.middle <= self.high:
            raise ValueError(f"{self.low}, {self.middle}, {self.high} are not in order from 0")

    @classmethod
    def exactly(cls, value: float) -> Span:
        """A quantity that is known."""
        return cls(value, value, value)

    @classmethod
    def of_mean(cls, values: Sequence[float]) -> Span:
        """The mean that few measured values stand for, with the interval of `core.estimates`.

        Raises:
            ValueError: There is no value.
        """
        if not values:
            raise ValueError("nothing was measured")
        probed = tuple(estimates.ProbedPassage(value, 0) for value in values)
        found = estimates.estimate(_Endless(), estimates.Probe(probed, math.fsum(values)))
        ends = (found.seconds_low, found.seconds, found.seconds_high)
        return cls(*(end / _MANY for end in ends))

    @classmethod
    def of_rate(cls, pieces: Sequence[tuple[float, float]]) -> Span:
        """Tokens a second, from timed pieces of work (tokens, seconds); empty ones do not count.

        Raises:
            ValueError: No piece has tokens and took time.
        """
        took = cls.of_mean([seconds / n for n, seconds in pieces if n > 0 and seconds > 0])
        return cls(1 / took.high, 1 / took.middle, 1 / took.low)

    def times(self, other: float | Span) -> Span:
        """The product; ends with ends."""
        by = Span.exactly(other) if isinstance(other, (int, float)) else other
        return Span(self.low * by.low, self.middle * by.middle, self.high * by.high)


@dataclass(frozen=True, slots=True)
class _Endless:
    """An `estimates.Workload` of which a probe is a vanishing part."""

    passages: int = _MANY
    candidates: int = _MANY
    cached: int = 0
    prompt_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Tokens:
    """Tokens by what is done with them.

    Attributes:
        read: Prompts, before writing.
        written: By the generator.
        trained: In trials, every pass counted.
        scored: Questions and answers.
        fitted: In the M-step or the expert's training, every pass counted.
    """

    read: float = 0.0
    written: float = 0.0
    trained: float = 0.0
    scored: float = 0.0
    fitted: float = 0.0

    def __add__(self, other: Tokens) -> Tokens:
        return Tokens(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(Tokens)))


@dataclass(frozen=True, slots=True)
class Workload:
    """What a run is to do. Tokens are the base model's.

    Attributes:
        passages: Passages of a round.
        rounds: Rounds.
        candidates: Self-edits of each passage and round.
        pool: Passages that rounds draw from, in turn: none comes again before all have been.
        held_out: Passages that generators are compared on, before the first round and after each.
        held_out_candidates: Self-edits of each of these.
        repeats: Trials of each candidate; under racing, of the best two.
        racing: One trial each, and the further repeats for the best two.
        baseline_repeats: Trials of each passage's baseline; 0 where that is no training.
        keeps_baselines: Whether a passage that comes again has its baseline from the record.
        prompts: Prompts that are read for a passage: strategies in use.
        prompt_tokens: Tokens of a prompt.
        edit_tokens: Tokens written for a self-edit.
        passage_tokens: Tokens of a passage.
        trial_tokens: Tokens that each trial trains on; None: `trial_epochs` over passage and edit.
        trial_epochs: Passes of a trial without a budget of tokens.
        questions: Questions of a passage.
        question_tokens: Tokens of a question with its prompt and answer.
        kept: Self-edits of a passage that the generator learns from.
        sft_epochs: Passes of the M-step.
        expert_written: Tokens written for the final expert; 0 without one.
        expert_tokens: Tokens that it is trained on, every pass counted.
    """

    passages: int
    rounds: int
    candidates: int
    pool: int
    held_out: int = 0
    held_out_candidates: int = 1
    repeats: int = 2
    racing: bool = True
    baseline_repeats: int = 2
    keeps_baselines: bool = True
    prompts: int = 1
    prompt_tokens: float = 0.0
    edit_tokens: Span = Span(0.0, 0.0, 0.0)
    passage_tokens: float = 0.0
    trial_tokens: float | None = 1500.0
    trial_epochs: int = 1
    questions: float = 1.0
    question_tokens: float = 0.0
    kept: Span = Span(1.0, 1.0, 1.0)
    sft_epochs: int = 1
    expert_written: Span = Span(0.0, 0.0, 0.0)
    expert_tokens: Span = Span(0.0, 0.0, 0.0)

    def trials_of(self, candidates: int) -> int:
        """Trials of a passage with so many candidates, its baseline's left out."""
        if self.racing:
            return candidates + min(candidates, FINALISTS) * (self.repeats - 1)
        return candidates * self.repeats

    @property
    def baselines(self) -> tuple[int, int]:
        """Baselines that are trained for rounds, and for held-out passages."""
        if self.keeps_baselines:
            return min(self.pool, self.rounds * self.passages), self.held_out
        return self.rounds * self.passages, (self.rounds + 1) * self.held_out

    @property
    def trials_in_rounds(self) -> int:
        """Trials of the rounds' passages, those of baselines included."""
        tried = self.rounds * self.passages * self.trials_of(self.candidates)
        return tried + self.baselines[0] * self.baseline_repeats

    @property
    def trials(self) -> int:
        """Trials of the run, those of held-out passages included."""
        visits = (self.rounds + 1) * self.held_out
        tried = visits * self.trials_of(self.held_out_candidates)
        return self.trials_in_rounds + tried + self.baselines[1] * self.baseline_repeats

    def trial_size(self, end: End = "middle") -> float:
        """Tokens that a candidate's trial trains on."""
        if self.trial_tokens is not None:
            return self.trial_tokens
        edit: float = getattr(self.edit_tokens, end)
        return self.trial_epochs * (self.passage_tokens + edit)

    def tokens(self, end: End = "middle") -> dict[str, Tokens]:
        """Tokens by stage, at one end of what is not known exactly."""
        edit, kept = getattr(self.edit_tokens, end), getattr(self.kept, end)
        of_rounds, of_held_out = self.baselines
        visits = self.rounds * self.passages
        held_out_visits = (self.rounds + 1) * self.held_out
        written = self._written(held_out_visits, self.held_out_candidates, edit)
        tried = self._tried(held_out_visits, self.held_out_candidates, of_held_out, end)
        return {
            "propose": self._written(visits, self.candidates, edit),
            "try": self._tried(visits, self.candidates, of_rounds, end),
            "fit": Tokens(fitted=visits * kept * self.sft_epochs * (self.prompt_tokens + edit)),
            "held-out": written + tried,
            "expert": Tokens(
                written=getattr(self.expert_written, end), fitted=getattr(self.expert_tokens, end)
            ),
        }

    def _written(self, visits: int, candidates: int, edit: float) -> Tokens:
        prompts = min(self.prompts, candidates)
        return Tokens(
            read=visits * prompts * self.prompt_tokens, written=visits * candidates * edit
        )

    def _tried(self, visits: int, candidates: int, baselines: int, end: End) -> Tokens:
        trials = visits * self.trials_of(candidates)
        of_baselines = baselines * self.baseline_repeats
        alone = self.trial_tokens
        if alone is None:
            alone = self.trial_epochs * self.passage_tokens
        asked = trials + of_baselines + baselines  # once more of the untrained model
        return Tokens(
            trained=trials * self.trial_size(end) + of_baselines * alone,
            scored=asked * self.questions * self.question_tokens,
        )
