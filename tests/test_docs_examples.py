"""Every block of every page is run, or is checked in another way, or says why it is not run.

What is run is run page by page, in a folder of its own with the examples and the scripted model;
see `page_runner`. What is not (targets of make, long experiments, installations) names things that
exist.
"""

from __future__ import annotations

import ast
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from aios.app.machine import doctor
from aios.app.machine import facts as machine
from aios.core.config.loader import load_config
from aios.core.config.schemas import Config
from aios.core.seal.prompt_templates import load_prompts_file
from tests.openai_server import LOOPBACK, OpenAIServer
from tests.page_runner import PageRunner, is_run
from tests.pages import PAGES, ROOT, SHELL, Block, blocks, blocks_of, program_of, read, shell_lines

# Generated from the help texts, whose examples name files, experts and runs of the reader's.
PARSED_ONLY = {"docs/reference/CLI.md"}
RUN = [page for page in PAGES if page not in PARSED_ONLY and any(map(is_run, blocks(page)))]
NOT_OURS = ("nginx",)  # settings of other programs
MOST_NOT_RUN = 4  # blocks of a page that may be left out
MOST_NOT_RUN_OF = {"docs/INSTALL.md": 10}  # nearly all of it changes the installed packages
REASONS = (
    "builds",
    "changes",
    "fetches",
    "goes on with a run that was stopped",
    "installs",
    "needs",
    "removes",
    "runs the tests",
    "takes",
    "waits for somebody at a keyboard",
    "writes files of the repository",
)
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
_EVERY_GENERATOR_IS_KEPT = {"AIOS_RESTEM__HELD_OUT_FRACTION": "0"}
_SMALL_ROUNDS = {"AIOS_SEAL__RESTEM_BATCH_SIZE": "4", "AIOS_SEAL__RESTEM_ITERATIONS": "1"}
ENVIRONMENT_OF = {
    "README.md": {**_EVERY_GENERATOR_IS_KEPT, **_SMALL_ROUNDS},
    "docs/user_guide/SEAL_RESTEM.md": _EVERY_GENERATOR_IS_KEPT,
}
NOTES = (
    "The Brellow tide engine was built in 1871 by Osanne Verrick. It lifts 9,200 litres a minute."
)
# What readers have of their own: name to content, or the example that stands for it.
FILES_OF: Mapping[str, Mapping[str, str | Path]] = {
    "README.md": {"notes.md": NOTES, "passages.jsonl": Path("examples/passages.jsonl")},
    "docs/user_guide/CHAT.md": {"notes.md": NOTES, "question.txt": "When was it built?"},
    "docs/user_guide/SERVER.md": {"token.txt": "a-token-of-more-than-16-characters"},
    "docs/user_guide/SEAL_OVERVIEW.md": {"notes/a.md": NOTES, "~/papers/b.md": NOTES},
}
# Pages whose examples ask a server of somebody else's.
ASKS_AN_ENDPOINT = {"docs/user_guide/ENDPOINTS.md"}


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


def put_files(page: str) -> None:
    for name, content in FILES_OF.get(page, {}).items():
        path = Path(name).expanduser()
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, Path):
            shutil.copy(content, path)
        else:
            path.write_text(content, encoding="utf-8")
            path.chmod(0o600)


def block_of(page: str, block: Block) -> str:
    return f"{page}:{block.line}"


# ------------------------------------------------------------ what is run


@pytest.mark.slow
@pytest.mark.usefixtures("quick_jobs", "workplace")
@pytest.mark.parametrize("page", [pytest.param(page, marks=LOOPBACK) for page in RUN])
@pytest.mark.filterwarnings("default")  # what the examples import is not under test
def test_the_examples_of_a_page_run(
    page: str,
    torch_probe: Callable[[], Mapping[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(doctor, "probe_torch", torch_probe)
    for name, value in ENVIRONMENT_OF.get(page, {}).items():
        monkeypatch.setenv(name, value)
    put_files(page)
    with ExitStack() as held:
        address = ""
        if page in ASKS_AN_ENDPOINT:
            url = held.enter_context(OpenAIServer()).url
            monkeypatch.setenv("AIOS_ENDPOINT__URL", url)
            address = url.removeprefix("http://").removesuffix("/v1")
        runner = held.enter_context(PageRunner(capsys, monkeypatch, address))
        for block in blocks(page):
            runner.run(block, block_of(page, block))


def test_most_pages_with_blocks_are_run() -> None:
    assert {"README.md", "docs/QUICK_START.md", "docs/api/seal_examples.md"} <= set(RUN)
    assert len(RUN) >= 25


# ------------------------------------------------------------ what is checked in another way


@pytest.mark.parametrize("page", PAGES)
def test_every_block_is_run_or_checked_or_says_why_not(page: str) -> None:
    shown = blocks(page)
    for block in shown:
        where = block_of(page, block)
        if block.reason:
            assert block.reason.startswith(REASONS), f"{where}: {block.reason}"
        elif block.language in SHELL:
            for line in shell_lines(block):
                assert line.kind, f"{where}: it is not known how to check: {line.text}"
        else:
            known = (*CHECKS, *NOT_OURS, "python", "text", "")
            assert block.language in known, f"{where}: {block.language}"
    left_out = [block for block in shown if block.reason]
    assert len(left_out) <= MOST_NOT_RUN_OF.get(page, MOST_NOT_RUN)


@pytest.mark.parametrize("page", PAGES)
def test_what_is_data_in_a_page_can_be_read(page: str, tmp_path: Path) -> None:
    for block in blocks(page):
        if check := CHECKS.get(block.language):
            check(block.code, tmp_path)


def check_json(code: str, folder: Path) -> None:
    try:
        json.loads(code)
    except json.JSONDecodeError:  # JSON lines
        assert [json.loads(line) for line in code.splitlines() if line.strip()]


def check_yaml(code: str, folder: Path) -> None:
    """A config, or a file of prompts."""
    path = folder / "page.yaml"
    path.write_text(code, encoding="utf-8")
    if set(re.findall(r"^(\w+):", code, re.MULTILINE)) <= set(Config.model_fields):
        load_config(config_file=path, env={})
    else:
        load_prompts_file(path)


def check_toml(code: str, folder: Path) -> None:
    tomllib = pytest.importorskip("tomllib", reason="the library has it from Python 3.11 on")
    tomllib.loads(code)


CHECKS: Mapping[str, Callable[[str, Path], None]] = {
    "json": check_json,
    "yaml": check_yaml,
    "toml": check_toml,
}


@pytest.mark.parametrize("page", PAGES)
def test_output_and_drawings_hold_no_commands(page: str) -> None:
    for block in blocks(page):
        if block.language in ("", "text"):
            found = re.findall(
                r"^(?:\$ )?(?:aios|make|python|pip) [\w-].*", block.code, re.MULTILINE
            )
            assert not found, f"{block_of(page, block)}: mark the block as bash"


@pytest.mark.parametrize("page", PAGES)
def test_code_that_is_not_run_could_be(page: str) -> None:
    for block in blocks(page):
        if block.language == "python" and block.reason:
            compile(block.code, block_of(page, block), "exec")


@pytest.mark.parametrize("page", PAGES)
def test_what_is_installed_or_tested_exists(page: str) -> None:
    extras = re.findall(r"^(\w+) = \[", read("pyproject.toml"), re.MULTILINE)
    for block in blocks(page):
        for line in shell_lines(block):
            if line.kind == "install":
                for extra in re.findall(r"(?:aios|\.)\[([\w,]+)\]", line.text):
                    assert set(extra.split(",")) <= set(extras), line.text
            if line.kind in ("install", "tests", "git") and not block.reason:
                for word in line.words:
                    if "/" in word and not word.startswith((".venv", "-")):
                        assert (ROOT / word.partition("::")[0]).exists(), line.text


def programs() -> Iterator[tuple[str, str]]:
    """The pages' lines that run a program of the repository: page, line."""
    for page in PAGES:
        for block in blocks(page):
            for line in shell_lines(block):
                if line.kind == "program":
                    yield page, line.text


def test_programs_that_pages_name_take_the_options_that_they_show() -> None:
    for page, text in programs():
        words = [word.partition("=")[0] for word in text.partition(" #")[0].split()]
        path = ROOT / program_of(words)
        assert path.is_file(), f"{page}: {text}"
        known = options_in(path)
        unknown = {word for word in words if word.startswith("--")} - known
        assert not unknown, f"{page}: {text}: no {', '.join(unknown)}"


@cache
def options_in(path: Path) -> frozenset[str]:
    """Options that a program, or a module of the repository that it imports, adds to a parser."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = {
        node.args[0].value
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and node.args
        and isinstance(node.args[0], ast.Constant)
        and isinstance(node.args[0].value, str)
        and node.args[0].value.startswith("--")
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            for name in (node.module, *(f"{node.module}.{alias.name}" for alias in node.names)):
                beside = (ROOT / name.replace(".", "/")).with_suffix(".py")
                if beside.is_file() and beside != path:
                    found |= options_in(beside)
    return frozenset(found)


@pytest.mark.parametrize("page", PAGES)
def test_variables_given_to_make_are_read(page: str) -> None:
    sources = [ROOT / "Makefile", *(ROOT / "benchmarks").glob("*.py")]
    for block in blocks(page):
        for line in shell_lines(block):
            if line.kind == "make":
                for name in re.findall(r"\b([A-Z_]+)=", line.text.partition(" #")[0]):
                    assert any(name in path.read_text(encoding="utf-8") for path in sources), name


# ------------------------------------------------------------ the checks themselves


def test_blocks_are_found_with_their_marks() -> None:
    found = blocks_of(
        "<!-- file: a.yaml -->\n```yaml\nx: 1\n```\n\n"
        "<!-- not run: takes hours -->\n```bash\naios doctor\n```\n\n```\ntext\n```\n"
    )
    assert [(b.language, b.file, b.reason, b.line) for b in found] == [
        ("yaml", "a.yaml", "", 3),
        ("bash", "", "takes hours", 8),
        ("", "", "", 12),
    ]
    with pytest.raises(AssertionError, match="not closed, or indented"):
        blocks_of("  ```bash\n  aios doctor\n  ```\n")


@pytest.mark.parametrize(
    ("text", "kind", "words"),
    [
        ("aios doctor  # what is there", "aios", ["aios", "doctor"]),
        ("AIOS_SEED=1 aios doctor", "aios", ["aios", "doctor"]),
        ("aios serve --port 8080", "server", ["aios", "serve", "--port", "8080"]),
        ("cat a | aios chat > b", "shell", ["cat", "a", "|", "aios", "chat", ">", "b"]),
        ("make bench-trials DEVICE=cuda", "make", ["make", "bench-trials", "DEVICE=cuda"]),
        ("python scripts/screenshots.py", "program", ["python", "scripts/screenshots.py"]),
        ("python -m scripts.reference", "program", ["python", "-m", "scripts.reference"]),
        (".venv/bin/python -m pytest -q", "tests", [".venv/bin/python", "-m", "pytest", "-q"]),
        ("rm -r here", "", ["rm", "-r", "here"]),
        ("python - <<'END'", "", ["python", "-", "<<END"]),
    ],
)
def test_what_kind_of_command_a_line_is(text: str, kind: str, words: list[str]) -> None:
    (line,) = shell_lines(Block("bash", text, 1))
    assert (line.kind, list(line.words)) == (kind, words)


def test_a_line_goes_on_after_a_backslash_and_comments_are_none() -> None:
    lines = shell_lines(Block("bash", "# first\naios seal \\\n    generate\n\n", 1))
    assert [line.words for line in lines] == [("aios", "seal", "generate")]


@pytest.mark.parametrize(
    "code", ["aios gone", "python -c 'raise SystemExit(1)' > out", "curl http://127.0.0.1:8000/"]
)
def test_what_fails_is_found(
    code: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    with (
        pytest.raises(AssertionError),
        PageRunner(capsys, monkeypatch) as runner,
    ):
        runner.run(Block("bash", code, 1), "here")
    assert is_run(Block("bash", code, 1))
    assert not is_run(Block("bash", code, 1, reason="takes hours"))
