"""``aios examples``: the passages and settings that ship with the program, to try it with."""

from __future__ import annotations

import shlex
from collections import Counter
from pathlib import Path

import click

from aios.cli.lazy import Entry, LazyGroup
from aios.cli.options import Command, Common, common_options

_HERE = "aios.cli.commands.examples"
_USUAL = Path("examples")  # what commands in the documentation name
ENTRIES = {
    "list": Entry(f"{_HERE}:list_", "List the examples, and where they are."),
    "copy": Entry(f"{_HERE}:copy", "Copy the examples into a folder."),
}


@click.group("examples", cls=LazyGroup, entries=ENTRIES)
def examples() -> None:
    """Get passages and settings to try it with.

    They are about things that do not exist, so no model can know them already. The documentation
    uses them by the names that `aios examples copy` gives them.
    """


@click.command(
    "list",
    cls=Command,
    short_help="List the examples, and where they are.",
    examples=("aios examples list",),
)
@common_options
def list_(common: Common) -> None:
    """List the examples, and where they are.

    They can be read there, as --input; copy them to change them.
    """
    from aios.app.data.examples import list_examples
    from aios.cli.rendering import write_facts, write_json, write_line

    found = list_examples()
    if common.json_output:
        write_json({"examples": found})
        return
    write_facts([(one.name, one.description) for one in found])
    for folder in dict.fromkeys(one.path.parent for one in found):
        write_line(f"in {folder}")


@click.command(
    "copy",
    cls=Command,
    short_help="Copy the examples into a folder.",
    examples=("aios examples copy", "aios examples copy trial"),
)
@click.argument(
    "folder", metavar="[DIR]", type=click.Path(file_okay=False, path_type=Path), default=_USUAL
)
@click.option("--replace", is_flag=True, help="Replace files of these names that are different.")
@common_options
def copy(common: Common, folder: Path, replace: bool) -> None:
    """Copy the examples into DIR, by default the folder "examples" right here.

    Then every command in the documentation that names examples/passages.jsonl can be run as it
    stands.
    """
    from aios.app.data.examples import PASSAGES, copy_examples
    from aios.cli.rendering import write_json, write_line

    done = copy_examples(folder, replace=replace)
    if common.json_output:
        write_json({"folder": folder, "files": done})
        return
    counts = Counter(done.values())
    write_line(f"{folder}: {', '.join(f'{n} {state}' for state, n in counts.items())}")
    if not common.quiet:
        line = ["aios", "seal", "preview", "--input", str(folder / PASSAGES), "--num-samples", "2"]
        click.echo(f"to begin with: {shlex.join(line)}", err=True)
