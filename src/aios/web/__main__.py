"""The program that serves: ``python -m aios.web``, which the command line hands a config to.

Reads the resolved config as JSON on stdin and serves
until it is told to stop. Flags: ``--json`` (one line on stdout when requests are taken, and errors
as JSON), ``--quiet`` (no notices), ``--debug`` (tracebacks). Exit codes are those of the command
line: 0 stopped, 1 failed, 2 wrong config, 130 interrupted before it served.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Sequence

from pydantic import ValidationError

from aios.app.chat.assistant import Assistant
from aios.core.config.schemas import Config
from aios.core.errors import AIOSError, ConfigError, RunInterrupted
from aios.core.events import Event, Notice
from aios.core.files import parse_json
from aios.web.server import serve

MAX_CONFIG_BYTES = 4 * 2**20


def main(arguments: Sequence[str] | None = None) -> None:
    """Serves, and exits with the program's code."""
    flags = frozenset(sys.argv[1:] if arguments is None else arguments)
    try:
        config = read_config()
        serve(
            config,
            env=os.environ,
            emit=ignore_notices if "--quiet" in flags else show_notice,
            announce=_announce_json if "--json" in flags else _announce,
        )
    except KeyboardInterrupt:
        fail(RunInterrupted("interrupted"), flags)
    except AIOSError as error:
        fail(error, flags)


def read_config() -> Config:
    """The config on stdin.

    Raises:
        ConfigError: There is none, or it is not valid.
    """
    data = sys.stdin.buffer.read(MAX_CONFIG_BYTES + 1)
    try:
        return Config.model_validate(parse_json(data[:MAX_CONFIG_BYTES]))
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()[:5]
        )
        raise ConfigError(f"the config on stdin is not valid: {faults}") from error
    except ValueError as error:
        raise ConfigError(
            f"the config on stdin is no JSON: {error}", "start the server with: aios serve"
        ) from error


def _announce(url: str, assistant: Assistant) -> None:
    experts = sum(model.kind == "expert" for model in assistant.models())
    _say(f"serving {assistant.model.name} with {experts} experts at {url}; Ctrl-C stops it")


def _announce_json(url: str, assistant: Assistant) -> None:
    models = [model.id for model in assistant.models()]
    _write_json({"url": url, "pid": os.getpid(), "models": models})


def announce_pages(url: str, *, as_json: bool) -> None:
    """Says where the pages of ``aios web`` are."""
    if as_json:
        _write_json({"url": url, "pid": os.getpid()})
    else:
        _say(f"Subbrains Manager is at {url}; Ctrl-C stops it, and no job with it")


def show_notice(event: Event) -> None:
    """Says a notice."""
    if isinstance(event, Notice):
        _say(f"{'warning' if event.level == 'warning' else 'note'}: {event.message}")


def ignore_notices(event: Event) -> None:
    """No notices."""


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def _write_json(document: object) -> None:
    sys.stdout.write(f"{json.dumps(document)}\n")
    sys.stdout.flush()


def fail(error: AIOSError, flags: frozenset[str]) -> None:
    """Reports an error as the command line does, and exits."""
    if "--debug" in flags:
        traceback.print_exception(error, file=sys.stderr)
    if "--json" in flags:
        found = {"type": type(error).__name__, "message": error.message, "remedy": error.remedy}
        _write_json({"error": found})
    else:
        first, *rest = error.message.splitlines() or ["unknown error"]
        lines = [f"error: {first}", *(f"  {line.strip()}" for line in rest)]
        _say("\n".join([*lines, *(f"  → {line}" for line in error.remedy.splitlines())]))
    sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
