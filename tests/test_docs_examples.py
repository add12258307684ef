"""What the user's pages say is true: their examples run, and the names in them exist.

Every ``python`` block and every ``aios`` line of a ``bash`` block is run, page by page, in a folder
of its own with the examples and the scripted model. ``<!-- file: NAME -->`` before a block saves it
there under that name; ``<!-- not run: reason -->`` leaves it out.
"""

from __future__ import annotations

import ast
import json
import re
import shlex
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_args

import click
import pytest

from aios.app import doctor, machine
from aios.cli.aios import cli, run
from aios.core.config import keys
from aios.core.data.readers import READERS
from aios.core.seal.quality import Reason
from aios.core.seal.strategies import known_strategies

ROOT = Path(__file__).resolve().parents[1]
PAGES = (
    "api/index.md",
    "api/experts.md",
    "QUICK_START.md",
    "tutorials/SEAL_FIRST_EXPERT.md",
    "tutorials/SEAL_RESTEM_TUTORIAL.md",
    "user_guide/SEAL_SELF_EDITS.md",
    "user_guide/STRATEGIES.md",
    "user_guide/AB_TESTS.md",
    "user_guide/TRAINING.md",
    "user_guide/TRIALS.md",
    "user_guide/SEAL_RESTEM.md",
    "user_guide/SEAL_COST_ANALYSIS.md",
    "user_guide/CONFIGURATION.md",
    "user_guide/ENDPOINTS.md",
    "user_guide/TELEMETRY.md",
    "user_guide/EXPERTS.md",
    "user_guide/CHAT.md",
    "user_guide/ROUTING.md",
    "user_guide/SERVER.md",
    "user_guide/SEAL_OVERVIEW.md",
    "advanced/SEAL_ADVANCED_FEATURES.md",
)
MOST_NOT_RUN = 4  # blocks of a page that may be left out
MOST_PEFT_LINES = 8
# The same commands as in the pages, on less work.
ENVIRONMENT = {
    "AIOS_MODEL__NAME": "scripted",
    "AIOS_TRAINING__MAX_TOKENS": "300",
    "AIOS_SEAL__NUM_EDITS_PER_PASSAGE": "1",
    "AIOS_AB_TEST__SEEDS": "2",
    "AIOS_AB_TEST__BUDGET_TOKENS": "200",
    "AIOS_EVALUATION__BOOTSTRAP_SAMPLES": "100",
    "AIOS_RESTEM__KEEP": "best_of_k",  # the scripted model writes nothing that is rewarded
}
# The scripted model learns nothing, so by held-out passages no generator is better than none.
ENVIRONMENT_OF = {"user_guide/SEAL_RESTEM.md": {"AIOS_RESTEM__HELD_OUT_FRACTION": "0"}}

_BLOCK = re.compile(
    r"^(?:<!-- (?P<mark>not run|file): (?P<what>[^\n]+) -->\n)?"
    r"```(?P<language>\w+)\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_SPAN = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
_SECTIONS = (
    "model endpoint seal restem training data evaluation ab_test telemetry paths features "
    "recipes routing chat adaptation serve".split()
)
_KEY = re.compile(rf"(?:{'|'.join(_SECTIONS)})(?:\.[a-z0-9_-]+)+")
_FILE_ENDINGS = (".json", ".jsonl", ".html", ".yaml", ".safetensors")
_TROUBLE_ROW = re.compile(r"^\| `([^`]+)` \| ", re.MULTILINE)


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
    file: str
    reason: str


def read(page: str) -> str:
    return (ROOT / "docs" / page).read_text(encoding="utf-8")


def blocks(page: str) -> list[Block]:
    text = read(page)
    found = []
    for match in _BLOCK.finditer(text):
        marks = {match["mark"]: match["what"]}
        line = text.count("\n", 0, match.start("code")) + 1
        file, reason = marks.get("file", ""), marks.get("not run", "")
        found.append(Block(match["language"], match["code"], line, file, reason))
    assert text.count("\n```") == 2 * len(found), "a fence that is not closed, or indented"
    return found


def commands(block: Block) -> list[list[str]]:
    """The arguments of the block's ``aios`` lines; a backslash goes on to the next line."""
    if block.language not in ("bash", "console"):
        return []
    lines = block.code.replace("\\\n", " ").splitlines()
    return [shlex.split(line)[1:] for line in lines if line.startswith("aios ")]


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


@pytest.fixture(scope="module")
def torch_probe() -> Callable[[], Mapping[str, Any]]:
    """What ``aios doctor`` asks a process that imports torch, which takes seconds, asked once."""
    return cache(machine.probe_torch)


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.usefixtures("quick_jobs")
@pytest.mark.parametrize("page", PAGES)
@pytest.mark.filterwarnings("default")  # what the examples import is not under test
def test_the_examples_of_a_page_run(
    page: str,
    workplace: Path,
    torch_probe: Callable[[], Mapping[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(doctor, "probe_torch", torch_probe)
    for name, value in ENVIRONMENT_OF.get(page, {}).items():
        monkeypatch.setenv(name, value)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks(page):
        where = f"docs/{page}:{block.line}"
        if block.reason:
            continue
        if block.file:
            (workplace / block.file).write_text(block.code, encoding="utf-8")
        if block.language == "python":
            exec(compile(block.code, where, "exec"), namespace)
        for arguments in commands(block):
            code = run(arguments)
            said = capsys.readouterr()
            assert code == 0, f"{where}: aios {shlex.join(arguments)}: {said.err}{said.out}"


@pytest.mark.parametrize("page", PAGES)
def test_a_page_shows_something_and_leaves_little_out(page: str) -> None:
    shown = blocks(page)
    assert any(commands(b) or b.language == "python" for b in shown if not b.reason)
    assert len([block for block in shown if block.reason]) <= MOST_NOT_RUN


@pytest.mark.parametrize("page", PAGES)
def test_the_config_keys_named_in_a_page_exist(page: str) -> None:
    for span in _SPAN.findall(read(page)):
        name = span.split("=")[0]
        if _KEY.fullmatch(name) and not name.endswith(_FILE_ENDINGS):
            assert keys.find(keys.split(name)), name


@pytest.mark.parametrize("page", PAGES)
def test_the_options_named_in_a_page_exist(page: str) -> None:
    words = [word for span in _SPAN.findall(read(page)) for word in span.split()]
    words += [w for block in blocks(page) for arguments in commands(block) for w in arguments]
    named = {word.split("=")[0] for word in words if re.match(r"--[a-z]", word)}
    assert named <= options_of_the_program()


@pytest.mark.parametrize("page", PAGES)
def test_the_links_of_a_page_lead_to_pages(page: str) -> None:
    for target in _LINK.findall(read(page)):
        assert ((ROOT / "docs" / page).parent / target).is_file(), target


@pytest.mark.parametrize("page", PAGES)
def test_the_messages_named_in_a_page_are_those_of_the_program(page: str) -> None:
    text = read(page)
    if "## Troubleshooting" not in text:
        return
    messages = _TROUBLE_ROW.findall(section(text, "## Troubleshooting"))
    assert messages
    for message in messages:
        for part in filter(None, (part.strip() for part in message.split("…"))):
            assert any(part in known for known in texts_in_the_code()), (message, part)


def test_every_reason_of_the_quality_filter_is_explained() -> None:
    table = section(read("user_guide/SEAL_SELF_EDITS.md"), "## The quality filter")
    assert first_column(table) == list(get_args(Reason))


def test_every_strategy_is_explained() -> None:
    table = section(read("user_guide/SEAL_SELF_EDITS.md"), "## Strategies")
    assert first_column(table.split("###")[0]) == list(known_strategies())
    asked = section(read("user_guide/STRATEGIES.md"), "## What each asks for")
    assert first_column(asked) == list(known_strategies())


def test_the_metrics_document_has_the_keys_that_are_named(workplace: Path) -> None:
    arguments = ["seal", "ab-test", "--input", "examples/passages.jsonl", "--output", "run"]
    assert run([*arguments, "--json", "--quiet"]) == 0
    document = json.loads(Path("run/metrics.json").read_text(encoding="utf-8"))
    text = section(read("user_guide/AB_TESTS.md"), "## metrics.json")
    assert first_column(text) == list(document)
    described = text.split("A comparison has")[1].split("```")[0]
    assert set(_SPAN.findall(described)) == set(document["comparison"])


def test_the_endings_that_can_be_read_are_named() -> None:
    text = read("QUICK_START.md")
    for name in {".md": "Markdown", ".json": "JSON", ".csv": "CSV", ".parquet": "Parquet"}.items():
        assert name[0] in READERS
        assert name[1] in text


def test_loading_with_peft_is_short() -> None:
    (example,) = [b for b in blocks("user_guide/TRAINING.md") if "PeftModel" in b.code]
    compile(example.code, "example", "exec")
    lines = [line for line in example.code.splitlines() if line.strip()]
    assert len(lines) <= MOST_PEFT_LINES
