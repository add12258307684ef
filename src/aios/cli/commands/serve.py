"""``aios serve``: hands the resolved config to the server's own program.

The command line and the web never import each other. This command resolves the config, puts it on
the standard input of ``aios.web``'s program, and becomes that program (`os.execv`): one process,
so that signals, exit code and supervisor see the server itself.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import TypeVar

import click

from aios.app.jobs.own_program import command_of
from aios.cli.commands.seal import loaded_model_option
from aios.cli.options import Command, Common, common_options, config_option, load
from aios.core.errors import UsageError

NEEDED = ("fastapi", "multipart", "prometheus_client", "uvicorn")


_OPTIONS = (
    config_option(
        "--host",
        "serve.host",
        help="Address to listen on; beyond loopback a token is needed.",
        metavar="ADDRESS",
    ),
    config_option(
        "--port",
        "serve.port",
        click.IntRange(0, 65_535),
        help="Port to listen on; 0: any free one.",
        metavar="N",
    ),
    config_option(
        "--public-url",
        "serve.public_url",
        help="Address that browsers see, where a proxy with TLS stands before the server.",
        metavar="URL",
    ),
    config_option(
        "--token-file",
        "serve.token_file",
        click.Path(exists=True, dir_okay=False),
        help="File with the token that clients must send, or people sign in with.",
        metavar="FILE",
    ),
    config_option(
        "--tls-certificate",
        "serve.tls_certificate",
        click.Path(exists=True, dir_okay=False),
        help="Certificate chain (PEM), for HTTPS.",
        metavar="FILE",
    ),
    config_option(
        "--tls-key",
        "serve.tls_key",
        click.Path(exists=True, dir_okay=False),
        help="Its private key (PEM).",
        metavar="FILE",
    ),
)
_Function = TypeVar("_Function", bound=Callable[..., object])


def server_options(function: _Function) -> _Function:
    """Adds the options of a program that serves: address, token, certificate."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


@click.command(
    "serve",
    cls=Command,
    short_help="Serve the experts over an OpenAI-compatible API.",
    examples=("aios serve", "aios serve --host 0.0.0.0 --token-file token.txt"),
)
@server_options
@loaded_model_option
@common_options
def serve(common: Common) -> None:
    """Serve the experts over an OpenAI-compatible API.

    Any client of the OpenAI API can use it, at http://ADDRESS:PORT/v1. Its models are "base" (the
    base model), each active expert by its id, and "auto", which picks experts for each message.
    Without a token the server can be reached from this machine only. Ctrl-C or SIGTERM stops it
    when the answers that are being written are finished.
    """
    config = load(common).config
    require_packages()
    become_server("aios.web.__main__", config.model_dump_json(), flags_of(common))


def require_packages() -> None:
    """Checks that what serves is installed.

    Raises:
        UsageError: Something is missing.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(
            f"serving needs packages that are not installed: {', '.join(missing)}",
            "pip install 'aios[web]'",
        )


def flags_of(common: Common) -> list[str]:
    """The flags that a server's program takes over from the command."""
    flags = {"--json": common.json_output, "--quiet": common.quiet, "--debug": common.debug}
    return [flag for flag, given in flags.items() if given]


def become_server(module: str, document: str, flags: Sequence[str]) -> None:
    """Replaces this process by a server's program; returns only where that fails.

    Args:
        module: Whose ``main`` it is.
        document: JSON for its standard input.
        flags: For the program.

    Raises:
        OSError: The system cannot start it.
    """
    with tempfile.TemporaryFile() as handle:  # has no name: nothing is left of it
        handle.write(document.encode())
        handle.flush()
        handle.seek(0)
        os.dup2(handle.fileno(), 0)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os.execv(sys.executable, command_of(module, flags))
