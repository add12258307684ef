"""The one event stream: what happened in a run, as typed records.

Code in `core` calls ``emit(event)``. A run directory records events as JSON lines; progress bars
and pages subscribe to them or read that file. Every event is a frozen dataclass of JSON values;
`encode` and `decode` translate. The time of an event is added by the recorder, not here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any


@dataclass(frozen=True, slots=True)
class RunStarted:
    """A run began (or went on, if `resumed`).

    Attributes:
        run: Its id.
        kind: What sort of run it is, e.g. ``ab-test``.
        resumed: Whether it goes on with what an earlier process has done.
    """

    run: str
    kind: str
    resumed: bool = False


@dataclass(frozen=True, slots=True)
class StageStarted:
    """A stage with a known amount of work began; progress bars show it by its name.

    Attributes:
        stage: Name, e.g. ``generate`` or ``train passage seed 0``.
        total: Units of work; 0 if unknown.
        unit: What is counted, e.g. ``passages``.
    """

    stage: str
    total: float = 0
    unit: str = ""


@dataclass(frozen=True, slots=True)
class StageProgress:
    """Work done so far in a stage, in its unit; `note` is a short text such as ``loss 2.91``.

    Attributes:
        stage: The stage.
        done: Units of work that are done.
        note: What else to show.
    """

    stage: str
    done: float
    note: str = ""


@dataclass(frozen=True, slots=True)
class StageFinished:
    """A stage ended; `summary` is one line for people.

    Attributes:
        stage: The stage.
        seconds: How long it took.
        summary: What came of it.
    """

    stage: str
    seconds: float
    summary: str = ""


@dataclass(frozen=True, slots=True)
class PassageGenerated:
    """Self-edits of a passage are done.

    Attributes:
        passage_id: The passage.
        kept: Edits kept.
        dropped: Items or edits dropped by the quality filter.
        cached: Candidates that came from the cache.
        generated: Candidates that were made now.
        tokens: Tokens generated now.
        seconds: Time for them.
        retries: How often generation was tried again.
        edit_tokens: Tokens of each candidate that was made now, where that is known.
    """

    passage_id: str
    kept: int
    dropped: int
    cached: int
    generated: int
    tokens: int
    seconds: float
    retries: int = 0
    edit_tokens: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Dropped:
    """The quality filter left something out.

    Attributes:
        passage_id: The passage.
        strategy: What made it.
        index: The candidate number.
        reason: One of the quality filter's reasons, e.g. ``too_short``.
        detail: The measured value and limit, e.g. ``7 tokens < 20``.
    """

    passage_id: str
    strategy: str
    index: int
    reason: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Evaluated:
    """An evaluation during a training (`core.trainings.CurvePoint` with the training's name).

    Attributes:
        training: The training's name.
        step: Optimiser steps done.
        epoch: Passes over the examples done (may be fractional).
        tokens: Real tokens trained on so far (no padding).
        train_loss: Mean loss per label token since the last one; None before the first step.
        validation_loss: Mean loss per validation answer token; None without validation.
        seconds: Training time so far, evaluation excluded.
    """

    training: str
    step: int
    epoch: float
    tokens: int
    train_loss: float | None
    validation_loss: float | None
    seconds: float


@dataclass(frozen=True, slots=True)
class WorkFailed:
    """A `core.types.Failure` was recorded.

    Attributes:
        boundary: Where it was caught: ``generate``, ``parse``, ``train`` or ``score``.
        subject: What was worked on (a passage id, an arm's name, …).
        error: The error's message.
        retryable: Whether trying again may help.
    """

    boundary: str
    subject: str
    error: str
    retryable: bool = False


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The process lives; written at equal intervals while a long stage runs.

    Attributes:
        stage: What is watched, e.g. ``generate``.
        done: Units of it that are finished.
        idle_seconds: Time since the last of them was finished.
        rss_bytes: Resident memory of the process now; 0 where it cannot be read.
        peak_rss_bytes: The most it had since the process began.
    """

    stage: str
    done: float
    idle_seconds: float
    rss_bytes: int
    peak_rss_bytes: int


@dataclass(frozen=True, slots=True)
class Stalled:
    """Nothing has been finished for longer than is usual; a `Notice` says it to people.

    Attributes:
        stage: What is watched.
        idle_seconds: For how long nothing was finished.
        last: What was finished last, e.g. a passage's id; empty if nothing was yet.
        done: Units that are finished.
    """

    stage: str
    idle_seconds: float
    last: str = ""
    done: float = 0


@dataclass(frozen=True, slots=True)
class GenerationMeasured:
    """What a generation cost, from first to last passage (`core.telemetry.TelemetrySummary`).

    Attributes:
        stage: Its stage.
        figures: Numbers by name, e.g. ``tokens_per_second``; those without a value are left out.
        dropped_by_reason: Texts that the quality filter left out, by reason.
    """

    stage: str
    figures: Mapping[str, float]
    dropped_by_reason: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CandidateTried:
    """A candidate self-edit of a ReST-EM round has had its trials.

    Attributes:
        round: Number of the round, from 0.
        held_out: Whether its passage is one that generators are only compared on.
        passage_id: The passage.
        strategy: What made it.
        index: Its number among the passage's candidates.
        trials: Trials that gave a number.
        improvement: Mean improvement over the baseline, in the reward's unit; None if every
            trial failed.
    """

    round: int
    held_out: bool
    passage_id: str
    strategy: str
    index: int
    trials: int
    improvement: float | None


@dataclass(frozen=True, slots=True)
class RoundFinished:
    """A ReST-EM round is done and its state committed.

    Attributes:
        number: Of the round, from 0 (the untrained generator).
        summary: One line for people.
        report: `core.restem.RoundReport` as a JSON object.
    """

    number: int
    summary: str
    report: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Notice:
    """Something a person should know. `level` is ``info`` or ``warning``.

    Attributes:
        message: One or two sentences.
        level: How much it matters.
    """

    message: str
    level: str = "info"


@dataclass(frozen=True, slots=True)
class RunFinished:
    """A run ended. `status` is ``done``, ``failed`` or ``interrupted``.

    Attributes:
        run: Its id.
        status: How it ended.
        seconds: Time since this process began or resumed it.
        summary: What came of it, in a line.
    """

    run: str
    status: str
    seconds: float
    summary: str = ""


Event = (
    RunStarted
    | StageStarted
    | StageProgress
    | StageFinished
    | PassageGenerated
    | Dropped
    | Evaluated
    | WorkFailed
    | Heartbeat
    | Stalled
    | GenerationMeasured
    | CandidateTried
    | RoundFinished
    | Notice
    | RunFinished
)

_TYPES: dict[str, type[Any]] = {
    t.__name__: t
    for t in (
        RunStarted,
        StageStarted,
        StageProgress,
        StageFinished,
        PassageGenerated,
        Dropped,
        Evaluated,
        WorkFailed,
        Heartbeat,
        Stalled,
        GenerationMeasured,
        CandidateTried,
        RoundFinished,
        Notice,
        RunFinished,
    )
}


def encode(event: Event) -> dict[str, Any]:
    """The event as a JSON object; its class name stands under ``type``."""
    return {"type": type(event).__name__, **asdict(event)}


def decode(record: Mapping[str, Any]) -> Event:
    """The event of a JSON object; keys that it does not have (such as ``time``) are ignored.

    Raises:
        ValueError: Unknown type or missing field.
    """
    kind = _TYPES.get(str(record.get("type")))
    if kind is None:
        raise ValueError(f"unknown event type {record.get('type')!r}")
    names = {f.name for f in fields(kind)}
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in record.items() if k in names}
    try:
        event: Event = kind(**values)
    except TypeError as error:
        raise ValueError(f"bad {kind.__name__} event: {error}") from error
    return event
