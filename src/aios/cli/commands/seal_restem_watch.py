"""``aios seal restem status | stop``: a run watched and stopped from another terminal.

These commands read the run's directory; they never wait for the process that works on it, and the
run does not notice them, but for the request to stop.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from aios.cli.completing import RESTEM_RUNS, completes
from aios.cli.options import Command, Common, common_options, load
from aios.core.errors import UsageError

if TYPE_CHECKING:
    from aios.app.restem.status import RunFollower, RunStatus

_PASSAGES_LISTED = 5
_WAIT_SECONDS = 0.5
_PACE_FIELDS = ("eta_stage", "eta_run")  # these change with the clock alone

run_argument = click.argument(
    "run", required=False, shell_complete=completes(RESTEM_RUNS, or_file=True)
)


@click.command(
    "status",
    cls=Command,
    short_help="Show how a run is doing.",
    examples=("aios seal restem status", "aios seal restem status RUN --watch"),
)
@run_argument
@click.option("--watch", is_flag=True, help="Go on showing it until the run ends.")
@click.option(
    "--interval",
    type=click.FloatRange(min=0.05, max=3600),
    default=2.0,
    show_default=True,
    metavar="S",
    help="Seconds between two looks, with --watch.",
)
@common_options
def status(common: Common, run: str | None, watch: bool, interval: float) -> None:
    """Show how a ReST-EM run is doing, while it runs or afterwards.

    RUN is a run's id or its directory; without it the newest. Shows round, stage, trials done and
    left, rate, time left, memory and failures; a line for each finished round; and how the
    improvements of the candidates are spread.

    Held-out: mean improvement of the generator's self-edits on passages that it does not learn
    from; gain: over the untrained generator.
    """
    config = load(common).config
    from aios.app.restem.folders import find_run
    from aios.app.restem.status import RunFollower

    follower = RunFollower(find_run(config, run))
    if watch:
        _watch(common, follower, interval)
        return
    current = follower.status()
    if common.json_output:
        from aios.cli.rendering import write_json
        from aios.cli.restem_tables import status_document

        write_json(status_document(current))
    else:
        _write_status(current)


def _watch(common: Common, follower: RunFollower, interval: float) -> None:
    from aios.cli.progress import can_draw

    looks = _looks(follower, interval)
    try:
        if common.json_output:
            _watch_json(looks)
        elif can_draw(sys.stdout):
            _watch_screen(looks)
        else:
            _watch_lines(looks)
    except KeyboardInterrupt:
        if not common.quiet:
            click.echo("no longer watching; the run goes on", err=True)
        click.get_current_context().exit(130)


def _looks(follower: RunFollower, interval: float) -> Iterator[RunStatus]:
    """The status again and again; the last is that of the ended run."""
    while True:
        current = follower.status()
        yield current
        if not current.live:
            return
        time.sleep(interval)


def _watch_json(looks: Iterator[RunStatus]) -> None:
    """A JSON line for each change."""
    from aios.cli.rendering import write_text
    from aios.cli.restem_tables import status_document

    before: dict[str, Any] = {}
    for current in looks:
        document = status_document(current)
        seen = {key: value for key, value in document.items() if key not in _PACE_FIELDS}
        if seen != before:
            write_text(json.dumps(document))
        before = seen


def _watch_lines(looks: Iterator[RunStatus]) -> None:
    """A line for each change and each finished round; at the end the whole status."""
    from aios.cli.rendering import write_line
    from aios.cli.restem_tables import round_text, stage_text

    before: tuple[object, ...] = ()
    told = 0
    for current in looks:
        reports = current.record.rounds
        for report in reports[told:]:
            write_line(round_text(report, reports[0]))
        told = len(reports)
        if not current.live:
            write_line()
            _write_status(current)
            return
        now = (current.state, current.round, current.stage, current.detail, current.done)
        line = stage_text(current)
        if now != before and line:
            asked = " (asked to stop)" if current.state == "stopping" else ""
            write_line(f"{time.strftime('%H:%M:%S')} {line}{asked}")
        before = now


def _watch_screen(looks: Iterator[RunStatus]) -> None:
    """Draws in place; at the end the whole status stays."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    from aios.cli.text import clean

    console = Console(file=sys.stdout, markup=False, emoji=False, highlight=False)
    last: RunStatus | None = None
    with Live(console=console, auto_refresh=False, transient=True) as live:
        for current in looks:
            last = current
            lines = "\n".join(clean(line) for line in _status_lines(current))
            live.update(Text(lines, no_wrap=True, overflow="ellipsis"), refresh=True)
    if last is not None:
        _write_status(last)


def _status_lines(current: RunStatus) -> list[str]:
    from datetime import datetime, timezone

    from aios.cli.restem_tables import status_lines
    from aios.cli.text_plots import can_write_blocks

    blocks = can_write_blocks(sys.stdout.encoding)
    return status_lines(current, datetime.now(timezone.utc), blocks=blocks)


def _write_status(current: RunStatus) -> None:
    from aios.cli.rendering import write_line

    for line in _status_lines(current):
        write_line(line)


# ------------------------------------------------------------ stop


@click.command(
    "stop",
    cls=Command,
    short_help="Ask a run to stop; it can be resumed.",
    examples=("aios seal restem stop", "aios seal restem stop RUN --wait"),
)
@run_argument
@click.option("--wait", is_flag=True, help="Wait until it has stopped.")
@common_options
def stop(common: Common, run: str | None, wait: bool) -> None:
    """Ask a ReST-EM run to stop after the work in hand.

    RUN is a run's id or its directory; without it the one that is running. Nothing that is
    finished is lost; the line to go on with is printed.
    """
    config = load(common).config
    from aios.app.restem.folders import find_run, request_stop, running_runs
    from aios.app.restem.status import RunFollower

    if run is None:
        running = running_runs(config)
        if len(running) > 1:
            names = ", ".join(path.name for path in running)
            raise UsageError("several runs are going on", f"name the one to stop: {names}")
        path = running[0] if running else find_run(config, None)
    else:
        path = find_run(config, run)
    asked = request_stop(path)
    follower = RunFollower(path)
    if wait and asked:
        if not common.quiet:
            click.echo(f"waiting until run {path.name} has stopped", err=True)
        *_, current = _looks(follower, _WAIT_SECONDS)
    else:
        current = follower.status()
    _write_stopped(common, asked, current)


def _write_stopped(common: Common, asked: bool, current: RunStatus) -> None:
    from aios.cli.rendering import write_json, write_line
    from aios.cli.restem_tables import STATES

    if common.json_output:
        document = {"run": current.id, "path": current.path, "asked": asked}
        write_json({**document, "state": current.state, "resume": current.resume})
        return
    if not asked:
        write_line(f"nothing works on run {current.id}: {STATES[current.state]}")
    elif current.live:
        write_line(f"run {current.id} was asked to stop; it does so after the work in hand")
    else:
        write_line(f"run {current.id}: {STATES[current.state]}")
    if current.state != "done":
        write_line(f"go on with: {current.resume}")
