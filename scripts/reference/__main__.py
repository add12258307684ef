"""The reference pages below ``docs/reference``, written from the program itself.

    python -m scripts.reference            # writes them; `make reference` does the same
    python -m scripts.reference --check    # fails where a page is stale

What stands on them is what the program would say: commands from its click program, settings from
the config models and ``config/default.yaml``, events from the typed union, routes from the
server's description.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from scripts.reference import command_line, events, http_api, settings

from aios.core.files import atomic_write_text

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "reference"
PAGES: Mapping[str, Callable[[], str]] = {
    "CLI.md": command_line.write,
    "CONFIGURATION.md": settings.write,
    "EVENTS.md": events.write,
    "HTTP_API.md": http_api.write,
}


def is_stale(name: str) -> bool:
    """Whether a page is not what would be written now."""
    path = FOLDER / name
    return not path.is_file() or path.read_text(encoding="utf-8") != PAGES[name]()


def main(arguments: list[str] | None = None) -> int:
    """Writes or checks the pages; gives the exit code."""
    parser = argparse.ArgumentParser(description="Write the reference pages of the documentation.")
    parser.add_argument("--check", action="store_true", help="only say which pages are stale")
    stale = [name for name in PAGES if is_stale(name)]
    if parser.parse_args(arguments).check:
        for name in stale:
            sys.stderr.write(f"docs/reference/{name} is stale; run: make reference\n")
        return 1 if stale else 0
    for name in stale:
        atomic_write_text(FOLDER / name, PAGES[name]())
        sys.stdout.write(f"written: docs/reference/{name}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
