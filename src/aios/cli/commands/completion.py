"""``aios completion``: the script with which a shell completes this program's lines."""

from __future__ import annotations

import click

from aios.cli.completing import VARIABLE
from aios.cli.options import Command, Common, common_options

SHELLS = ("bash", "zsh", "fish")


@click.command(
    "completion",
    cls=Command,
    short_help="Print a shell's completion script.",
    examples=(
        "aios completion bash > ~/.local/share/bash-completion/completions/aios",
        'aios completion zsh > "${fpath[1]}/_aios"',
        "aios completion fish > ~/.config/fish/completions/aios.fish",
    ),
)
@click.argument("shell", type=click.Choice(SHELLS))
@common_options
def completion(common: Common, shell: str) -> None:
    """Print the script with which SHELL completes the lines of this program.

    Put it where the shell looks for such scripts, as below, and open a new shell. For bash that
    needs the package bash-completion; without it, add this line to ~/.bashrc:
    eval "$(aios completion bash)". Bash must be 4.4 or newer.

    Completed are commands, options, and names of experts, goals, runs, strategies, models and
    settings.
    """
    from click.shell_completion import get_completion_class

    from aios.cli.rendering import write_json, write_text

    kind = get_completion_class(shell)
    root = click.get_current_context().find_root()
    if kind is None or not isinstance(root.command, click.Group):
        raise TypeError(f"click has no completion for {shell}")
    script = kind(root.command, {}, "aios", VARIABLE).source()
    write_json({"shell": shell, "script": script}) if common.json_output else write_text(script)
