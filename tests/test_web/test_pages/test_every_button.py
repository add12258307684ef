"""Every button of every page is pressed by a test: none is added without one."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from aios.web.pages.assembly import MODULES
from aios.web.pages.guarding import Sessions
from aios.web.pages.signing_in import sign_in_routes

HERE = Path(__file__).parent
REFUSING = {"test_guarding.py", Path(__file__).name}  # they press what does nothing


def buttons() -> list[str]:
    """The paths that forms post to."""
    signing_in = sign_in_routes(Sessions.make(b"", None, 80, secure=False), None)
    routes = [route for module in MODULES for route in module.routes()] + signing_in
    return sorted({route.path for route in routes if "POST" in (route.methods or ())})


def texts(file: Path) -> Iterator[str]:
    """The texts in a file of tests, without queries; what is filled in stands as a NUL."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value.partition("?")[0]
        elif isinstance(node, ast.JoinedStr):
            parts = (v.value if isinstance(v, ast.Constant) else "\0" for v in node.values)
            yield "".join(map(str, parts)).partition("?")[0]


PRESSED = [text for f in HERE.glob("test_*.py") if f.name not in REFUSING for text in texts(f)]


@pytest.mark.parametrize("path", buttons())
def test_a_test_of_the_pages_presses_it(path: str) -> None:
    pattern = re.sub(r"\{\w+\}", "[^/]+", path)
    assert any(re.fullmatch(pattern, text) for text in PRESSED)
