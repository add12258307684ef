"""How another process of this program is started: same Python, same package, no current folder.

With ``python -m`` the current folder is a place to import from; whatever lies there is not the
program. The package's own folder comes last, for a source tree that is not installed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import aios

_TEXT = """
import sys
root = sys.argv.pop(1)
sys.path[:] = [path for path in sys.path if path]
sys.path += [root] if root not in sys.path else []
from {module} import main
main()
"""


def command_of(module: str, arguments: Sequence[str]) -> list[str]:
    """The command that runs the function ``main`` of a module of ours.

    Args:
        module: Its name, e.g. ``aios.__main__``.
        arguments: What it finds in ``sys.argv[1:]``.
    """
    root = str(Path(aios.__file__).parents[1])
    return [sys.executable, "-c", _TEXT.format(module=module), root, *arguments]
