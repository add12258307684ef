"""``aios doctor``: what this machine has, what is missing, and how to get it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from aios.cli.options import Command, Common, common_options, load

if TYPE_CHECKING:
    from aios.app.machine.doctor import Check


@click.command(
    "doctor",
    cls=Command,
    short_help="Check what this machine has and what is missing.",
    examples=("aios doctor",),
)
@common_options
def doctor(common: Common) -> None:
    """Check what this machine has and what is missing.

    Looks at Python, torch, devices, memory, disk, models, the config and write access, and says
    what to do about each thing that is not well. Exits with 1 if something that is needed fails;
    what is merely missing or could be better is listed and no failure.
    """
    from aios.app.machine.doctor import examine
    from aios.cli.rendering import write_json, write_line

    checks, config_error = examine(lambda: load(common).config)
    failed = [check.name for check in checks if check.status == "error"]
    if common.json_output:
        write_json({"ok": not failed, "checks": checks})
    else:
        _show(checks)
        write_line()
        write_line(f"failed: {', '.join(failed)}" if failed else "ready")
    if failed:
        click.get_current_context().exit(2 if config_error else 1)


def _show(checks: list[Check]) -> None:
    from aios.cli.rendering import write_table

    rows = [
        (check.status, check.name, check.detail + (f"\n→ {check.remedy}" if check.remedy else ""))
        for check in checks
    ]
    write_table(("", "what", "found"), rows)
