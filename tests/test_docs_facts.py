"""What the pages name exists: settings, options, messages, and names in the code.

Links, commands and targets are checked in ``test_docs.py``, blocks in ``test_docs_examples.py``.
"""

from __future__ import annotations

import ast
import json
import re
from functools import cache
from pathlib import Path
from typing import get_args

import click
import pytest

import aios
from aios.cli.aios import cli, run
from aios.core.config import keys
from aios.core.config.schemas import Config
from aios.core.data.readers import READERS
from aios.core.seal.quality import Reason
from aios.core.seal.strategies import known_strategies
from tests.pages import PAGES, ROOT, blocks, read, shell_lines

MOST_PEFT_LINES = 8
OTHER_PROGRAMS = ("--with pip", "pip ", "pipx ", "uv ", "pytest ", "python ", "make ")
# Names of other things: of an entry point group, and of fields of objects and answers.
OTHERS = {"aios.strategies", "aios.texts", "chat.completion", "data.validation", "model.generate"}

_SPAN = re.compile(r"`([^`\n]+)`")
_KEY = re.compile(rf"(?:{'|'.join(Config.model_fields)})(?:\.[a-z0-9_-]+)+")
_FILE_ENDINGS = (".json", ".jsonl", ".html", ".yaml", ".safetensors", ".py", ".md")
_LAYERS = ("app", "backends", "cli", "core", "storage", "web")
_NAME = re.compile(rf"(?:aios|{'|'.join(_LAYERS)})(?:\.\w+)+")
_TROUBLE_ROW = re.compile(r"^\| (`[^`]+`(?:, or `[^`]+`)*) \| ", re.MULTILINE)


@pytest.mark.parametrize("page", PAGES)
def test_the_config_keys_named_in_a_page_exist(page: str) -> None:
    for span in _SPAN.findall(read(page)):
        name = span.split("=")[0]
        if _KEY.fullmatch(name) and not name.endswith(_FILE_ENDINGS) and name not in OTHERS:
            assert keys.find(keys.split(name)) or exists(name), name


@pytest.mark.parametrize("page", PAGES)
def test_the_options_named_in_a_page_exist(page: str) -> None:
    spans = [span for span in _SPAN.findall(read(page)) if not span.startswith(OTHER_PROGRAMS)]
    words = [word for span in spans for word in span.split()]
    shown = [line for block in blocks(page) for line in shell_lines(block)]
    words += [word for line in shown if line.kind in ("aios", "server") for word in line.words]
    named = {word.split("=")[0].rstrip(",.;") for word in words if re.match(r"--[a-z]", word)}
    assert named <= options_of_the_program() | options_of_scripts()


@pytest.mark.parametrize("page", PAGES)
def test_the_names_in_the_code_that_a_page_names_exist(page: str) -> None:
    for span in _SPAN.findall(read(page)):
        match = _NAME.match(span)
        if match is None or (match.end() < len(span) and span[match.end()] not in "(: "):
            continue
        name = match[0]
        if name.endswith(_FILE_ENDINGS) or name in OTHERS or name.isupper():
            continue
        assert exists(name) or keys.find(keys.split(name)), name


@pytest.mark.parametrize("page", PAGES)
def test_what_code_that_is_not_run_imports_exists(page: str) -> None:
    for block in blocks(page):
        if block.language == "python" and block.reason:
            for node in ast.walk(ast.parse(block.code)):
                if isinstance(node, ast.ImportFrom) and str(node.module).startswith("aios"):
                    assert all(exists(f"{node.module}.{alias.name}") for alias in node.names)
                if isinstance(node, ast.Attribute) and ast.unparse(node).startswith("aios."):
                    assert exists(ast.unparse(node)), ast.unparse(node)


def test_the_messages_that_are_explained_are_those_of_the_program() -> None:
    rows = _TROUBLE_ROW.findall(read("docs/user_guide/TROUBLESHOOTING.md"))
    assert len(rows) > 100
    for message in (span for row in rows for span in _SPAN.findall(row)):
        for part in filter(None, (part.strip() for part in message.split("…"))):
            assert any(part in known for known in texts_in_the_code()), (message, part)


def test_messages_are_explained_on_one_page() -> None:
    assert [page for page in PAGES if "## Troubleshooting" in read(page)] == []


def test_every_reason_of_the_quality_filter_is_explained() -> None:
    table = section(read("docs/user_guide/SEAL_SELF_EDITS.md"), "## The quality filter")
    assert first_column(table) == list(get_args(Reason))


def test_every_strategy_is_explained() -> None:
    table = section(read("docs/user_guide/SEAL_SELF_EDITS.md"), "## Strategies")
    assert first_column(table.split("###")[0]) == list(known_strategies())
    asked = section(read("docs/user_guide/STRATEGIES.md"), "## What each asks for")
    assert first_column(asked) == list(known_strategies())


def test_the_metrics_document_has_the_keys_that_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = "model.name=scripted", "training.max_tokens=300", "ab_test.budget_tokens=200"
    arguments = [
        "seal",
        "ab-test",
        "--input",
        str(ROOT / "examples/passages.jsonl"),
        "--seeds",
        "2",
    ]
    arguments += [word for setting in settings for word in ("--set", setting)]
    assert run([*arguments, "--output", "run", "--json", "--quiet"]) == 0
    document = json.loads(Path("run/metrics.json").read_text(encoding="utf-8"))
    text = section(read("docs/user_guide/AB_TESTS.md"), "## metrics.json")
    assert first_column(text) == list(document)
    described = text.split("A comparison has")[1].split("```")[0]
    assert set(_SPAN.findall(described)) == set(document["comparison"])


def test_the_endings_that_can_be_read_are_named() -> None:
    text = read("docs/QUICK_START.md")
    for name in {".md": "Markdown", ".json": "JSON", ".csv": "CSV", ".parquet": "Parquet"}.items():
        assert name[0] in READERS
        assert name[1] in text


def test_loading_with_peft_is_short() -> None:
    (example,) = [b for b in blocks("docs/user_guide/TRAINING.md") if "PeftModel" in b.code]
    lines = [line for line in example.code.splitlines() if line.strip()]
    assert len(lines) <= MOST_PEFT_LINES


# ------------------------------------------------------------ what there is


def section(text: str, heading: str) -> str:
    """The text below a heading, up to the next of the same or a higher level."""
    level = heading.split(" ")[0]
    found = re.search(
        rf"^{re.escape(heading)}$\n(.*?)(?=^#{{1,{len(level)}}} |\Z)", text, re.M | re.S
    )
    assert found is not None, heading
    return found[1]


def first_column(table: str) -> list[str]:
    return re.findall(r"^\| `([\w-]+)` \|", table, re.MULTILINE)


@cache
def texts_in_the_code() -> tuple[str, ...]:
    """Every text constant of the package, f-strings in their constant parts."""
    found = []
    for path in sorted((ROOT / "src").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return tuple(found)


@cache
def options_of_the_program() -> frozenset[str]:
    found: set[str] = set()
    waiting: list[click.Command] = [cli]
    while waiting:
        command = waiting.pop()
        for param in command.params:
            found.update([*param.opts, *param.secondary_opts])
        if isinstance(command, click.Group):
            context = click.Context(command)
            below = [command.get_command(context, name) for name in command.list_commands(context)]
            waiting += [each for each in below if each is not None]
    return frozenset(found)


@cache
def options_of_scripts() -> frozenset[str]:
    """Options that a program of the repository beside ``aios`` adds to its parser, or make's."""
    folders = ("scripts", "experiments", "benchmarks")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    texts = [path.read_text(encoding="utf-8") for path in files]
    return frozenset(re.findall(r"\"(--[a-z][\w-]*)\"", "\n".join(texts)))


@cache
def exists(name: str) -> bool:
    """Whether ``aios.…``, or a name below one of its packages, is a module or something in one.

    Looked up in the sources: nothing heavy is imported.
    """
    parts = tuple(name.removeprefix("aios.").split("."))
    if name.startswith("aios.") and parts[0] in aios._EXPORTS:
        parts = (*aios._EXPORTS[parts[0]].split(".")[1:], *parts)
    for length in range(len(parts), -1, -1):
        path = ROOT / "src" / "aios" / Path(*parts[:length])
        module = path.with_suffix(".py") if not path.is_dir() else path / "__init__.py"
        if module.is_file():
            return holds(ast.parse(module.read_text(encoding="utf-8")), parts[length:])
    return False


def holds(tree: ast.Module | ast.ClassDef, names: tuple[str, ...]) -> bool:
    """Whether a module or class defines a name, and that the next one, and so on."""
    if not names:
        return True
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name == names[0]:
            return holds(node, names[1:]) if isinstance(node, ast.ClassDef) else len(names) == 1
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(each, ast.Name) and each.id == names[0] for each in targets):
            return True
    return False


def test_names_are_looked_up() -> None:
    assert exists("aios.load_model")
    assert exists("aios.core.seal.reliability.report")
    assert exists("core.types.SelfEdit.text")
    assert exists("aios.SelfEditGenerator.generate")
    assert not exists("aios.load_models")
    assert not exists("core.types.SelfEdit.texts")
    assert not exists("aios.core.gone")
