"""``aios experts versions|rollback|forget``: going back, and training without a passage."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from aios.cli.commands.experts import expert_argument
from aios.cli.options import INPUT_FILE, Command, Common, common_options, load, original_args
from aios.core.errors import UsageError

if TYPE_CHECKING:
    from aios.app.experts.forget_plan import ForgetPlan
    from aios.app.experts.forgetting import ForgetReport
    from aios.storage.expert_versions import Version


@click.command(
    "versions",
    cls=Command,
    short_help="List the versions of an expert.",
    examples=("aios experts versions harbours",),
)
@expert_argument
@common_options
def versions(common: Common, expert_id: str) -> None:
    """List the versions of an expert, oldest first; the last one is in use.

    Each training of an id that exists, and each roll-back, keeps what it replaces.
    """
    from aios.cli.rendering import write_json

    config = load(common).config
    from aios.app.experts.registry import open_versions

    found = open_versions(config).list(expert_id)
    if common.json_output:
        write_json({"expert_id": expert_id, "versions": found})
    else:
        _show_versions(found)


@click.command(
    "rollback",
    cls=Command,
    short_help="Make an older version the current one.",
    examples=("aios experts rollback harbours", "aios experts rollback harbours --to 1"),
)
@expert_argument
@click.option(
    "--to",
    type=click.IntRange(min=1),
    metavar="N",
    help="Number of the version, see `aios experts versions`; by default the one before.",
)
@common_options
def rollback(common: Common, expert_id: str, to: int | None) -> None:
    """Make an older version the current one.

    It becomes a new version, so nothing is lost and this can be undone in the same way. Name,
    goals and the place in the tree stay as they are.
    """
    from aios.cli.rendering import write_json, write_line

    config = load(common).config
    from aios.app.experts.registry import open_versions

    store = open_versions(config)
    store.rollback(expert_id, to)
    current = store.list(expert_id)[-1]
    if common.json_output:
        write_json({"expert_id": expert_id, "version": current})
    else:
        write_line(
            f"{expert_id} is version {current.rolled_back_to} again, as version {current.number}"
        )


@click.command(
    "forget",
    cls=Command,
    short_help="Train an expert again without a passage.",
    examples=(
        "aios experts forget harbours --passage tide-engine --dry-run",
        "aios experts forget harbours --passage tide-engine",
    ),
)
@expert_argument
@click.option(
    "--passage",
    required=True,
    metavar="ID",
    help="Id of the passage, as `aios experts show` lists it.",
)
@click.option(
    "--dataset",
    type=INPUT_FILE,
    help="The file that the expert was trained on, if it is not in its place any more.",
)
@click.option(
    "--keep-versions", is_flag=True, help="Keep the older versions that were trained on it, too."
)
@click.option("--resume", is_flag=True, help="Go on where this command was interrupted.")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
@common_options
def forget(
    common: Common,
    expert_id: str,
    passage: str,
    dataset: Path | None,
    keep_versions: bool,
    resume: bool,
    dry_run: bool,
) -> None:
    """Train an expert again without a passage, as if it had never been there.

    The same file, seed and settings are used, from the expert's own record. Older versions that
    hold the passage are removed. What is outside the expert (the data file, runs, the trash,
    cached self-edits, exports) is named, and left to you.
    """
    if dry_run and resume:
        raise UsageError("--dry-run and --resume contradict each other", "give one of them")
    from aios.cli.interrupts import resume_line, stop_on_signals
    from aios.cli.progress import show_progress
    from aios.cli.rendering import write_json

    config = load(common).config
    from aios.app.experts.forgetting import forget as forget_passage
    from aios.app.experts.forgetting import plan_forget

    if dry_run:
        with show_progress(quiet=common.quiet) as emit:
            plan = plan_forget(config, expert_id, passage, dataset=dataset, emit=emit)
        write_json(plan) if common.json_output else _show_plan(plan, keep_versions)
        return
    line = resume_line(original_args(), drop=["--resume"], add=["--resume"])
    with (
        show_progress(quiet=common.quiet) as emit,
        stop_on_signals(lambda: line) as should_stop,
    ):
        report = forget_passage(
            config,
            expert_id,
            passage,
            dataset=dataset,
            keep_versions=keep_versions,
            resume=resume,
            emit=emit,
            should_stop=should_stop,
        )
    write_json(report) if common.json_output else _show_report(report)


def _show_versions(found: tuple[Version, ...]) -> None:
    from aios.cli.rendering import write_table
    from aios.cli.text import format_number

    write_table(
        ("version", "trained", "loss", "adapter", "made by", ""),
        (
            (
                f"{one.number}",
                one.trained[:16].replace("T", " "),
                format_number(one.metrics.get("validation_loss")),
                one.adapter_digest[:12],
                f"roll-back to {one.rolled_back_to}" if one.rolled_back_to else "training",
                "in use" if one.current else "",
            )
            for one in found
        ),
        numeric=(0, 2),
    )


def _show_plan(plan: ForgetPlan, keep_versions: bool) -> None:
    from aios.cli.rendering import write_facts, write_line

    write_facts(
        [("expert", plan.expert_id), ("passage", ", ".join(plan.documents) or plan.passage)]
    )
    if plan.dataset is None:
        write_line("the current version does not hold it: nothing is to be trained")
    else:
        changed = "unchanged" if plan.dataset_unchanged else "changed, but not in what is needed"
        write_facts(
            [
                ("to be trained on", f"{plan.dataset} ({changed})"),
                ("passages that stay", f"{plan.passages_left:,}"),
                ("examples", f"{plan.examples:,}, {plan.examples_of_it:,} of them of it"),
                ("self-edits of it", f"{plan.self_edits_of_it:,}"),
                ("first", "ReST-EM again, which takes most of the time" if plan.restem else ""),
                ("nearly the same", ", ".join(plan.near_duplicates)),
                ("generator", _generator(plan.generator_knows)),
            ]
        )
    fate = "kept" if keep_versions else "to be removed"
    write_facts(
        [
            (f"versions {fate}", ", ".join(map(str, plan.versions))),
            ("children that hold it", ", ".join(plan.children)),
            ("experts that hold it", ", ".join(plan.other_experts)),
            ("in the trash", ", ".join(plan.trash)),
        ]
    )
    write_line("This was a dry run: nothing was trained or removed.")


def _generator(knows: bool | None) -> str:
    return "it was optimised on the passage, and knows it" if knows else ""


def _show_report(report: ForgetReport) -> None:
    from aios.cli.rendering import write_facts, write_line
    from aios.cli.text import format_number

    plan, training = report.plan, report.training
    loss = training.result.best.validation_loss if training else None
    write_facts(
        [
            ("expert", plan.expert_id),
            ("forgotten", ", ".join(plan.documents) or plan.passage),
            ("trained on", f"{plan.passages_left:,} passages" if training else "nothing anew"),
            ("validation loss", format_number(loss) if training else ""),
            ("versions removed", ", ".join(map(str, report.removed_versions))),
            ("versions that hold it", ", ".join(map(str, report.kept_versions))),
        ]
    )
    write_line("It may still be in:")
    for place in report.still_held:
        write_line(f"- {place}")
