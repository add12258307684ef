"""``aios experts backup``: a copy of the database of answers, feedback and adaptations."""

from __future__ import annotations

from pathlib import Path

import click

from aios.cli.options import Command, Common, common_options, load


@click.command(
    "backup",
    cls=Command,
    short_help="Copy the record of answers and feedback.",
    examples=("aios experts backup answers.sqlite3",),
)
@click.argument("target", type=click.Path(dir_okay=False, path_type=Path))
@common_options
def backup(common: Common, target: Path) -> None:
    """Copy the record of answers and feedback.

    The copy is a whole SQLite database, made while others may go on writing; an earlier copy at
    TARGET is replaced.
    """
    from aios.app.chat.routing import backup_activity
    from aios.cli.rendering import write_json, write_line

    config = load(common).config
    copy = backup_activity(config, target)
    if common.json_output:
        write_json({"backup": str(copy), "bytes": copy.stat().st_size})
    else:
        write_line(str(copy))
