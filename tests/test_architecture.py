"""What holds for the program as a whole: it starts fast, its rooms stay small, its map is true.

The layers (who may import whom) are checked by import-linter.
"""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from pydantic import BaseModel

from aios.core.config.recipes import GENERATOR_SETTINGS
from aios.core.config.schemas import Config

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "aios"
PAGE = ROOT / "docs" / "development" / "SEAL_ARCHITECTURE.md"
LAYERS = ("core", "backends", "storage", "app", "cli", "web")
MOST_LINES, MOST_OF_FUNCTION = 400, 60
NOT_MAPPED = {"__init__.py", "__pycache__"}

HEAVY = ("torch", "transformers", "peft", "numpy", "pydantic", "yaml", "rich", "huggingface_hub")
PROBE = """
import json, sys
from aios.cli.aios import run
code = run(sys.argv[1:])
json.dump([code, sorted({name.partition(".")[0] for name in sys.modules})], sys.stderr)
"""
HELP_SECONDS = 0.5


def imported_by(*arguments: str) -> set[str]:
    """Runs the program in a process of its own; gives the top-level modules that it loaded."""
    result = subprocess.run(
        [sys.executable, "-c", PROBE, *arguments], capture_output=True, text=True, check=True
    )
    code, modules = json.loads(result.stderr)
    assert code == 0
    assert result.stdout
    return set(modules)


@pytest.mark.parametrize(
    "arguments",
    [
        "--help",
        "--version",
        "seal --help",
        "seal generate --help",
        "seal ab-test --help",
        "seal cache --help",
        "hrm-hf train-expert --help",
        "models list --help",
        "config show --help",
        "doctor --help",
    ],
)
def test_help_imports_nothing_heavy(arguments: str) -> None:
    assert imported_by(*arguments.split()).isdisjoint(HEAVY)


def test_reading_the_config_needs_no_model_library() -> None:
    assert imported_by("config", "show", "seed").isdisjoint({"torch", "transformers", "peft"})


def test_help_is_quick() -> None:
    seconds = []
    for _ in range(3):  # the best of three: other work on the machine is not the program's
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "aios", "--help"], capture_output=True, check=True)
        seconds.append(time.perf_counter() - began)
    assert min(seconds) < HELP_SECONDS


# ---------------------------------------------------------------- rooms that stay small


@cache
def sources() -> dict[Path, str]:
    return {path: path.read_text() for path in sorted(SOURCE.rglob("*.py"))}


def lines_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its docstring."""
    lines = (function.end_lineno or 0) - function.lineno + 1
    first = function.body[0]
    if ast.get_docstring(function, clean=False) is not None:
        lines -= (first.end_lineno or 0) - first.lineno + 1
    return lines


def test_modules_are_small_enough_to_be_read_at_once() -> None:
    long = {
        str(path.relative_to(SOURCE)): count
        for path, text in sources().items()
        if (count := len(text.splitlines())) > MOST_LINES
    }
    assert long == {}


def test_functions_are_small_enough_to_be_seen_whole() -> None:
    long = {
        f"{path.relative_to(SOURCE)}: {node.name}": count
        for path, text in sources().items()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (count := lines_of(node)) > MOST_OF_FUNCTION
    }
    assert long == {}


# ---------------------------------------------------------------- the map


def mapped(layer: str) -> list[str]:
    """The names that the map of a layer has, a package with its stroke."""
    section = PAGE.read_text().partition(f"### {layer}\n")[2]
    first_block = section.partition("```\n")[2].partition("```")[0]
    return re.findall(r"^([\w./]+)(?: |$)", first_block, re.MULTILINE)


@pytest.mark.parametrize("layer", LAYERS)
def test_the_map_names_what_there_is(layer: str) -> None:
    names = mapped(layer)
    for name in names:
        path = SOURCE / layer / name
        assert path.is_dir() if name.endswith("/") else path.is_file(), f"{layer}: {name}"
    there = {
        f"{path.name}/" if path.is_dir() else path.name
        for path in (SOURCE / layer).iterdir()
        if path.name not in NOT_MAPPED
    }
    assert there <= set(names)


def test_the_map_names_every_module_of_the_method() -> None:
    section = PAGE.read_text().partition("`core/seal` is flat")[2]
    block = section.partition("```\n")[2].partition("```")[0]
    lines = [line for line in block.splitlines() if not line.startswith(" ")]
    patterns = re.findall(r"\w+\*?", " ".join(line.partition("  ")[0] for line in lines))
    modules = {path.stem for path in (SOURCE / "core" / "seal").glob("*.py")} - {"__init__"}
    named = {
        module
        for module in modules
        for pattern in patterns
        if module == pattern or (pattern.endswith("*") and module.startswith(pattern[:-1]))
    }
    assert modules - named == set()
    assert [p for p in patterns if not p.endswith("*") and p not in modules] == []


def test_the_seams_and_their_implementations_are_there() -> None:
    table = PAGE.read_text().partition("| seam | where | implementations |")[2].partition("\n\n")[0]
    defined = set(re.findall(r"^(?:class )?(\w+)\b", "\n".join(sources().values()), re.MULTILINE))
    for row in table.splitlines()[2:]:
        seam, where, implementations, *_ = row.strip("| ").split(" | ")
        path = SOURCE / where.strip("`")
        assert path.is_file(), where
        for name in re.findall(r"`(\w+)`", seam):
            assert name in path.read_text(), row
        assert set(re.findall(r"`([A-Z]\w+)`", implementations)) <= defined, row


# ---------------------------------------------------------------- settings


def keys_of(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from keys_of(kind, f"{prefix}{name}.")
        else:
            yield prefix + name


def test_every_setting_is_read_somewhere() -> None:
    own = SOURCE / "core" / "config"
    text = "\n".join(text for path, text in sources().items() if own not in path.parents)
    read = set(re.findall(r"\.(\w+)\b", text))
    by_name = {f"restem.sft_{name}" for name in GENERATOR_SETTINGS}  # `recipes` reads these
    unread = [key for key in keys_of(Config) if key.rpartition(".")[2] not in read]
    assert set(unread) <= by_name
