"""``aios seal strategies``: the ways to have self-edits written that there are here."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from aios.cli.options import Command, Common, common_options, load

if TYPE_CHECKING:
    from aios.app.edits.strategies import AutoChoice, StrategyInfo


@click.command(
    "strategies",
    cls=Command,
    short_help="List the ways to have self-edits written.",
    examples=("aios seal strategies",),
)
@common_options
def strategies(common: Common) -> None:
    """List the ways to have self-edits written.

    Those built in, your own prompts (seal.prompts_file) and those of installed packages, each with
    the recipes that use it: a recipe is what was measured to work for a model. Give a name as
    --strategy, or several with numbers: rewrite:2,cloze:1.
    """
    from aios.cli.rendering import write_json

    config = load(common).config
    from aios.app.edits.strategies import auto_choice, list_strategies

    found, auto = list_strategies(config), auto_choice(config)
    if common.json_output:
        write_json({"strategies": found, "auto": auto})
    else:
        _show(found, auto)


def _show(found: list[StrategyInfo], auto: AutoChoice) -> None:
    from aios.cli.rendering import write_line, write_table

    write_table(
        ("name", "source", "recipe", "what it makes"),
        [
            (info.name, info.source, ", ".join(info.recipes), info.description)
            for info in found
            if not info.problem
        ],
    )
    for info in found:
        if info.problem:
            write_line(f"cannot be used: {info.name} ({info.source}): {info.problem}")
    write_line()
    write_line(
        f"auto is {auto.strategy} for {auto.model}, by recipes.{auto.recipe} ({auto.measured})"
    )
