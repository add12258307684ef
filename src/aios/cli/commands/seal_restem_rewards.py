"""``aios seal restem rewards``: what each self-edit of a run earned, during the run or after it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from aios.cli.commands.seal_restem_watch import run_argument
from aios.cli.completing import RESTEM_RUNS, completes
from aios.cli.options import Command, Common, common_options, load
from aios.core.errors import UsageError

if TYPE_CHECKING:
    from aios.app.restem.records import RoundRewards
    from aios.cli.restem_tables import CandidateRow

_PASSAGES_LISTED = 5


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
@click.option(
    "--run-id",
    metavar="RUN",
    shell_complete=completes(RESTEM_RUNS, or_file=True),
    help="The run, as in its place.",
)
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
    from aios.app.restem.folders import find_run
    from aios.app.restem.records import read_rewards
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
