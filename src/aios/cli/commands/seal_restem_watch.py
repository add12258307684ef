"""``aios seal restem status | rewards | stop``: a run watched and stopped from another terminal.

These commands read the run's directory; they never wait for the process that works on it, and the
run does not notice them, but for the request to stop.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from aios.cli.options import Command, Common, common_options, load
from aios.core.errors import UsageError

if TYPE_CHECKING:
    from aios.app.restem.runs import RoundRewards, RunFollower, RunStatus
    from aios.cli.restem_tables import CandidateRow

_PASSAGES_LISTED = 5
_WAIT_SECONDS = 0.5
_PACE_FIELDS = ("eta_stage", "eta_run")  # these change with the clock alone

run_argument = click.argument("run", required=False)


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
    from aios.app.restem.runs import RunFollower, find_run

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


# ------------------------------------------------------------ rewards


@click.command(
    "rewards",
    cls=Command,
    short_help="Show what each self-edit of a run earned.",
    examples=(
        "aios seal restem rewards --run-id RUN",
        "aios seal restem rewards --round 1 --best 5 --worst 5",
    ),
)
@run_argument
@click.option("--run-id", metavar="RUN", help="The run, as in its place.")
@click.option("--round", "number", type=click.IntRange(min=0), metavar="N", help="Only this round.")
@click.option("--passage", metavar="ID", help="Only candidates of this passage.")
@click.option("--best", type=click.IntRange(min=1), metavar="N", help="The N best candidates.")
@click.option("--worst", type=click.IntRange(min=1), metavar="N", help="The N worst candidates.")
@common_options
def rewards(
    common: Common,
    run: str | None,
    run_id: str | None,
    number: int | None,
    passage: str | None,
    best: int | None,
    worst: int | None,
) -> None:
    """Show what each self-edit of a run earned.

    By round and passage: the strategy, the trials that gave a number, the mean improvement over
    the baseline with its standard error over these trials, whether it was rewarded, whether the
    generator learned from it, the gain in accuracy, and how it begins. A round is there when its
    trials are done.
    """
    if run is not None and run_id is not None and run != run_id:
        raise UsageError(f"two runs are given, {run!r} and --run-id {run_id!r}", "give one of them")
    config = load(common).config
    from aios.app.restem.runs import find_run, read_rewards
    from aios.cli.restem_tables import candidate_rows, ranked

    path = find_run(config, run if run is not None else run_id)
    rounds = _rounds_wanted(read_rewards(path), number)
    rows = candidate_rows(rounds, passage=passage)
    if passage is not None and not rows:
        raise _unknown_passage(passage, candidate_rows(rounds))
    chosen = {
        name: ranked(rows, count, best=name == "best")
        for name, count in (("best", best), ("worst", worst))
        if count is not None
    }
    if common.json_output:
        _write_rewards_json(path, rounds, rows, chosen)
    elif chosen:
        _write_chosen(chosen)
    else:
        _write_rounds(rounds, rows)


def _rounds_wanted(rounds: Sequence[RoundRewards], number: int | None) -> list[RoundRewards]:
    if number is None:
        return list(rounds)
    found = [one for one in rounds if one.number == number]
    if not found:
        there = ", ".join(str(one.number) for one in rounds)
        raise UsageError(
            f"round {number} has no candidates yet",
            f"rounds that have: {there}" if there else "no round has: its trials are not done",
        )
    return found


def _unknown_passage(passage: str, rows: Sequence[CandidateRow]) -> UsageError:
    known = list(dict.fromkeys(row.passage_id for row in rows))
    more = ", …" if len(known) > _PASSAGES_LISTED else ""
    there = f"there are {', '.join(known[:_PASSAGES_LISTED])}{more}" if known else "there is none"
    return UsageError(f"no candidate of passage {passage!r} was tried", there)


def _write_rewards_json(
    path: Path,
    rounds: Sequence[RoundRewards],
    rows: Sequence[CandidateRow],
    chosen: dict[str, list[CandidateRow]],
) -> None:
    from aios.cli.rendering import write_json
    from aios.cli.restem_tables import candidate_document

    document: dict[str, Any] = {"run": path.name, "path": path}
    if chosen:
        document |= {name: [candidate_document(row) for row in of] for name, of in chosen.items()}
    else:
        document["rounds"] = [
            {
                "round": one.number,
                "broken_lines": one.broken,
                "passages": _passages_json(one, rows),
            }
            for one in rounds
        ]
    write_json(document)


def _passages_json(one: RoundRewards, rows: Sequence[CandidateRow]) -> list[dict[str, Any]]:
    from aios.cli.restem_tables import candidate_document

    candidates: dict[tuple[bool, str], list[dict[str, Any]]] = {}
    for row in rows:
        if row.round == one.number:
            key = (row.held_out, row.passage_id)
            candidates.setdefault(key, []).append(candidate_document(row))
    return [
        {
            "passage_id": of.passage_id,
            "held_out": held_out,
            "asked": of.asked,
            "trials": of.trials,
            "failed_trials": of.failed_trials,
            "before": of.before,
            "baseline": of.baseline,
            "candidates": candidates[held_out, of.passage_id],
        }
        for held_out, passages in ((False, one.tried), (True, one.held_out))
        for of in passages
        if (held_out, of.passage_id) in candidates
    ]


def _write_rounds(rounds: Sequence[RoundRewards], rows: Sequence[CandidateRow]) -> None:
    from aios.cli.rendering import write_line, write_table
    from aios.cli.restem_tables import CANDIDATE_HEADINGS, candidate_cells, round_title

    if not rounds:
        write_line("No round has candidates yet: they are there when a round's trials are done.")
    for position, one in enumerate(rounds):
        if position:
            write_line()
        of_round = [row for row in rows if row.round == one.number]
        title = round_title(one, of_round)
        if not of_round:
            write_line(title)
            continue
        cells = [candidate_cells(row) for row in of_round]
        write_table(CANDIDATE_HEADINGS, cells, title=title, numeric=(2, 3, 4, 7))


def _write_chosen(chosen: dict[str, list[CandidateRow]]) -> None:
    from aios.cli.rendering import write_line, write_table
    from aios.cli.restem_tables import CANDIDATE_HEADINGS, candidate_cells

    for position, (name, rows) in enumerate(chosen.items()):
        if position:
            write_line()
        if not rows:
            write_line("No candidate has a reward yet.")
            return
        write_table(
            ("round", *CANDIDATE_HEADINGS),
            [(str(row.round), *candidate_cells(row)) for row in rows],
            title=f"{name.capitalize()} candidates",
            numeric=(0, 3, 4, 5, 8),
        )


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
    from aios.app.restem.runs import RunFollower, find_run, request_stop, running_runs

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
