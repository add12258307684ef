"""Command groups that know their commands without importing them.

A `LazyGroup` takes a static table (name, where the command lives, one line of help). ``--help``
prints from the table alone; a command's module is imported only when that command is run or asked
for its own help. This keeps ``aios --help`` fast and free of torch, pydantic and rich.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import click
from click.shell_completion import CompletionItem

COMMON_SECTION = "Options of every command"


class Entry(NamedTuple):
    """Where a command lives and what the group's help says of it.

    Attributes:
        target: ``package.module:attribute`` of the `click.Command`.
        help: One line, equal to the command's own short help (a test compares them).
    """

    target: str
    help: str


class HelpSections(click.Command):
    """A command whose help ends with examples, after its own options and the common ones.

    Args:
        *args: As for `click.Command`.
        examples: Lines to type.
        **attributes: As for `click.Command`.
    """

    common_names: frozenset[str] = frozenset()

    def __init__(self, *args: Any, examples: Sequence[str] = (), **attributes: Any) -> None:
        attributes.setdefault("context_settings", {"help_option_names": ["-h", "--help"]})
        super().__init__(*args, **attributes)
        self.examples = tuple(examples)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the two sections of options."""
        own: list[tuple[str, str]] = []
        common: list[tuple[str, str]] = []
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None and isinstance(param, click.Option):
                (common if param.name in self.common_names else own).append(record)
        for title, rows in (("Options", own), (COMMON_SECTION, common)):
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the examples, one a line as they are to be typed."""
        if self.examples:
            with formatter.section("Examples" if len(self.examples) > 1 else "Example"):
                for line in self.examples:
                    formatter.write(f"{'':>{formatter.current_indent}}{line}\n")


class LazyGroup(HelpSections, click.Group):
    """A group whose commands are imported on first use.

    Args:
        entries: Command name → `Entry`, in the order in which help lists them.
        **attributes: As for `HelpSections` and `click.Group`.
    """

    def __init__(self, *, entries: Mapping[str, Entry], **attributes: Any) -> None:
        attributes["no_args_is_help"] = False  # see `parse_args`
        super().__init__(**attributes)
        self.entries = dict(entries)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parses the group's own options; without any argument, shows the help and exits with 2."""
        if not args and not ctx.resilient_parsing:
            click.echo(ctx.get_help(), err=True)
            ctx.exit(2)
        return super().parse_args(ctx, args)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the group's options, then its commands."""
        click.Group.format_options(self, ctx, formatter)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Finds the command to run; an unknown name is refused with the closest known ones."""
        name = args[0]
        if name not in self.entries and not name.startswith("-") and not ctx.resilient_parsing:
            near = difflib.get_close_matches(name, self.entries, n=2)
            guess = f"did you mean {' or '.join(near)}?" if near else ""
            known = guess or f"the commands are: {', '.join(self.entries)}"
            ctx.fail(f"{ctx.command_path} has no command {name!r}; {known}")
        return super().resolve_command(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Completes a command's name from the table, an option as `click.Command` does."""
        return [
            *(
                CompletionItem(name, help=entry.help)
                for name, entry in self.entries.items()
                if name.startswith(incomplete)
            ),
            *click.Command.shell_complete(self, ctx, incomplete),
        ]

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of all commands, in the table's order."""
        return list(self.entries)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Imports and returns a command; None if the table does not have it."""
        entry = self.entries.get(cmd_name)
        if entry is None:
            return None
        module, _, attribute = entry.target.partition(":")
        command = getattr(importlib.import_module(module), attribute)
        if not isinstance(command, click.Command):
            raise TypeError(f"{entry.target} is not a command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the list of commands from the table; nothing is imported."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.help) for name, entry in self.entries.items()])
