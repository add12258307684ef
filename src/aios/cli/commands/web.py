"""``aios web``: hands over to the program of Subbrains Manager."""

from __future__ import annotations

import json
from pathlib import Path

import click

from aios.cli.commands.seal import loaded_model_option
from aios.cli.commands.serve import become_server, flags_of, require_packages, server_options
from aios.cli.options import (
    Command,
    Common,
    common_options,
    load,
    overrides,
    user_config_file,
)


@click.command(
    "web",
    cls=Command,
    short_help="Open Subbrains Manager in the browser.",
    examples=("aios web", "aios web --port 8080 --open"),
)
@server_options
@click.option(
    "--data",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    multiple=True,
    metavar="DIR",
    help="A folder whose files of passages can be chosen. Repeatable.",
)
@click.option("--open", "open_browser", is_flag=True, help="Open the page in the browser, too.")
@loaded_model_option
@common_options
def web(common: Common, data: tuple[Path, ...], open_browser: bool) -> None:
    """Open Subbrains Manager: experts, runs, chat and settings in the browser.

    The pages show what is on disk and start the same jobs as the commands. A job goes on whether
    its page is open or not, and when the server is stopped. The OpenAI-compatible API of aios
    serve is there, too, at /v1. Without a token the server can be reached from this machine only.
    """
    load(common)  # wrong settings are told before anything is started
    require_packages()
    document = {
        "config_file": None if common.config_file is None else str(common.config_file.absolute()),
        "overrides": list(overrides(common)),
        "user_file": str(user_config_file()),
        "data": [str(folder.absolute()) for folder in data],
    }
    flags = [*flags_of(common), *(["--open"] if open_browser else [])]
    become_server("aios.web.manager", json.dumps(document), flags)
