"""How long an A/B test or the training of an expert takes, from what earlier runs took.

Takes the work (`core.training_work`) and what was measured of the machine: pieces of work with
their seconds, from earlier runs (`RunCosts`) or from a probe, which is a run in small. Gives
seconds with a low and a high end. Pure arithmetic: nothing is read or timed here.

A pace is the seconds of a unit of work: a self-edit, a token trained on, a token scored, a question
answered. Its middle is all seconds over all units. Its ends are a 90 % prediction interval for one
more piece (t-interval of the logarithms of the pieces' paces), at least a tenth less to a tenth
more: a machine's speed is no better known than that. From few pieces such an interval is too
wide to say anything; it is then at most half to double, or as far as the pieces lie apart.

The ends of the parts are added up, as if all were off in the same direction. That is wider than
an interval of independent errors, on purpose: other work on the machine slows all parts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev
from typing import TypeAlias

from aios.core.estimates import LEAST_MARGIN, SINGLE_MARGIN, t95
from aios.core.restem_workload import Span
from aios.core.training_work import NOTHING, EditSizes, TrainingWork, added

Pieces: TypeAlias = "tuple[tuple[float, float], ...]"
WRITING = "self-edits"
PARTS = (WRITING, "training", "validation", "answers")
ONCE = "once"
MOST_PIECES = 64  # of a part of a run
_MOST_AMOUNT = 1e15


@dataclass(frozen=True, slots=True)
class Manner:
    """What the speed of a run depends on, in words: equal words, equal speeds.

    Attributes:
        where: Base model, device, number format and machine.
        writing: How self-edits are written.
        training: How an adapter is trained.
        answering: How questions are answered.
    """

    where: str
    writing: str
    training: str
    answering: str


@dataclass(frozen=True, slots=True)
class RunCosts:
    """What a run has measured of the machine that it ran on; pieces are (units, seconds).

    Attributes:
        manner: What that depends on.
        written: Self-edits that were written, none of them from the cache.
        trained: Tokens trained on, evaluations left out.
        scored: Tokens scored in evaluations, with what else an evaluation does.
        answered: Questions answered after a training, their scores included.
        once_seconds: All else: loading the model, reading, reports; None if not known.
        peak_memory_bytes: Most memory in a training, of the process or the GPU; 0 if not known.
        device: The kind of device: ``cpu``, ``cuda`` or ``mps``.
        characters_per_token: Of the passages; None if not known.
        edit_tokens: Tokens of kept self-edits for a token of their passage, of some passages.
        edit_items: Examples of them, of the same passages.

    Raises:
        ValueError: A number is not finite, or is out of range.
    """

    manner: Manner
    written: Pieces = ()
    trained: Pieces = ()
    scored: Pieces = ()
    answered: Pieces = ()
    once_seconds: float | None = None
    peak_memory_bytes: int = 0
    device: str = "cpu"
    characters_per_token: float | None = None
    edit_tokens: tuple[float, ...] = ()
    edit_items: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        parts = (self.written, self.trained, self.scored, self.answered)
        for found in (*parts, self.edit_tokens, self.edit_items):
            if len(found) > MOST_PIECES:
                raise ValueError(f"{len(found)} pieces of work; at most {MOST_PIECES} are kept")
        for pieces in parts:
            if not all(_is_amount(value) and value > 0 for piece in pieces for value in piece):
                raise ValueError("a piece of work has no amount, or took no time")
        others = (self.once_seconds or 0.0, self.peak_memory_bytes)
        if not all(map(_is_amount, (*others, *self.edit_tokens, *self.edit_items))):
            raise ValueError("a number is negative or not finite")
        per_token = self.characters_per_token
        if per_token is not None and not 0.01 <= per_token <= 1000:
            raise ValueError(f"{per_token} characters a token")


@dataclass(frozen=True, slots=True)
class Paces:
    """How fast the machine is: seconds a unit of each part. What was not measured is None.

    Attributes:
        seconds: By part, as in `PARTS`.
        once: Seconds of all else, however much there is to do.
        edits: How much self-edits add to passages.
        characters_per_token: Of passages.
        peak_memory_bytes: Most memory that a training took.
        device: The kind of device that it took it of.
        runs: Runs that any of it comes from; 0 for a probe.
    """

    seconds: Mapping[str, Span]
    once: Span | None = None
    edits: EditSizes | None = None
    characters_per_token: float | None = None
    peak_memory_bytes: int | None = None
    device: str = "cpu"
    runs: int = 0

    def filled(self, other: Paces) -> Paces:
        """These, and from others what these lack."""
        memory = self.peak_memory_bytes is not None
        return replace(
            self,
            seconds={**other.seconds, **self.seconds},
            once=self.once or other.once,
            edits=self.edits or other.edits,
            characters_per_token=self.characters_per_token or other.characters_per_token,
            peak_memory_bytes=self.peak_memory_bytes if memory else other.peak_memory_bytes,
            device=self.device if memory else other.device,
        )


@dataclass(frozen=True, slots=True)
class TrainingEstimate:
    """How long a job takes.

    Attributes:
        seconds: In all.
        parts: By part, `ONCE` among them.
        arms: One training or examination of each arm, by its name.
    """

    seconds: Span
    parts: Mapping[str, Span]
    arms: Mapping[str, Span]


def pace(pieces: Sequence[tuple[float, float]]) -> Span:
    """Seconds a unit, from pieces of work.

    Args:
        pieces: Units and seconds of each, both above 0; at least one.
    """
    middle = math.fsum(seconds for _, seconds in pieces) / math.fsum(n for n, _ in pieces)
    margin = SINGLE_MARGIN
    if len(pieces) > 1:
        logs = [math.log(seconds / units) for units, seconds in pieces]
        spread, count = stdev(logs), len(logs)
        most = max(SINGLE_MARGIN, *(abs(log - math.log(middle)) for log in logs))
        margin = min(most, t95(count - 1) * spread * math.sqrt(1 + 1 / count))
    margin = max(LEAST_MARGIN, margin)
    return Span(middle * math.exp(-margin), middle, middle * math.exp(margin))


def paces_of(runs: Sequence[RunCosts], manner: Manner) -> Paces:
    """How fast the machine is, by those of some runs that did their work in the same manner.

    Args:
        runs: Runs, wherever and however.
        manner: That of the job to come.
    """
    here = [run for run in runs if run.manner.where == manner.where]
    writing = [run for run in here if run.manner.writing == manner.writing]
    training = [run for run in here if run.manner.training == manner.training]
    answering = [run for run in here if run.manner.answering == manner.answering]
    pieces = {
        WRITING: [piece for run in writing for piece in run.written],
        "training": [piece for run in training for piece in run.trained],
        "validation": [piece for run in here for piece in run.scored],
        "answers": [piece for run in answering for piece in run.answered],
    }
    once = [run.once_seconds for run in here if run.once_seconds]
    characters = [run.characters_per_token for run in here if run.characters_per_token]
    largest = max(training, key=lambda run: run.peak_memory_bytes, default=None)
    known = largest is not None and largest.peak_memory_bytes > 0
    used = {id(run) for part in (writing, training, answering) for run in part}
    return Paces(
        seconds={part: pace(found) for part, found in pieces.items() if found},
        once=pace([(1.0, seconds) for seconds in once]) if once else None,
        edits=_edit_sizes(writing),
        characters_per_token=fmean(characters) if characters else None,
        peak_memory_bytes=largest.peak_memory_bytes if known and largest else None,
        device=largest.device if known and largest else "cpu",
        runs=len(used),
    )


def missing(work: TrainingWork, paces: Paces) -> tuple[str, ...]:
    """Parts of the work whose pace is not known."""
    units = _units(work)
    return tuple(part for part in PARTS if units[part].high and part not in paces.seconds)


def estimate(work: TrainingWork, paces: Paces) -> TrainingEstimate | None:
    """How long the work takes; None where the pace of a part is not known.

    What is done once counts as nothing where it was not measured.
    """
    if missing(work, paces):
        return None
    parts = {
        part: paces.seconds[part].times(units) if units.high else NOTHING
        for part, units in _units(work).items()
    }
    parts[ONCE] = paces.once or NOTHING
    arms = {}
    for arm in work.arms:
        spans = (("training", arm.trained), ("validation", arm.scored))
        own = [paces.seconds[part].times(units) for part, units in spans if units.high]
        if arm.answered:
            own.append(paces.seconds["answers"].times(arm.answered))
        arms[arm.name] = added(own)
    return TrainingEstimate(added(list(parts.values())), parts, arms)


def _units(work: TrainingWork) -> dict[str, Span]:
    return {
        WRITING: work.written,
        "training": work.trained,
        "validation": work.scored,
        "answers": Span.exactly(work.answered),
    }


def _edit_sizes(runs: Sequence[RunCosts]) -> EditSizes | None:
    """How much self-edits add, on the mean; from runs that wrote any."""
    tokens = [value for run in runs for value in run.edit_tokens]
    items = [value for run in runs for value in run.edit_items]
    if not tokens or not items:
        return None
    return EditSizes(Span.of_mean(tokens), Span.of_mean(items))


def _is_amount(value: float) -> bool:
    return 0 <= value <= _MOST_AMOUNT  # not so for NaN
