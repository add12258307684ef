"""``aios seal restem compare``: two generators on the same passages."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from aios.cli.commands.seal import model_option
from aios.cli.options import INPUT_FILE, Command, Common, common_options, config_option, load
from aios.cli.restem_options import (
    executor_option,
    resume_option,
    run_folder_option,
    verbose_option,
    workers_option,
)

if TYPE_CHECKING:
    from aios.app.restem.comparing.job import ComparisonReport
    from aios.core.config.schemas import Config

_BASE = "base"
_SIDES = ("baseline", "optimized")
_METRICS = {
    "improvement": "improvement",
    "accuracy_gain": "accuracy gain",
    "rewarded": "share rewarded",
}


@click.command(
    "compare",
    cls=Command,
    short_help="Compare two generators on the same passages.",
    examples=(
        "aios seal restem compare --optimized my_generator --dataset passages.jsonl",
        "aios seal restem compare --baseline g1 --optimized g2 --dataset passages.jsonl",
    ),
)
@click.option(
    "--baseline",
    default=_BASE,
    show_default=True,
    metavar="G1",
    help="Folder of the generator to compare with; base for the untrained model.",
)
@click.option(
    "--optimized",
    type=click.Path(path_type=Path),
    required=True,
    metavar="G2",
    help="Folder of the other generator.",
)
@click.option(
    "--dataset",
    "--input",
    "dataset",
    type=INPUT_FILE,
    required=True,
    help="The file of passages, with questions; best new ones to both generators.",
)
@click.option(
    "--seeds",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="How often each writes for each passage, with other seeds.",
)
@click.option(
    "--candidates",
    type=click.IntRange(min=1),
    metavar="N",
    help="Self-edits of each passage and seed; restem.held_out_candidates by default.",
)
@config_option(
    "--arms",
    "restem.arms",
    metavar="A,B",
    help="Strategies to write by; auto for those that the generators were optimised under.",
)
@executor_option
@workers_option
@model_option
@run_folder_option("--output")
@resume_option
@verbose_option
@click.option("--dry-run", is_flag=True, help="Read the data and count the work; try nothing.")
@common_options
def compare(
    common: Common,
    baseline: str,
    optimized: Path,
    dataset: Path,
    seeds: int,
    candidates: int | None,
    output: Path | None,
    resume: str | None,
    verbose: bool,
    dry_run: bool,
) -> None:
    """Compare what the self-edits of two generators are worth.

    Both write self-edits of the same passages, with the same strategies and seeds. A temporary
    expert is trained on each, and its answers to the passage's questions are compared with those
    of an expert trained on the passage alone. The verdict, with a 95 % interval over passages and
    seeds, may be "no difference found" or "worse".

    Passages that a generator was optimised on flatter it, and are warned of.
    """
    from aios.core.errors import UsageError

    config = load(common).config
    if resume and output:
        raise UsageError("--resume and --output exclude each other", "give one of them")
    first = None if baseline == _BASE else Path(baseline)
    if dry_run:
        _show_plan(common, config, first, optimized, dataset, seeds, candidates)
        return
    from aios.app.restem.comparing.job import compare_generators, find_comparison
    from aios.cli.resumable import resumable_run

    folder = find_comparison(config, resume) if resume else output
    with resumable_run(common, config, folder, place="--output", verbose=verbose) as (
        emit,
        should_stop,
    ):
        report = compare_generators(
            config,
            first,
            optimized,
            dataset,
            seeds=seeds,
            candidates=candidates,
            output=folder,
            resume=resume is not None,
            emit=emit,
            should_stop=should_stop,
        )
    _show(common, report)


def _show(common: Common, report: ComparisonReport) -> None:
    from aios.cli.rendering import to_json, write_json, write_line, write_table

    if common.json_output:
        places = {"run_dir": report.run_dir, "metrics_json": report.metrics_json}
        write_json({**to_json(places), **report.metrics})
        return
    metrics = report.metrics
    write_table(
        (
            "generator",
            "improvement",
            "accuracy",
            "rewarded",
            "distinct-2",
            "repeats",
            "copied",
            "tokens",
            "writing",
        ),
        [_generator_row(metrics["generators"][side]) for side in _SIDES],
        title=_basis(metrics["info"]),
        numeric=range(1, 9),
    )
    write_line()
    write_table(
        ("optimized against baseline", "change", "95 % interval", ""),
        [_comparison_row(one, metrics["info"]["reward"]) for one in metrics["comparisons"]],
        numeric=(1, 2),
    )
    write_line()
    write_line(metrics["verdict"])
    for note in report.notes:
        write_line(f"note: {note}")
    write_line(str(report.metrics_json))


def _basis(info: Mapping[str, Any]) -> str:
    """What the figures are over, in a line."""
    seeds = f", {info['seeds']} seeds" if info["seeds"] > 1 else ""
    return (
        f"{info['passages']:,} passages, {info['candidates']} self-edits of each{seeds} "
        f"({info['arms']})"
    )


def _generator_row(figures: Mapping[str, Any]) -> tuple[str, ...]:
    from aios.cli.text import NOTHING, format_duration, format_percent

    diversity = figures["diversity"] or {}
    gain = figures["improvement"]
    return (
        figures["name"],
        NOTHING if gain is None else f"{gain:+.3f}",
        format_percent(figures["accuracy_gain"], sign=True),
        format_percent(figures["rewarded"], 0),
        *(
            format_percent(diversity.get(name), 0)
            for name in ("distinct_2", "near_duplicates", "copied")
        ),
        f"{figures['tokens']:,}",
        format_duration(figures["seconds"]),
    )


def _comparison_row(comparison: Mapping[str, Any], reward: str) -> tuple[str, ...]:
    from aios.cli.text import NOTHING

    share = comparison["metric"] != "improvement" or reward == "accuracy"
    ends = comparison["ci95"]

    def number(value: float) -> str:
        return f"{100 * value:+.1f}" if share else f"{value:+.3f}"

    return (
        _METRICS.get(comparison["metric"], comparison["metric"]),
        number(comparison["change"]) + (" points" if share else ""),
        NOTHING if ends is None else f"{number(ends[0])} … {number(ends[1])}",
        comparison["verdict"],
    )


def _show_plan(
    common: Common,
    config: Config,
    baseline: Path | None,
    optimized: Path,
    dataset: Path,
    seeds: int,
    candidates: int | None,
) -> None:
    from aios.app.restem.comparing.job import plan_comparison
    from aios.cli.rendering import write_facts, write_json, write_line

    plan = plan_comparison(config, baseline, optimized, dataset, seeds=seeds, candidates=candidates)
    if common.json_output:
        write_json(plan)
        return
    write_facts(
        [
            ("passages", f"{plan.passages:,}"),
            ("without questions", f"{plan.without_questions:,}" if plan.without_questions else ""),
            ("rejected", f"{plan.rejected:,}" if plan.rejected else ""),
            ("strategies", ", ".join(plan.arms)),
            ("self-edits", f"at most {plan.candidates:,} of both generators"),
            ("trials", f"at most {plan.trials:,}"),
        ]
    )
    for note in plan.notes:
        write_line(f"note: {note}")
    write_line("This was a dry run: nothing was written.")
