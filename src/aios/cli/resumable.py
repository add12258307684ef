"""A run that is shown while it works, and that a command line can go on with when it has ended."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from aios.cli.options import Common, original_args
from aios.core.events import Event, RunStarted
from aios.core.protocols import Emit, ShouldStop

if TYPE_CHECKING:
    from aios.core.config.schemas import Config


@contextmanager
def resumable_run(
    common: Common, config: Config, folder: Path | None, *, place: str, verbose: bool
) -> Iterator[tuple[Emit, ShouldStop]]:
    """Shows a run's events for the time of a block; Ctrl-C stops it, with the line to go on with.

    Args:
        common: The common options.
        config: The resolved config: where a run lies by default.
        folder: The run's directory, where it is known beforehand.
        place: The option that names it on the command line; ``--resume`` takes its place.
        verbose: Show each evaluation.

    Yields:
        What the run emits its events to, and what it asks whether to stop.

    Raises:
        RunInterrupted: The run stopped early; the remedy is the line to go on with.
    """
    from aios.cli.interrupts import resume_line, stop_on_signals
    from aios.cli.progress import show_progress

    runs: list[str] = []  # ids, as their RunStarted events tell them

    def going_on() -> str:
        where = folder or (config.paths.artifacts / "runs" / runs[0] if runs else None)
        if where is None:
            return ""
        drop = ["--resume=", f"{place}="]
        return resume_line(original_args(), drop=drop, add=["--resume", str(where)])

    with (
        show_progress(quiet=common.quiet, verbose=verbose) as show,
        stop_on_signals(going_on) as should_stop,
    ):

        def emit(event: Event) -> None:
            if isinstance(event, RunStarted):
                runs.append(event.run)
            show(event)

        yield emit, should_stop
