"""``aios hrm-hf``: training experts over transformers models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from aios.cli.commands.seal import generator_option, model_option, num_edits_option
from aios.cli.completing import EXPERTS, completes
from aios.cli.lazy import Entry, LazyGroup
from aios.cli.options import (
    INPUT_FILE,
    Command,
    Common,
    common_options,
    config_option,
    load,
    original_args,
)
from aios.core.errors import UsageError

if TYPE_CHECKING:
    from aios.app.experts.training import ExpertReport
    from aios.app.restem.job import RestemPlan
    from aios.core.config.schemas import Config

ENTRIES = {
    "train-expert": Entry(
        "aios.cli.commands.hrm_hf:train_expert", "Train an expert on passages and self-edits."
    ),
}


@click.group("hrm-hf", cls=LazyGroup, entries=ENTRIES)
def hrm_hf() -> None:
    """Train experts on passages.

    An expert is a small adapter (LoRA) over a base model, with a card that says what it was
    trained on and how well it does. The base model itself is never changed.
    """


@click.command(
    "train-expert",
    cls=Command,
    short_help="Train an expert on passages and self-edits.",
    examples=(
        "aios hrm-hf train-expert --expert-id harbours --dataset passages.jsonl",
        "aios hrm-hf train-expert --expert-id mills --dataset passages.jsonl --restem",
    ),
)
@click.option(
    "--expert-id",
    required=True,
    metavar="ID",
    shell_complete=completes(EXPERTS),
    help="The expert's id: its folder's name and its key in the registry.",
)
@click.option("--dataset", type=INPUT_FILE, required=True, help="The file of passages.")
@click.option("--no-seal", is_flag=True, help="Train on the passages alone, without self-edits.")
@config_option(
    "--seal-strategy",
    "seal.strategy",
    metavar="NAME",
    help="How the self-edits are written: a name from `aios seal strategies`, a mix such as "
    "rewrite:2,cloze:1, or auto.",
)
@num_edits_option
@generator_option
@click.option(
    "--restem",
    is_flag=True,
    help="Optimise the generator by ReST-EM first, on part of the passages, and validate on the "
    "rest; as seal.enable_rl_optimization does.",
)
@click.option(
    "--seal-verbose",
    is_flag=True,
    help="Show generation, filter and cache passage by passage, and each evaluation.",
)
@click.option("--name", help="A name for people; the id by default.")
@click.option("--description", default="", help="What the expert is for.")
@click.option("--category", default="", help="A word to group experts by.")
@click.option("--goal", "goals", multiple=True, help="A goal that it serves. Repeatable.")
@config_option(
    "--epochs", "training.epochs", int, metavar="N", help="Passes over the training data."
)
@config_option(
    "--learning-rate", "training.learning_rate", float, metavar="LR", help="Peak learning rate."
)
@config_option("--rank", "training.rank", int, metavar="N", help="LoRA rank; more can hold more.")
@config_option("--alpha", "training.alpha", int, metavar="N", help="LoRA scale.")
@config_option("--batch-size", "training.batch_size", int, metavar="N", help="Examples per step.")
@config_option(
    "--validation-split",
    "training.validation_fraction",
    float,
    metavar="SHARE",
    help="Share of the passages held out for validation, 0 to 0.9.",
)
@model_option
@click.option("--overwrite", is_flag=True, help="Replace an expert of that id.")
@click.option("--resume", is_flag=True, help="Go on with an interrupted training of that id.")
@click.option("--dry-run", is_flag=True, help="Estimate the work, time and memory; train nothing.")
@common_options
def train_expert(
    common: Common,
    expert_id: str,
    dataset: Path,
    no_seal: bool,
    restem: bool,
    seal_verbose: bool,
    name: str | None,
    description: str,
    category: str,
    goals: tuple[str, ...],
    overwrite: bool,
    resume: bool,
    dry_run: bool,
) -> None:
    """Train an expert on passages and self-edits of them.

    The model first writes self-edits of the training passages; then a LoRA adapter is trained on
    both. The best checkpoint on the held-out side is kept, with the data it was trained on. A
    setting that is not given comes from the recipe that was measured for the base model.

    With --restem the model first learns by ReST-EM to write self-edits that help, and then the
    best generator writes. That takes most of the time; watch it with aios seal restem status.
    """
    _check_flags(common, no_seal=no_seal, restem=restem, overwrite=overwrite, resume=resume)
    from aios.cli.interrupts import resume_line, stop_on_signals
    from aios.cli.progress import show_progress
    from aios.cli.rendering import write_json

    config = load(common).config
    use_self_edits = config.seal.enabled and not no_seal
    if dry_run:
        optimised = restem or config.seal.enable_rl_optimization
        _dry_run(common, config, expert_id, dataset, use_self_edits, use_self_edits and optimised)
        return
    from aios.app.experts.training import train_expert as train

    line = resume_line(original_args(), drop=["--resume", "--overwrite"], add=["--resume"])
    with (
        show_progress(quiet=common.quiet, verbose=seal_verbose) as emit,
        stop_on_signals(lambda: line) as should_stop,
    ):
        report = train(
            config,
            expert_id,
            dataset,
            name=name,
            description=description,
            category=category,
            goals=goals,
            use_self_edits=use_self_edits,
            restem=restem,
            overwrite=overwrite,
            resume=resume,
            emit=emit,
            should_stop=should_stop,
        )
    write_json(report) if common.json_output else _show(report)


def _check_flags(
    common: Common, *, no_seal: bool, restem: bool, overwrite: bool, resume: bool
) -> None:
    """Refuses flags that contradict each other.

    Raises:
        UsageError: They do.
    """
    if overwrite and resume:
        raise UsageError(
            "--overwrite and --resume contradict each other",
            "--resume goes on with a training, --overwrite starts it anew: give one of them",
        )
    given = {
        "seal.strategy": "--seal-strategy",
        "seal.num_edits_per_passage": "--num-edits",
        "seal.generator": "--seal-generator",
    }
    pointless = [flag for key, flag in given.items() if key in common.flags]
    pointless += ["--restem"] if restem else []
    if no_seal and pointless:
        raise UsageError(
            f"{' and '.join(pointless)} cannot be used with --no-seal",
            "leave out --no-seal to train on self-edits too",
        )
    if restem and "seal.generator" in common.flags:
        raise UsageError(
            "--restem and --seal-generator contradict each other",
            "--restem makes a generator, beginning with the base model: give one of them",
        )


def _dry_run(
    common: Common,
    config: Config,
    expert_id: str,
    dataset: Path,
    use_self_edits: bool,
    restem: bool,
) -> None:
    from aios.app.costs.plans import plan_expert
    from aios.cli.commands.seal import show_plan
    from aios.cli.cost_tables import forecast_document, write_forecast
    from aios.cli.progress import show_progress
    from aios.cli.rendering import to_json, write_facts, write_json, write_line
    from aios.core.config.recipes import resolve_recipe

    with show_progress(quiet=common.quiet) as emit:
        planned = plan_expert(config, dataset, use_self_edits=use_self_edits, emit=emit)
    plan = planned.generation
    optimisation: RestemPlan | None = None
    if restem:
        from aios.app.restem.job import plan_restem

        optimisation = plan_restem(config, dataset)
    recipe = resolve_recipe(config, config.model.name)
    if config.seal.generator is not None:  # whose card may have chosen the strategy
        recipe = replace(
            recipe,
            strategy=plan.strategy,
            num_edits_per_passage=plan.candidates // max(1, plan.passages),
            sources={**recipe.sources, "seal.strategy": plan.strategy_source},
        )
    if common.json_output:
        document = {"expert_id": expert_id, "passages": plan.passages, "rejected": plan.rejected}
        generation = to_json(plan) if use_self_edits else None
        document |= {"restem": optimisation, "generation": generation, "recipe": recipe}
        write_json({**document, **forecast_document(planned.forecast)})
        return
    lora = recipe.lora
    write_facts(
        [
            ("expert", expert_id),
            ("base model", config.model.name),
            ("recipe", f"{recipe.name} ({recipe.measured})"),
            (
                "training",
                f"rank {lora.rank}, alpha {lora.alpha}, learning rate {lora.learning_rate:g}, "
                f"{lora.epochs} epochs, batches of {lora.batch_size}",
            ),
            ("ReST-EM first", _restem_words(optimisation)),
        ]
    )
    write_line()
    write_forecast(planned.forecast)
    if optimisation is not None:
        write_line("ReST-EM comes before that: aios seal restem estimate tells its time.")
    if use_self_edits:
        show_plan(plan)
        return
    write_facts([("passages", f"{plan.passages:,}"), ("self-edits", "none")])
    write_line("This was a dry run: nothing was trained or written.")


def _restem_words(plan: RestemPlan | None) -> str:
    """What ReST-EM would do at most: it counts the passages that are validated on, too."""
    if plan is None:
        return ""
    return (
        f"at most {plan.rounds} rounds of {plan.passages_per_round:,} passages, "
        f"{plan.candidates:,} candidates, {plan.trials + plan.held_out_trials:,} trials"
    )


def _show(report: ExpertReport) -> None:
    from aios.cli.rendering import write_facts, write_line
    from aios.cli.text import format_bytes, format_duration

    result = report.result
    early = ", stopped early" if result.stopped_early else ""
    write_facts(
        [
            ("expert", f"{report.expert.expert_id} ({report.expert.name})"),
            *_flat(report.dataset_stats),
            ("validation loss", _losses(report)),
            ("best at", f"epoch {result.best.epoch:.2f}, step {result.best.step:,}"),
            ("trained", f"{result.steps:,} steps, {result.tokens:,} tokens{early}"),
            ("time", format_duration(result.seconds)),
            ("peak memory", format_bytes(result.peak_memory_bytes)),
            ("run", str(report.run_dir)),
            ("ReST-EM run", str(report.restem["run"]) if report.restem else ""),
            ("generator", str(report.restem["generator"] or "") if report.restem else ""),
            ("expert folder", str(report.folder)),
        ]
    )
    for note in report.notes:
        write_line(f"note: {note}")


def _losses(report: ExpertReport) -> str:
    """First and best validation loss of the training, as one line."""
    from aios.cli.text import format_number, format_percent

    first = next(iter(report.result.curve), report.result.best).validation_loss
    best = report.result.best.validation_loss
    if first is None or best is None:
        return "not measured: nothing was held out"
    change = format_percent(best / first - 1, sign=True) if first else ""
    return f"{format_number(first)} before, {format_number(best)} at best ({change})"


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Statistics as name-value lines; nested ones get the names joined."""
    from aios.cli.text import format_count, format_number

    lines: list[tuple[str, str]] = []
    for key, value in values.items():
        name = f"{prefix}{key}".replace("_", " ")
        if isinstance(value, Mapping):
            lines += _flat(value, f"{name}, ")
        elif isinstance(value, float):
            lines.append((name, format_number(value)))
        elif isinstance(value, int) and not isinstance(value, bool):
            lines.append((name, format_count(value)))
        else:
            lines.append((name, str(value)))
    return lines
