"""``aios seal restem``: the model learns to write better self-edits.

This module holds the group and the command ``optimize``; watching, comparing, estimating and
tuning have modules of their own.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from aios.cli.commands.seal import model_option
from aios.cli.lazy import Entry, LazyGroup
from aios.cli.options import Command, Common, common_options, config_option, load
from aios.cli.restem_options import (
    dataset_option,
    executor_option,
    iterations_option,
    resume_option,
    run_folder_option,
    verbose_option,
    workers_option,
)

if TYPE_CHECKING:
    from aios.app.restem.job import ReSTEMReport
    from aios.core.config.schemas import Config

_HERE = "aios.cli.commands.seal_restem"
ENTRIES = {
    "optimize": Entry(f"{_HERE}:optimize", "Improve the generator of self-edits, in rounds."),
    "status": Entry(f"{_HERE}_watch:status", "Show how a run is doing."),
    "rewards": Entry(f"{_HERE}_rewards:rewards", "Show what each self-edit of a run earned."),
    "stop": Entry(f"{_HERE}_watch:stop", "Ask a run to stop; it can be resumed."),
    "compare": Entry(f"{_HERE}_compare:compare", "Compare two generators on the same passages."),
    "estimate": Entry(
        f"{_HERE}_estimate:estimate", "Tell time, memory and cost of a run beforehand."
    ),
    "tune": Entry(f"{_HERE}_tune:tune", "Search the settings of a run."),
}


@click.group("restem", cls=LazyGroup, entries=ENTRIES)
def restem() -> None:
    """Improve the generator of self-edits by ReST-EM.

    In each round the model writes candidates, a throw-away expert is trained on each and asked
    held-out questions, and the model learns from the candidates that helped.
    """


@click.command(
    "optimize",
    cls=Command,
    short_help="Improve the generator of self-edits, in rounds.",
    examples=(
        "aios seal restem optimize --dataset passages.jsonl --output-generator gen",
        "aios seal restem optimize --dataset passages.jsonl --resume RUN",
    ),
)
@dataset_option
@click.option(
    "--output-generator",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Folder of the best generator; without it, it stays in the run directory.",
)
@iterations_option
@config_option(
    "--batch-size", "seal.restem_batch_size", int, metavar="N", help="Passages in a round."
)
@config_option(
    "--candidates",
    "seal.restem_candidates_per_passage",
    int,
    metavar="N",
    help="Self-edits tried for each passage.",
)
@config_option(
    "--arms",
    "restem.arms",
    metavar="A,B",
    help="Strategies among which candidates are divided; auto for the model's measured ones.",
)
@executor_option
@workers_option
@model_option
@run_folder_option("--run-dir")
@resume_option
@verbose_option
@click.option("--dry-run", is_flag=True, help="Read the data and show the plan; train nothing.")
@common_options
def optimize(
    common: Common,
    dataset: Path,
    output_generator: Path | None,
    run_dir: Path | None,
    resume: str | None,
    verbose: bool,
    dry_run: bool,
) -> None:
    """Improve the generator of self-edits by ReST-EM.

    Holds some passages out, then runs rounds: candidates are written, a temporary expert is
    trained on each, its answers are compared with those of an expert trained on the passage
    alone, and the generator learns from the self-edits that were better by more than chance.
    After each round the new generator is examined on the held-out passages; the best one is kept.

    The run can be stopped at any time, watched from another terminal (aios seal restem status),
    and resumed.
    """
    from aios.core.errors import UsageError

    config = load(common).config
    if resume and run_dir:
        raise UsageError("--resume and --run-dir exclude each other", "give one of them")
    if dry_run:
        _show_plan(common, config, dataset)
        return
    if resume:
        from aios.app.restem.folders import find_run

        run_dir = find_run(config, resume)
    report = _run(
        common, config, dataset, output_generator, run_dir, resume=bool(resume), verbose=verbose
    )
    _show(common, report)


def _run(
    common: Common,
    config: Config,
    dataset: Path,
    output_generator: Path | None,
    run_dir: Path | None,
    *,
    resume: bool,
    verbose: bool,
) -> ReSTEMReport:
    from aios.app.restem.job import optimize as run_rounds
    from aios.cli.resumable import resumable_run

    with resumable_run(common, config, run_dir, place="--run-dir", verbose=verbose) as (
        emit,
        should_stop,
    ):
        return run_rounds(
            config,
            dataset,
            output_generator,
            run_dir=run_dir,
            resume=resume,
            emit=emit,
            should_stop=should_stop,
        )


def _show(common: Common, report: ReSTEMReport) -> None:
    from aios.cli.rendering import to_json, write_json, write_line, write_table
    from aios.core.seal.round_report import describe_round

    if common.json_output:
        places = {
            "run_dir": report.run_dir,
            "generator": report.generator,
            "report_html": report.report_html,
            "metrics_json": report.metrics_json,
        }
        write_json({**to_json(places), "stopped": report.state.stopped, **report.metrics})
        return
    rows = [
        ("untrained" if r.number == 0 else f"round {r.number}", describe_round(r))
        for r in report.state.rounds
    ]
    write_table(("", ""), rows)
    write_line(f"{report.metrics['verdict']} ({report.state.stopped}.)")
    write_line(f"generator: {report.generator or 'none is better than the untrained one'}")
    write_line(str(report.report_html))
    write_line(str(report.metrics_json))


def _show_plan(common: Common, config: Config, dataset: Path) -> None:
    from aios.app.restem.job import plan_restem
    from aios.cli.rendering import write_facts, write_json, write_line

    plan = plan_restem(config, dataset)
    if common.json_output:
        write_json(plan)
        return
    write_facts(
        [
            ("passages", f"{plan.passages:,} to optimise on, {plan.held_out:,} held out"),
            ("without questions", f"{plan.without_questions:,}" if plan.without_questions else ""),
            ("rejected", f"{plan.rejected:,}" if plan.rejected else ""),
            ("arms", ", ".join(plan.arms)),
            ("rounds", f"at most {plan.rounds}"),
            ("a round", f"{plan.passages_per_round:,} passages, {plan.candidates:,} candidates"),
            ("trials of a round", f"{plan.trials:,}, and {plan.held_out_trials:,} held out"),
        ]
    )
    write_line("This was a dry run: nothing was written. `aios seal restem estimate` times it.")
