"""The one event stream: what happened in a run, as typed records.

Code in `core` calls ``emit(event)``. A run directory records events as JSON lines; progress bars
and pages subscribe to them or read that file. Every event is a frozen dataclass of JSON values;
`encode` and `decode` translate. The time of an event is added by the recorder, not here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass(frozen=True, slots=True)
class RunStarted:
    """A run began (or went on, if `resumed`)."""

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
    """Work done so far in a stage, in its unit; `note` is a short text such as ``loss 2.91``."""

    stage: str
    done: float
    note: str = ""


@dataclass(frozen=True, slots=True)
class StageFinished:
    """A stage ended; `summary` is one line for people."""

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
    """

    passage_id: str
    kept: int
    dropped: int
    cached: int
    generated: int
    tokens: int
    seconds: float
    retries: int = 0


@dataclass(frozen=True, slots=True)
class Dropped:
    """The quality filter left something out."""

    passage_id: str
    strategy: str
    index: int
    reason: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Evaluated:
    """An evaluation during a training (`core.types.CurvePoint` with the training's name)."""

    training: str
    step: int
    epoch: float
    tokens: int
    train_loss: float | None
    validation_loss: float | None
    seconds: float


@dataclass(frozen=True, slots=True)
class WorkFailed:
    """A `core.types.Failure` was recorded."""

    boundary: str
    subject: str
    error: str
    retryable: bool = False


@dataclass(frozen=True, slots=True)
class Notice:
    """Something a person should know. `level` is ``info`` or ``warning``."""

    message: str
    level: str = "info"


@dataclass(frozen=True, slots=True)
class RunFinished:
    """A run ended. `status` is ``done``, ``failed`` or ``interrupted``."""

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
    try:
        event: Event = kind(**{k: v for k, v in record.items() if k in names})
    except TypeError as error:
        raise ValueError(f"bad {kind.__name__} event: {error}") from error
    return event
