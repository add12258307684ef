"""Stages are shown from their beginning to their end, and trials are counted over several calls."""

from __future__ import annotations

import pytest

from aios.core.events import Event, Notice, StageFinished, StageProgress, StageStarted
from aios.core.stages import TRIALS, counting_trials, shown_stage


def test_a_stage_is_shown_from_its_beginning_to_its_end() -> None:
    events: list[Event] = []
    with shown_stage(events.append, "write", 2, "passages") as done:
        done(1)
        done(2, "the last")
    *shown, last = events
    assert shown == [
        StageStarted("write", 2, "passages"),
        StageProgress("write", 1),
        StageProgress("write", 2, "the last"),
    ]
    assert isinstance(last, StageFinished)
    assert last.stage == "write"


def test_a_stage_that_fails_is_not_shown_as_finished() -> None:
    events: list[Event] = []
    with pytest.raises(ValueError, match="broken"), shown_stage(events.append, "write", 2, "x"):
        raise ValueError("broken")
    assert events == [StageStarted("write", 2, "x")]


def test_trials_of_several_calls_are_counted_together() -> None:
    passed: list[Event] = []
    counts: list[float] = []
    emit = counting_trials(passed.append, counts.append)
    for progress in ((1, 3), (2,)):
        emit(StageStarted(TRIALS, 3, "trials"))
        for number in progress:
            emit(StageProgress(TRIALS, number))
        emit(StageFinished(TRIALS, 0.1))
    assert counts == [1, 3, 5]
    assert not passed


def test_what_is_no_stage_of_the_executor_is_passed_on() -> None:
    passed: list[Event] = []
    counts: list[float] = []
    emit = counting_trials(passed.append, counts.append)
    emit(Notice("a worker is begun anew"))
    emit(StageProgress("download", 7))  # is progress, but of no trial
    assert passed == [Notice("a worker is begun anew")]
    assert counts == [0]
