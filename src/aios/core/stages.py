"""Stages of work, shown while they run: the events of one, and of one that runs trials."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from aios.core.events import Event, StageFinished, StageProgress, StageStarted
from aios.core.protocols import Emit

TRIALS = "trials"  # the stage that executors show their trials by


class ShowDone(Protocol):
    """Shows how much of a stage is done."""

    def __call__(self, done: float, note: str = "") -> None:
        """Tells the units that are done, and a short text beside them."""
        ...


@contextmanager
def shown_stage(emit: Emit, name: str, total: float, unit: str) -> Iterator[ShowDone]:
    """Shows a stage while a block runs; one that fails is not shown as finished.

    Args:
        emit: Told of it.
        name: Of the stage.
        total: Units of work.
        unit: What is counted, e.g. ``passages``.

    Yields:
        What to call with the units that are done.
    """

    def show(done: float, note: str = "") -> None:
        emit(StageProgress(name, done, note))

    began = time.monotonic()
    emit(StageStarted(name, total, unit))
    yield show
    emit(StageFinished(name, time.monotonic() - began))


def counting_trials(emit: Emit, show: Callable[[float], None]) -> Emit:
    """What the executor emits to in a stage that runs trials, in one call of it or in several.

    The executor's own stages are not shown, but counted together; all else is passed on.

    Args:
        emit: Told of all else.
        show: Called with the trials of all calls that are done, whenever there is progress.
    """
    before = trials = 0.0  # of the calls before this one; and with this one's

    def heard(event: Event) -> None:
        nonlocal before, trials
        if isinstance(event, StageProgress):
            if event.stage == TRIALS:
                trials = before + event.done
            show(trials)
        elif isinstance(event, StageStarted):
            before = trials
        elif not isinstance(event, StageFinished):
            emit(event)

    return heard
