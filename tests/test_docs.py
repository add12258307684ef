"""What the Markdown files name exists: linked files and headings, commands, options, targets.

That the examples of the user's pages run is checked in ``test_docs_examples.py``.
"""

from __future__ import annotations

import re
import shlex
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

import click
import pytest

from aios.cli.aios import cli

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("docs", "examples", "experiments", "benchmarks", "tests/golden")
PAGES = sorted(
    {path for folder in FOLDERS for path in (ROOT / folder).rglob("*.md")} | set(ROOT.glob("*.md"))
)
# Where the pages may send their readers; a new one is a decision.
HOSTS = {
    "arxiv.org",
    "docs.python.org",
    "github.com",
    "huggingface.co",
    "keepachangelog.com",
    "opensource.org",
    "pytorch.org",
    "semver.org",
}

_FENCE = re.compile(r"^( *)(`{3,}|~{3,})(\w*)[^\n]*\n(.*?)^\1\2 *$", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
_LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(\s*<?([^)\s>]+)>?(?:\s+[\"'][^)]*)?\)")
_DEFINITION = re.compile(r"^ {0,3}\[[^\]^]+\]:\s*<?(\S+?)>?(?:\s|$)", re.MULTILINE)
_ATTRIBUTE = re.compile(r"<(?:a|img|source)\b[^>]*?\b(?:href|src|srcset)=[\"']([^\"']+)[\"']")
_BARE_URL = re.compile(r"https?://[^\s<>()\"'`\]]+")
_HEADING = re.compile(r"^#{1,6} +(.+?)(?: +#+)?$", re.MULTILINE)
_ANCHOR = re.compile(r"<[^>]+\b(?:id|name)=[\"']([^\"']+)[\"']")
_MACHINE_PATH = re.compile(r"(?<![\w.~<])/(?:home|root|tmp|work|Users|opt|mnt|var|private)/")
_ADDRESS = re.compile(r"\b\d{1,3}(?:\.\d{1,3}){3}\b")
_PROGRAM = re.compile(r"^(?:\$ +)?(?:\w+=\S* +)*(?:\S*python3? +-m +|\S*bin/)?aios(?= |$)")
_PLACEHOLDER = re.compile(r"[A-Z][A-Z0-9_-]*|…|\.\.\.|\[.*")
_SHELL_ENDS = ("|", ">", ">>", "<", "&", "&&", "||", ";", "#", "2>")


@dataclass(frozen=True)
class Page:
    """A Markdown file in its parts: what is code and what is not."""

    path: Path
    prose: str
    blocks: tuple[tuple[str, str], ...]

    @property
    def spans(self) -> list[str]:
        """The inline code."""
        return _SPAN.findall(self.prose)

    @property
    def shell_lines(self) -> Iterator[str]:
        """Lines of code blocks that may be commands; a backslash goes on to the next line."""
        for language, code in self.blocks:
            if language in ("", "bash", "sh", "shell", "console", "text"):
                yield from (line.strip() for line in code.replace("\\\n", " ").splitlines())

    @property
    def links(self) -> list[str]:
        """The targets of all links and images."""
        text = _SPAN.sub("", self.prose)
        return [m for kind in (_LINK, _DEFINITION, _ATTRIBUTE) for m in kind.findall(text)]

    @property
    def anchors(self) -> set[str]:
        """What a link into the page may name."""
        found: set[str] = set(_ANCHOR.findall(self.prose))
        for heading in _HEADING.findall(self.prose):
            slug = slug_of(heading)
            number = 0
            while (name := f"{slug}-{number}" if number else slug) in found:
                number += 1
            found.add(name)
        return found


@cache
def read(path: Path) -> Page:
    text = path.read_text(encoding="utf-8")
    blocks = tuple((m[3], m[4]) for m in _FENCE.finditer(text))
    return Page(path, _FENCE.sub("", text), blocks)


def slug_of(heading: str) -> str:
    """The anchor that Markdown renderers make of a heading."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
    text = unicodedata.normalize("NFKC", text).lower()
    return re.sub(r"[^\w\- ]", "", text).strip().replace(" ", "-")


def problems_of_links(page: Page) -> list[str]:
    found = []
    for target in page.links:
        parts = urlsplit(target)
        if parts.scheme or parts.netloc:
            continue
        file = page.path if not parts.path else page.path.parent / unquote(parts.path)
        if not file.exists():
            found.append(f"{target}: no such file")
        elif parts.fragment and file.suffix == ".md" and parts.fragment not in read(file).anchors:
            found.append(f"{target}: no such heading")
    return found


def commands(page: Page) -> Iterator[list[str]]:
    """The words after ``aios`` wherever a page shows such a command, in a block or in a line."""
    for line in [*page.shell_lines, *page.spans]:
        match = _PROGRAM.match(line)
        if match is None:
            continue
        try:
            words = shlex.split(line[match.end() :], comments=True)
        except ValueError:  # an apostrophe: a sentence and not a command
            continue
        end = next((i for i, word in enumerate(words) if word in _SHELL_ENDS), len(words))
        yield words[:end]


def problem_of_command(words: list[str]) -> str:
    """What a command line names that the program does not have; empty if all is there."""
    command: click.Command = cli
    context = click.Context(cli, info_name="aios")
    rest = list(words)
    while isinstance(command, click.Group) and rest:
        word = rest[0]
        if word.startswith("-") or _PLACEHOLDER.fullmatch(word):
            break
        names = word.split("|")  # as in `aios config show|explain`
        below = [command.get_command(context, name) for name in names]
        if None in below:
            return f"{command.name} has no command {word}"
        assert below[0] is not None
        command = below[0]
        context = click.Context(command, info_name=names[0], parent=context)
        rest = rest[1:]
    known = {name for param in command.params for name in (*param.opts, *param.secondary_opts)}
    known |= set(command.get_help_option_names(context))
    for word in rest:
        for option in re.findall(r"(?:^|[\[|])(--?[a-z][a-z-]*)", word):
            if option not in known:
                return f"{command.name} has no option {option}"
    return ""


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
class TestPage:
    def test_links_lead_to_files_and_headings(self, path: Path) -> None:
        assert problems_of_links(read(path)) == []

    def test_links_to_other_places_are_https_and_deliberate(self, path: Path) -> None:
        page = read(path)
        urls = [link for link in page.links if urlsplit(link).scheme]
        urls += _BARE_URL.findall(_SPAN.sub("", page.prose))  # addresses in code are no links
        for url in urls:
            parts = urlsplit(url)
            assert parts.scheme in ("https", "mailto"), url
            assert parts.scheme == "mailto" or parts.hostname in HOSTS, url

    def test_nothing_of_the_writers_machine_is_named(self, path: Path) -> None:
        text = path.read_text(encoding="utf-8")
        assert _MACHINE_PATH.findall(text) == []
        if path != ROOT / "THIRD_PARTY_LICENSES.md":  # some versions there have four numbers
            assert set(_ADDRESS.findall(text)) <= {"127.0.0.1", "0.0.0.0"}

    def test_commands_and_their_options_exist(self, path: Path) -> None:
        problems = {" ".join(words): problem_of_command(words) for words in commands(read(path))}
        assert {line: problem for line, problem in problems.items() if problem} == {}

    def test_targets_of_make_exist(self, path: Path) -> None:
        page = read(path)
        targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
        named = {
            word
            for line in [*page.shell_lines, *page.spans]
            if (match := re.match(r"(?:\$ +)?make +(.+)", line.partition("#")[0].strip()))
            for word in match[1].split()
            if re.fullmatch(r"[a-z][a-z-]*", word)
        }
        benches = {f"bench-{p.stem.replace('_', '-')}" for p in (ROOT / "benchmarks").glob("*.py")}
        assert named <= targets | benches | {"bench-"}

    def test_programs_of_the_repository_exist(self, path: Path) -> None:
        page = read(path)
        for line in [*page.shell_lines, *page.spans]:
            for name in re.findall(r"\b((?:scripts|experiments|benchmarks)/[\w/]+\.py)\b", line):
                assert (ROOT / name).is_file(), name


def test_the_main_pages_are_among_those_checked() -> None:
    names = {str(path.relative_to(ROOT)) for path in PAGES}
    assert {"README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/INDEX.md"} <= names


# ------------------------------------------------------------ the checks themselves


def make_page(folder: Path, text: str, name: str = "page.md") -> Page:
    (folder / name).write_text(text, encoding="utf-8")
    return read(folder / name)


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    make_page(tmp_path, "# Two words, `code`\n\n## Again\n\n## Again\n", "other.md")
    page = make_page(
        tmp_path,
        "# Here\n[a](other.md) [b](other.md#two-words-code) [c](other.md#again-1) [d](#here)\n"
        "[e](gone.md) [f](other.md#gone) ![g](gone.png) <img src='gone.svg'> [h]\n\n"
        "[h]: gone.txt\n`[i](in-code.md)` [j](https://example.invalid/x)\n"
        "```bash\n[k](in-a-block.md)\n```\n",
    )
    assert problems_of_links(page) == [
        "gone.md: no such file",
        "other.md#gone: no such heading",
        "gone.png: no such file",
        "gone.txt: no such file",
        "gone.svg: no such file",
    ]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("aios seal generate --input F --output F", ""),
        ("$ aios seal cache prune --max-size 5GB", ""),
        (".venv/bin/python -m aios --version", ""),
        ("AIOS_OFFLINE=1 .venv/bin/aios doctor --json | less", ""),
        ("aios config show|explain KEY", ""),
        ("aios COMMAND --help", ""),
        ("aios seal gone", "seal has no command gone"),
        ("aios gone", "aios has no command gone"),
        ("aios doctor --gone", "doctor has no option --gone"),
        ("aios seal generate [--gone F]", "generate has no option --gone"),
    ],
)
def test_a_command_that_is_gone_is_found(tmp_path: Path, line: str, problem: str) -> None:
    for text in (f"```bash\n{line}\n```\n", f"Type `{line}` now.\n"):
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.md"
        (words,) = commands(make_page(tmp_path, text, path.name))
        assert problem_of_command(words) == problem
