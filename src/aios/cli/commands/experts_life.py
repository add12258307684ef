"""``aios experts create|edit|delete|restore|export``: where experts come from and go to."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from aios.cli.commands.experts import expert_argument
from aios.cli.completing import DELETED_EXPERTS, EXPERTS, completes
from aios.cli.options import Command, Common, common_options, load
from aios.core.errors import UnknownExpertError, UsageError

if TYPE_CHECKING:
    from aios.app.experts.creation import CreateReport
    from aios.app.experts.export import ExportReport
    from aios.core.config.schemas import Config

_PATH = click.Path(path_type=Path)  # what is there is looked at by the app


@click.command(
    "create",
    cls=Command,
    short_help="Make an expert of an adapter in PEFT layout.",
    examples=("aios experts create tides --from adapters/tides --category places",),
)
@expert_argument
@click.option(
    "--from",
    "source",
    type=_PATH,
    required=True,
    help="A folder with adapter_config.json and adapter_model.safetensors; it is copied.",
)
@click.option("--name", default="", help="A name for people; the id by default.")
@click.option("--description", default="", help="What the expert knows, in a line.")
@click.option("--category", default="", help="A word to group experts by.")
@click.option(
    "--goal", "goals", multiple=True, help="What it is for; messages are routed by it. Repeatable."
)
@click.option(
    "--parent",
    metavar="ID",
    shell_complete=completes(EXPERTS),
    help="The expert that it is put below in the tree.",
)
@common_options
def create(
    common: Common,
    expert_id: str,
    source: Path,
    name: str,
    description: str,
    category: str,
    goals: tuple[str, ...],
    parent: str | None,
) -> None:
    """Make an expert of an adapter in PEFT layout, which is checked and copied.

    PEFT layout is a folder with adapter_config.json and adapter_model.safetensors, which most
    programs that train LoRA adapters write. The adapter must be a plain LoRA adapter for the base
    model in use (model.name). Pickles, symlinks and anything but configuration and weights are left
    out or refused.
    """
    from aios.cli.rendering import write_json

    config = load(common).config
    from aios.app.experts.creation import create_expert

    report = create_expert(
        config,
        expert_id,
        source,
        name=name,
        description=description,
        category=category,
        goals=goals,
        parent=parent,
    )
    write_json(report) if common.json_output else _show_created(report)


@click.command(
    "edit",
    cls=Command,
    short_help="Change an expert's name, description or category.",
    examples=('aios experts edit harbours --name "The harbours" --category places',),
)
@expert_argument
@click.option("--name", help="A name for people; empty: the id.")
@click.option("--description", help="What the expert knows, in a line.")
@click.option("--category", help="A word to group experts by.")
@common_options
def edit(
    common: Common,
    expert_id: str,
    name: str | None,
    description: str | None,
    category: str | None,
) -> None:
    """Change an expert's name, description or category; what is not given stays.

    A frozen expert must be unfrozen first. Its id cannot be changed, since other experts, runs and
    clients name it by that.
    """
    from aios.cli.rendering import write_facts, write_json

    config = load(common).config
    if name is None and description is None and category is None:
        raise UsageError("there is nothing to change", "give --name, --description or --category")
    from aios.app.experts.changes import describe_expert

    expert = describe_expert(
        config, expert_id, name=name, description=description, category=category
    )
    if common.json_output:
        write_json(expert)
        return
    facts = {"name": expert.name, "description": expert.description, "category": expert.category}
    write_facts(list(facts.items()))


@click.command(
    "delete",
    cls=Command,
    short_help="Move an expert to the trash.",
    examples=("aios experts delete harbours", "aios experts delete harbours --purge --yes"),
)
@expert_argument
@click.option(
    "--purge",
    is_flag=True,
    help="Remove it for good, and what the trash holds of that id.",
)
@click.option("--yes", is_flag=True, help="Do not ask before something is removed for good.")
@common_options
def delete(common: Common, expert_id: str, purge: bool, yes: bool) -> None:
    """Move an expert to the trash, with its versions; `aios experts restore` brings it back.

    Its children become roots of the tree. With --purge it is removed for good, and so is what the
    trash holds of that id; the expert may be in the trash already.
    """
    from aios.cli.rendering import write_json, write_line

    config = load(common).config
    from aios.app.experts.registry import open_trash

    trash = open_trash(config)
    if not purge:
        gone = trash.delete(expert_id)
        if common.json_output:
            write_json(gone)
        else:
            write_line(f"{expert_id} is in the trash; bring it back with:")
            write_line(f"aios experts restore {expert_id}")
        return
    if not yes and not _confirm(expert_id):
        click.echo("nothing was removed", err=True)
        return
    names = _purge(config, expert_id)
    if common.json_output:
        write_json({"expert_id": expert_id, "purged": names})
    else:
        write_line(f"{expert_id} is gone for good ({', '.join(names)})")


@click.command(
    "restore",
    cls=Command,
    short_help="Bring a deleted expert back.",
    examples=("aios experts restore harbours",),
)
@click.argument("name", metavar="ID", shell_complete=completes(DELETED_EXPERTS))
@common_options
def restore(common: Common, name: str) -> None:
    """Bring a deleted expert back, with its versions and its place in the tree.

    Of several that had the same id, the one that was deleted last comes back; name the entry that
    `aios experts list --trash` shows to choose another.
    """
    from aios.cli.rendering import write_json, write_line

    config = load(common).config
    from aios.app.experts.registry import open_trash

    expert = open_trash(config).restore(name)
    write_json(expert) if common.json_output else write_line(f"{expert.expert_id} is back")


@click.command(
    "export",
    cls=Command,
    short_help="Give an expert to other programs.",
    examples=(
        "aios experts export harbours --format peft --output adapters",
        "aios experts export harbours --format gguf-lora --output gguf",
    ),
)
@expert_argument
@click.option(
    "--format",
    "form",
    type=click.Choice(("peft", "merged", "gguf-lora")),
    default="peft",
    show_default=True,
    help="What is written; see above.",
)
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="Folder to write into; the expert gets a folder or file named by its id there.",
)
@click.option(
    "--base-name",
    metavar="NAME",
    help="Name of the base model to write into the adapter, such as the one that vLLM serves.",
)
@click.option(
    "--converter",
    type=_PATH,
    help="llama.cpp's convert_lora_to_gguf.py, or its folder; looked for in LLAMA_CPP_DIR and PATH"
    " by default.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=1, max=86_400),
    default=600.0,
    show_default=True,
    metavar="SECONDS",
    help="Most time for the converter.",
)
@common_options
def export(
    common: Common,
    expert_id: str,
    form: str,
    output: Path,
    base_name: str | None,
    converter: Path | None,
    timeout: float,
) -> None:
    """Give an expert to other programs.

    peft: a folder for PEFT and vLLM. merged: a model folder with the adapter in the weights.
    gguf-lora: a file for llama.cpp, made by llama.cpp's own converter. Nothing that exists is
    replaced.
    """
    if base_name is not None and form != "peft":
        raise UsageError("--base-name is for --format peft", "leave it out")
    if converter is not None and form != "gguf-lora":
        raise UsageError("--converter is for --format gguf-lora", "leave it out")
    from aios.cli.progress import show_progress
    from aios.cli.rendering import write_json

    config = load(common).config
    from aios.app.experts.export import FORMATS, export_expert

    with show_progress(quiet=common.quiet) as emit:
        report = export_expert(
            config,
            expert_id,
            next(one for one in FORMATS if one == form),
            output,
            base_name=base_name,
            converter=converter,
            timeout_seconds=timeout,
            emit=emit,
        )
    write_json(report) if common.json_output else _show_exported(report)


def _purge(config: Config, expert_id: str) -> tuple[str, ...]:
    from aios.app.experts.registry import open_store, open_trash

    trash = open_trash(config)
    if open_store(config).get(expert_id) is not None:
        trash.delete(expert_id)
    try:
        return trash.purge(expert_id)
    except UnknownExpertError:
        open_store(config).require(expert_id)  # names experts that are close, not the trash
        raise


def _confirm(expert_id: str) -> bool:
    """Asks on the terminal.

    Raises:
        UsageError: There is nobody to ask.
    """
    if not sys.stdin.isatty():
        raise UsageError(
            f"{expert_id} would be removed for good, and there is no terminal to ask",
            "add --yes to remove it without a question",
        )
    return click.confirm(f"Remove {expert_id} for good, with its versions?", err=True)


def _show_created(report: CreateReport) -> None:
    from aios.cli.rendering import write_facts, write_line

    write_facts(
        [
            ("expert", f"{report.expert.expert_id} ({report.expert.name})"),
            ("base model", report.expert.model_architecture),
            (
                "adapter",
                f"rank {report.rank}, {report.modules:,} modules, {report.parameters:,} parameters",
            ),
            ("folder", str(report.folder)),
        ]
    )
    for note in report.notes:
        write_line(f"note: {note}")


def _show_exported(report: ExportReport) -> None:
    from aios.cli.rendering import write_facts, write_line
    from aios.cli.text import format_bytes

    write_facts(
        [
            ("expert", report.expert_id),
            ("format", report.format),
            ("base model", report.base_model),
            ("written", f"{report.output} ({format_bytes(report.bytes)})"),
        ]
    )
    for note in report.notes:
        write_line(f"note: {note}")
