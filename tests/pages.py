"""The Markdown pages of the repository, their code blocks, and what kind of thing each line is.

``<!-- file: NAME -->`` before a block saves it under that name before later ones are run;
``<!-- not run: reason -->`` says why a block is not run.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("docs", "examples", "experiments", "benchmarks")
PAGES = sorted(
    str(path.relative_to(ROOT))
    for path in {*ROOT.glob("*.md"), *(p for name in FOLDERS for p in (ROOT / name).rglob("*.md"))}
)
SHELL = ("bash", "console", "sh")

_BLOCK = re.compile(
    r"^(?:<!-- (?P<mark>not run|file): (?P<what>[^\n]+) -->\n)?"
    r"```(?P<language>\w*)\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*=.*")
_OPERATORS = re.compile(r"\s(?:\||>{1,2}|<|&&|;)\s|^\(")
# The first words of a command, and what kind it is; the longest that fits counts.
_KINDS = {
    ("aios",): "aios",
    (".venv/bin/aios",): "aios",
    ("aios", "serve"): "server",
    ("aios", "web"): "server",
    ("make",): "make",
    ("curl",): "curl",
    ("source", ".venv/bin/activate"): "shell setting",
    (".", ".venv/bin/activate"): "shell setting",
    ("python", "-m", "pytest"): "tests",
    ("pytest",): "tests",
    ("pip", "install"): "install",
    ("git", "diff"): "git",
}


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Attributes:
        language: What stands behind its fence.
        code: Its lines.
        line: The page's line of its first one.
        file: Name to save it under, or empty.
        reason: Why it is not run, or empty.
    """

    language: str
    code: str
    line: int
    file: str = ""
    reason: str = ""


@dataclass(frozen=True)
class ShellLine:
    """A command of a shell block.

    Attributes:
        text: The whole of it.
        kind: What it is; empty where that is not known.
        words: Its words, without variables before it and comments behind it.
        variables: The variables before it.
    """

    text: str
    kind: str
    words: tuple[str, ...]
    variables: dict[str, str] = field(default_factory=dict)


@cache
def read(page: str) -> str:
    """A page's text."""
    return (ROOT / page).read_text(encoding="utf-8")


@cache
def blocks(page: str) -> tuple[Block, ...]:
    """The blocks of a page."""
    return blocks_of(read(page))


def blocks_of(text: str) -> tuple[Block, ...]:
    """The blocks of a Markdown text."""
    found = []
    for match in _BLOCK.finditer(text):
        marks = {match["mark"]: match["what"]}
        line = text.count("\n", 0, match.start("code")) + 1
        file, reason = marks.get("file", ""), marks.get("not run", "")
        found.append(Block(match["language"], match["code"], line, file, reason))
    assert len(re.findall(r"^ *```", text, re.MULTILINE)) == 2 * len(found), (
        "a fence that is not closed, or indented"
    )
    return tuple(found)


def shell_lines(block: Block) -> list[ShellLine]:
    """The commands of a shell block; a backslash goes on to the next line."""
    if block.language not in SHELL:
        return []
    lines = (line.strip() for line in block.code.replace("\\\n", " ").splitlines())
    return [shell_line(line) for line in lines if line and not line.startswith("#")]


def shell_line(text: str) -> ShellLine:
    """One command."""
    try:
        words = shlex.split(text, comments=True)
    except ValueError:  # a quotation that goes on in the next line
        return ShellLine(text, "", ())
    variables = {}
    while words and _VARIABLE.fullmatch(words[0]):
        name, _, value = words.pop(0).partition("=")
        variables[name] = value
    if _OPERATORS.search(text.partition(" #")[0]):
        return ShellLine(text, "" if "<<" in text else "shell", tuple(words), variables)
    return ShellLine(text, _kind(words), tuple(words), variables)


def _kind(words: list[str]) -> str:
    plain = [word.removeprefix(".venv/bin/") if word.endswith("python") else word for word in words]
    for length in (3, 2, 1):
        if found := _KINDS.get(tuple(plain[:length])):
            return found
    return "program" if program_of(words) else ""


def program_of(words: list[str] | tuple[str, ...]) -> str:
    """The program of the repository that a command runs, as a path; empty if it is none."""
    if not words or not words[0].endswith("python"):
        return ""
    if len(words) > 2 and words[1] == "-m":
        module = words[2].replace(".", "/")
        files = (f"{module}.py", f"{module}/__main__.py")
        return next((name for name in files if (ROOT / name).is_file()), "")
    return words[1] if len(words) > 1 and words[1].endswith(".py") else ""
