"""Values that a shell completes: names of experts, goals, runs, strategies, models, settings.

A parameter takes ``shell_complete=completes(EXPERTS)``. What cannot be read completes to nothing:
a shell has no place for an error. Descriptions and folders may come from others: names that are not
printable are left out, and words lose what could steer the terminal.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence

import click
from click.shell_completion import CompletionItem

from aios.cli.text import clean
from aios.core.errors import AIOSError

VARIABLE = "_AIOS_COMPLETE"  # set by the shell while it completes a line

Completer = Callable[[click.Context, click.Parameter, str], list["CompletionItem[str]"]]

# What can be completed: a method of `KnownNames`.
DELETED_EXPERTS = "deleted_experts"
EXPERTS = "experts"
GOALS = "goals"
MODELS = "models"
RESTEM_RUNS = "restem_runs"
SECTIONS = "sections"
SETTINGS = "settings"
STRATEGIES = "strategies"


def completes(
    *kinds: str, also: Sequence[str] = (), or_file: bool = False, ending: str = ""
) -> Completer:
    """What completes a parameter's value.

    Args:
        *kinds: What it may name.
        also: Words that it takes besides.
        or_file: Whether it may be a path as well: one is completed where no name fits.
        ending: Follows each name.
    """

    def complete(
        ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem[str]]:
        names: dict[str, str] = dict.fromkeys(also, "")
        for kind in kinds:
            names |= _names(kind, ctx)
        found = [
            CompletionItem(name + ending, help=clean(" ".join(words.split())) or None)
            for name, words in names.items()
            if name.startswith(incomplete) and name.isprintable()
        ]
        return [CompletionItem(incomplete, type="file")] if or_file and not found else found

    return complete


def _names(kind: str, ctx: click.Context) -> Mapping[str, str]:
    from aios.app.known_names import KnownNames
    from aios.cli.options import user_config_file

    known = KnownNames(
        os.environ,
        user_config_file(),
        ctx.params.get("config_file"),
        ctx.params.get("overrides") or (),
    )
    try:
        names: Mapping[str, str] = getattr(known, kind)()
    except (AIOSError, OSError):
        return {}
    return names


# Config keys whose options complete their values.
BY_KEY: Mapping[str, Completer] = {
    "model.name": completes(MODELS, or_file=True),
    "seal.strategy": completes(STRATEGIES, also=("auto",)),
}
