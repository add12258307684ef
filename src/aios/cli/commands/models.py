"""``aios models``: where base models come from, and fetching them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from aios.cli.completing import MODELS, completes
from aios.cli.lazy import Entry, LazyGroup
from aios.cli.options import Command, Common, common_options, load

if TYPE_CHECKING:
    from aios.app.models import ModelInfo

_HERE = "aios.cli.commands.models"
ENTRIES = {
    "list": Entry(f"{_HERE}:list_", "List the base models that can be used."),
    "pull": Entry(f"{_HERE}:pull", "Fetch a base model and check it."),
    "show": Entry(f"{_HERE}:show", "Show what is known of one base model."),
}


@click.group("models", cls=LazyGroup, entries=ENTRIES)
def models() -> None:
    """List and fetch base models.

    A base model is what experts are trained on. Commands take a listed name, a folder in
    transformers layout, a GGUF file or a hub id as --model. Code in a model's folder is never run.
    """


@click.command(
    "list",
    cls=Command,
    short_help="List the base models that can be used.",
    examples=("aios models list",),
)
@common_options
def list_(common: Common) -> None:
    """List the base models that can be used, and which are here already."""
    from aios.cli.rendering import write_json, write_table
    from aios.cli.text import format_bytes

    config = load(common).config
    from aios.app.models import list_models

    found = list_models(config)
    if common.json_output:
        write_json({"models": found})
        return
    write_table(
        ("name", "here", "kind", "parameters", "context", "size", "licence"),
        [
            (
                info.name,
                "yes" if info.installed else "no",
                info.kind,
                _parameters(info.parameters),
                f"{info.context_length:,}" if info.context_length else "",
                format_bytes(info.size_bytes) if info.size_bytes else "",
                info.licence or "",
            )
            for info in found
        ],
        numeric=(3, 4, 5),
    )


@click.command(
    "pull",
    cls=Command,
    short_help="Fetch a base model and check it.",
    examples=("aios models pull",),
)
@click.argument("name", required=False, shell_complete=completes(MODELS, or_file=True))
@common_options
def pull(common: Common, name: str | None) -> None:
    """Fetch a base model and check it. Without NAME: the one that the config names.

    A model that is here already is only checked. Afterwards every command works with --offline.
    """
    from aios.cli.progress import show_progress
    from aios.cli.rendering import write_json

    config = load(common).config
    from aios.app.models import pull_model

    with show_progress(quiet=common.quiet) as emit:
        info = pull_model(config, name or config.model.name, emit)
    write_json(info) if common.json_output else _show(info)


@click.command(
    "show",
    cls=Command,
    short_help="Show what is known of one base model.",
    examples=("aios models show smollm2-135m-instruct",),
)
@click.argument("name", required=False, shell_complete=completes(MODELS, or_file=True))
@common_options
def show(common: Common, name: str | None) -> None:
    """Show what is known of one base model. Without NAME: the one that the config names."""
    from aios.cli.rendering import write_json

    config = load(common).config
    from aios.app.models import show_model

    info = show_model(config, name or config.model.name)
    write_json(info) if common.json_output else _show(info)


def _show(info: ModelInfo) -> None:
    from aios.cli.rendering import write_facts
    from aios.cli.text import format_bytes

    write_facts(
        [
            ("name", info.name),
            ("here", _where(info)),
            ("kind", info.kind),
            ("source", str(info.source or "")),
            ("folder", str(info.path or "")),
            ("size", format_bytes(info.size_bytes) if info.size_bytes else ""),
            ("parameters", _parameters(info.parameters)),
            ("context", f"{info.context_length:,} tokens" if info.context_length else ""),
            ("licence", info.licence or ""),
            ("recipe", str(info.recipe or "")),
            ("digest", info.digest or ""),
        ]
    )


def _where(info: ModelInfo) -> str:
    if info.kind == "endpoint":
        return "no; on a server"
    return "yes" if info.installed else f"no; aios models pull {info.name}"


def _parameters(count: int | None) -> str:
    if not count:
        return ""
    return f"{count / 1e9:.1f} B" if count >= 1e9 else f"{count / 1e6:.0f} M"
