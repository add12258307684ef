"""``aios web`` whose scripted model writes slowly: so many seconds a token, then its arguments."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from typing import Any

import aios.cli.commands.web
from aios.app.chat import assistant
from aios.backends.scripted import ScriptedModel
from aios.backends.scripted_serving import ScriptedWriter
from aios.cli.aios import main
from aios.web import manager


def run_slowly(seconds_per_token: float, arguments: Sequence[str]) -> None:
    """Runs the program with a slow model, in this process."""

    def open_slowly(config: Any, **given: Any) -> assistant.Assistant:
        words = " ".join(f"word{number}" for number in range(400))
        model = ScriptedModel({"": [words]})
        writer = ScriptedWriter(model, seconds_per_token=seconds_per_token)
        return assistant.open_assistant(config, writer=writer, **given)

    def become(module: str, document: str, flags: Sequence[str]) -> None:
        sys.stdin = io.TextIOWrapper(io.BytesIO(document.encode()))
        sys.argv[1:] = list(flags)
        manager.main()

    for module, name, own in (
        (manager, "open_assistant", open_slowly),
        (aios.cli.commands.web, "become_server", become),
    ):
        setattr(module, name, own)
    sys.argv[1:] = arguments
    main()


if __name__ == "__main__":
    run_slowly(float(sys.argv[1]), sys.argv[2:])
