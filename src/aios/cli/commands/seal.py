"""``aios seal``: self-edits from passages — write them, look at them, compare them.

This module holds the group and the commands ``generate`` and ``preview``; the cache and the A/B
test have modules of their own.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from aios.cli.lazy import Entry, LazyGroup
from aios.cli.options import (
    INPUT_FILE,
    OUTPUT_FILE,
    Command,
    Common,
    common_options,
    config_option,
    load,
    original_args,
)
from aios.core.errors import UsageError

if TYPE_CHECKING:
    from aios.app.edits.generate import GenerateReport
    from aios.app.edits.generation_plan import GeneratePlan
    from aios.core.estimates import Estimate
    from aios.core.seal.passage_edits import PassageEdits

ENTRIES = {
    "generate": Entry("aios.cli.commands.seal:generate", "Write self-edits of passages to a file."),
    "preview": Entry("aios.cli.commands.seal:preview", "Show self-edits of a few passages."),
    "inspect": Entry(
        "aios.cli.commands.seal_inspect:inspect", "Show what was kept and dropped, and why."
    ),
    "ab-test": Entry(
        "aios.cli.commands.seal_ab_test:ab_test", "Measure whether self-edits help an expert."
    ),
    "restem": Entry(
        "aios.cli.commands.seal_restem:restem", "Improve the generator of self-edits by ReST-EM."
    ),
    "strategies": Entry(
        "aios.cli.commands.seal_strategies:strategies", "List the ways to have self-edits written."
    ),
    "cache": Entry("aios.cli.commands.seal_cache:cache", "Look after the self-edits on disk."),
}

OUTPUT_FORMATS = ("messages", "prompt-completion", "alpaca", "sharegpt")

strategy_option = config_option(
    "--strategy",
    "seal.strategy",
    metavar="NAME",
    help="How the model writes: a name from `aios seal strategies`, a mix such as "
    "rewrite:2,cloze:1, or auto, the way that was measured to work for the model.",
)
num_edits_option = config_option(
    "--num-edits",
    "seal.num_edits_per_passage",
    int,
    metavar="K",
    help="Self-edits asked for from each passage; a mix has numbers of its own.",
)
model_option = config_option(
    "--model",
    "model.name",
    metavar="MODEL",
    help="Base model: a name from `aios models list`, a folder, a GGUF file, a hub id, or"
    " endpoint:ID for one on a server, which only writes.",
)
loaded_model_option = config_option(
    "--model",
    "model.name",
    metavar="MODEL",
    help="Base model: a name from `aios models list`, a folder, a GGUF file, or a hub id.",
)
generator_option = config_option(
    "--seal-generator",
    "seal.generator",
    metavar="DIR",
    help="A generator that writes the self-edits: the folder of one that was trained on this base"
    " model. Without it the base model writes.",
)
temperature_option = config_option(
    "--temperature",
    "seal.temperature",
    float,
    metavar="T",
    help="Sampling temperature, 0.1 to 2.0; lower is more literal.",
)


@click.group("seal", cls=LazyGroup, entries=ENTRIES)
def seal() -> None:
    """Let a model write training data from passages.

    A self-edit is what the model writes from a passage in order to be trained on it: statements
    that follow from it, a rewrite, questions with their answers.

    Passages come from .txt (blank line between passages), .md (by heading), .jsonl, .json (also
    SQuAD and SEAL files), .csv or .parquet.
    """


@click.command(
    "generate",
    cls=Command,
    short_help="Write self-edits of passages to a file.",
    examples=("aios seal generate --input passages.md --output edits.jsonl --num-edits 5",),
)
@click.option("--input", "input_file", type=INPUT_FILE, required=True, help="The file of passages.")
@click.option(
    "--output",
    "output_file",
    type=OUTPUT_FILE,
    required=True,
    help="Where the self-edits go; the ending says how: .txt, .jsonl or .parquet.",
)
@strategy_option
@num_edits_option
@generator_option
@temperature_option
@model_option
@click.option(
    "--format",
    "output_format",
    type=click.Choice(OUTPUT_FORMATS),
    help="Shape of the records in a .jsonl file, for other training tools.",
)
@click.option(
    "--resume",
    type=click.Choice(["never", "always", "if-possible"]),
    default="if-possible",
    show_default=True,
    help="Go on where an earlier run of the same line stopped.",
)
@click.option("--verbose", is_flag=True, help="A line for each passage and each dropped edit.")
@click.option("--dry-run", is_flag=True, help="Count the work; generate and write nothing.")
@common_options
def generate(
    common: Common,
    input_file: Path,
    output_file: Path,
    output_format: str | None,
    resume: Literal["never", "always", "if-possible"],
    verbose: bool,
    dry_run: bool,
) -> None:
    """Write self-edits of passages to a file.

    Every passage is given to the model, what it writes is filtered (too short, repeated, not in
    the passage, …), and the rest is saved with a count of what was dropped and why. Stop it at any
    time: the same line goes on where it was. Self-edits made before come from the cache.
    """
    from aios.cli.interrupts import resume_line, stop_on_signals
    from aios.cli.progress import show_progress
    from aios.cli.rendering import write_json

    config = load(common).config
    from aios.app.edits.generate import generate_edits
    from aios.app.edits.generation_plan import plan_generation

    if dry_run:
        with show_progress(quiet=common.quiet) as emit:
            plan = plan_generation(config, input_file, probe=True, emit=emit)
        write_json(plan) if common.json_output else show_plan(plan)
        return
    _refuse_same_file(input_file, output_file)
    line = resume_line(original_args(), drop=["--resume="], add=["--resume", "if-possible"])
    with (
        show_progress(quiet=common.quiet, verbose=verbose) as emit,
        stop_on_signals(lambda: line) as should_stop,
    ):
        report = generate_edits(
            config,
            input_file,
            output_file,
            resume=resume,
            output_format=output_format,
            emit=emit,
            should_stop=should_stop,
        )
    if common.json_output:
        write_json(report)
    else:
        show_report(report, ("written to", report.output))
    if report.failures and not report.edits:
        click.get_current_context().exit(1)


@click.command(
    "preview",
    cls=Command,
    short_help="Show self-edits of a few passages.",
    examples=("aios seal preview --input passages.md --num-samples 2 --strategy rewrite",),
)
@click.option("--input", "input_file", type=INPUT_FILE, required=True, help="The file of passages.")
@click.option(
    "--num-samples",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    metavar="N",
    help="How many passages to show.",
)
@strategy_option
@num_edits_option
@generator_option
@temperature_option
@model_option
@common_options
def preview(common: Common, input_file: Path, num_samples: int) -> None:
    """Show self-edits of a few passages. Nothing is saved.

    Prints each passage, the self-edits that were kept, and those that the quality filter dropped
    with its reason. The quickest way to choose a strategy for your text.
    """
    from aios.cli.progress import show_progress
    from aios.cli.rendering import write_json

    config = load(common).config
    from aios.app.edits.generate import preview_edits

    with show_progress(quiet=common.quiet) as emit:
        previews = preview_edits(config, input_file, num_samples, emit=emit)
    if common.json_output:
        write_json({"passages": previews})
        return
    for number, previewed in enumerate(previews, start=1):
        _show_preview(number, len(previews), previewed)


def _refuse_same_file(input_file: Path, output_file: Path) -> None:
    """Keeps the passages from being replaced by their self-edits.

    Raises:
        UsageError: Both are the same file.
    """
    if output_file.exists() and output_file.samefile(input_file):
        raise UsageError(
            f"--output is the input file itself, {input_file}, which would be lost",
            "give the self-edits a file of their own",
        )


def show_plan(plan: GeneratePlan) -> None:
    """Prints what a generation would do."""
    from aios.cli.rendering import write_facts, write_line

    write_facts(
        [
            ("passages", _with_rejects(plan.passages, plan.rejected)),
            ("strategy", f"{plan.strategy} ({plan.strategy_source})"),
            ("self-edits asked for", f"{plan.candidates:,}"),
            ("already in the cache", f"{plan.cached:,}"),
            ("to be generated", f"{plan.candidates - plan.cached:,}"),
            ("prompt tokens", f"{plan.prompt_tokens:,}"),
            ("new tokens", f"at most {plan.max_new_tokens:,}"),
            *(_estimate_facts(plan.estimate) if plan.estimate else []),
        ]
    )
    write_line("This was a dry run: nothing was trained or written.")


def _estimate_facts(estimated: Estimate) -> list[tuple[str, str]]:
    from aios.cli.text import format_bytes
    from aios.core.estimates import describe_seconds

    low, middle, high = (
        describe_seconds(seconds)
        for seconds in (estimated.seconds_low, estimated.seconds, estimated.seconds_high)
    )
    disk = [
        f"{format_bytes(size)} of {what}"
        for size, what in (
            (estimated.bytes_output, "output"),
            (estimated.bytes_cache, "cache"),
            (estimated.bytes_journal, "journal while it runs"),
        )
        if size
    ]
    return [
        ("estimated tokens", f"{estimated.tokens:,}" if estimated.tokens else ""),
        ("estimated time", f"{middle} ({low} to {high}), from {estimated.basis}"),
        ("estimated disk", ", ".join(disk)),
    ]


def show_report(report: GenerateReport, place: tuple[str, Path]) -> None:
    """Prints what a generation gave, and at last the place where it is."""
    from aios.cli.rendering import write_facts, write_line
    from aios.cli.text import format_duration, format_percent
    from aios.core.estimates import compare

    lookups = report.cached + report.generated
    share = f" ({format_percent(report.cached / lookups, 0)} from the cache)" if lookups else ""
    dropped = sum(report.dropped.values())
    reasons = sorted(report.dropped.items(), key=lambda item: (-item[1], item[0]))
    here = report.passages - report.reused
    paces = [
        f"{format_duration(report.seconds / count)} per {what}"
        for count, what in ((here, "passage"), (report.generated, "generated self-edit"))
        if count > 0
    ]
    write_facts(
        [
            ("passages", _with_rejects(report.passages, report.rejected)),
            ("from an earlier run", f"{report.reused:,} passages" if report.reused else ""),
            ("strategy", f"{report.strategy} ({report.strategy_source})"),
            ("self-edits", f"{report.generated:,} generated, {report.cached:,} cached{share}"),
            ("kept", f"{report.edits:,}"),
            (
                "dropped",
                f"{dropped:,}"
                + (": " if reasons else "")
                + ", ".join(f"{count:,} {reason}" for reason, count in reasons),
            ),
            ("tokens", _tokens(report)),
            ("time", "; ".join([format_duration(report.seconds), *paces])),
            ("estimate", compare(report.estimate, report.seconds) if report.estimate else ""),
            ("rejects listed in", str(report.rejects_path or "")),
            (place[0], str(place[1])),
        ]
    )
    for failure in report.failures[:5]:
        write_line(f"failed: {failure.subject}: {failure.error}")
    if len(report.failures) > 5:
        write_line(f"failed: {len(report.failures) - 5} more passages")
    if not report.edits and dropped:
        write_line(
            "Nothing was kept. `aios seal preview` shows what is written and why it is dropped."
        )


def _tokens(report: GenerateReport) -> str:
    pace = report.telemetry.tokens_per_second if report.telemetry else None
    return f"{report.tokens:,}" + (f" ({pace:,.0f} per second)" if pace else "")


def _with_rejects(passages: int, rejected: int) -> str:
    return f"{passages:,}" + (f" ({rejected:,} rejected)" if rejected else "")


def _show_preview(number: int, total: int, previewed: PassageEdits) -> None:
    from aios.cli.rendering import write_line

    passage = previewed.passage
    title = f": {passage.title}" if passage.title else ""
    write_line(f"── passage {number} of {total}{title} ({passage.id})")
    write_line(_indented(passage.text))
    for edit in previewed.kept:
        write_line(f"\nkept, {edit.strategy} #{edit.index}:")
        for item in edit.items:
            write_line(_indented(f"• {item}"))
    for drop in previewed.drops:
        detail = f" ({drop.detail})" if drop.detail else ""
        write_line(f"\ndropped, {drop.strategy} #{drop.index}, {drop.reason}{detail}:")
        write_line(_indented(drop.text))
    if previewed.failure is not None:
        write_line(f"\nfailed: {previewed.failure.error}")
    elif not previewed.kept and not previewed.drops:
        write_line("\nthe model wrote nothing that could be used")
    write_line()


def _indented(text: str) -> str:
    return "\n".join(f"  {line}".rstrip() for line in text.splitlines())
