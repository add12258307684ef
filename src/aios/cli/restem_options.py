"""Options that several commands of ``aios seal restem`` have, each with its text once.

An option stands here if commands mean the same by it and say it in the same words; what only one
command has, or what means something else there, stands with the command.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

from aios.cli.options import INPUT_FILE, config_option

PASSAGES_HELP = "The file of passages, with questions about them."

dataset_option = click.option(
    "--dataset", "--input", "dataset", type=INPUT_FILE, required=True, help=PASSAGES_HELP
)
iterations_option = config_option(
    "--iterations", "seal.restem_iterations", int, metavar="N", help="Rounds."
)
executor_option = config_option(
    "--executor",
    "restem.executor",
    click.Choice(["serial", "processes", "ray"]),
    help="Where trials are run: in this process, in several, or on a Ray cluster.",
)
workers_option = config_option(
    "--workers", "restem.workers", int, metavar="N", help="Workers of the executor."
)
resume_option = click.option(
    "--resume", metavar="RUN", help="Go on with this run: its folder, or its name in the artifacts."
)
verbose_option = click.option("--verbose", is_flag=True, help="A line for each evaluation.")


def run_folder_option(flag: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """The option for the folder of a new run, under the name that the command calls it by."""
    return click.option(
        flag,
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="Folder of the new run, below the artifacts by default.",
    )
