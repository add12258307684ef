"""The candidates of a passage, and what their trials have said of them so far.

A trial is repeated with other seeds, since one reward repeats poorly. A `Candidate` gives the jobs
of its repeats; a `Standing` holds their values and failures; `ranked` puts candidates in order.
A candidate whose trials have all failed has no number and no rank.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from statistics import fmean

from aios.core.data.probes import Probe
from aios.core.seeds import derive
from aios.core.trials import TrialJob
from aios.core.types import Failure, TrainExample

_TIE_DIGITS = 12  # means are compared after rounding: (0.1 + 0.7) / 2 ties with 0.4


@dataclass(frozen=True, slots=True)
class Candidate:
    """One of the self-edits between which a race decides.

    Attributes:
        id: Unique in a race.
        passage_id: The passage that it was made from.
        examples: What its trials train on; at least one.
        questions: What its trials are asked.
        max_steps: Optimiser steps of its trials; None for the template's.
    """

    id: str
    passage_id: str
    examples: tuple[TrainExample, ...]
    questions: tuple[Probe, ...] = ()
    max_steps: int | None = None

    def job(self, repeat: int, template: TrialJob) -> TrialJob:
        """One repeat as a job.

        Args:
            repeat: Its number, from 0.
            template: Recipe and options of the job; its seed is the run's. The template's id,
                examples and questions are not used.

        Returns:
            A job with id ``<candidate id>/repeat-<k>``. Its seed is derived from the run's seed,
            the passage and k: the candidates of a passage begin their k-th trial with the same
            adapter, so that this chance is no part of their difference (common random numbers).
        """
        return replace(
            template,
            id=f"{self.id}/repeat-{repeat}",
            seed=derive(template.seed, "trial", self.passage_id, repeat),
            examples=self.examples,
            questions=self.questions,
            max_steps=template.max_steps if self.max_steps is None else self.max_steps,
        )


@dataclass(frozen=True, slots=True)
class Standing:
    """What is known of a candidate.

    Attributes:
        candidate: The candidate.
        repeats: Numbers of its repeats that have a value, ascending.
        values: Their values, in the same order.
        failures: Its trials without a value, by repeat.
    """

    candidate: Candidate
    repeats: tuple[int, ...] = ()
    values: tuple[float, ...] = ()
    failures: tuple[Failure, ...] = ()

    @property
    def mean(self) -> float | None:
        """Mean of the values; None without one: a candidate that only failed has no number."""
        return fmean(self.values) if self.values else None


@dataclass(frozen=True, slots=True)
class PassageState:
    """What a schedule decides on: a passage none of whose trials is under way.

    Attributes:
        passage_id: The passage.
        stage: How many times the schedule has been asked about it before.
        standings: One a candidate, in the candidates' order.
    """

    passage_id: str
    stage: int
    standings: tuple[Standing, ...]


@dataclass(frozen=True, slots=True)
class PassageResult:
    """What a race came to.

    Attributes:
        passage_id: The passage.
        standings: One a candidate, in the candidates' order, those that only failed included.
        chosen: The candidate with the best mean; on ties the one with more values, then the
            first. None if no candidate has a value.
        trials: Trials spent, failed ones and their retries included.
    """

    passage_id: str
    standings: tuple[Standing, ...]
    chosen: Candidate | None
    trials: int

    @property
    def failures(self) -> tuple[Failure, ...]:
        """All trials without a value, by candidate and repeat."""
        return tuple(failure for standing in self.standings for failure in standing.failures)


def ranked(standings: Iterable[Standing]) -> list[Standing]:
    """The candidates that have a value, best first: by mean, then number of values, then order."""
    able = [(standing.mean, standing) for standing in standings]
    with_value = [(mean, standing) for mean, standing in able if mean is not None]
    with_value.sort(key=lambda pair: (-round(pair[0], _TIE_DIGITS), -len(pair[1].values)))
    return [standing for _, standing in with_value]
