"""The generated pages below ``docs/reference`` are up to date and leave out nothing."""

from __future__ import annotations

import ast
import dataclasses
import re
from pathlib import Path

import pytest
from scripts.reference import __main__ as program
from scripts.reference import command_line, events, settings
from scripts.reference.markdown import prose, table, value

from aios.core.config import keys
from aios.core.config.explanation import explain_all
from aios.core.config.loader import load_config

ROOT = Path(__file__).resolve().parents[1]
READ_FROM_OUTSIDE = re.compile(
    r"(?:AIOS|HF|LLAMA|MLFLOW|NO|OMP|CUDA|OPENAI|RAY|TRACKIO|WANDB)(?:_[A-Z]+)+"
)
# Variables that the program only sets, for libraries and processes that it starts.
SET_BY_THE_PROGRAM = {
    "MLFLOW_DISABLE_TELEMETRY",
    "MLFLOW_LOGGING_LEVEL",
    "WANDB_CONSOLE",
    "WANDB_ERROR_REPORTING",
    "WANDB_SILENT",
}


@pytest.mark.parametrize("name", program.PAGES)
def test_a_page_is_up_to_date(name: str) -> None:
    assert not program.is_stale(name), f"docs/reference/{name} is stale; run: make reference"


def test_no_page_is_left_of_something_that_is_gone() -> None:
    assert {path.name for path in program.FOLDER.iterdir()} == set(program.PAGES)


def test_a_stale_page_is_found_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(program, "FOLDER", tmp_path)
    monkeypatch.setattr(program, "PAGES", {"EVENTS.md": events.write})
    assert program.main(["--check"]) == 1
    assert "EVENTS.md is stale; run: make reference" in capsys.readouterr().err
    assert program.main([]) == 0
    assert program.main(["--check"]) == 0
    (tmp_path / "EVENTS.md").write_text("old")
    assert program.main(["--check"]) == 1


def test_the_width_of_the_terminal_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = command_line.write()
    monkeypatch.setenv("COLUMNS", "40")
    assert command_line.write() == shown


def test_every_command_has_a_section() -> None:
    headings = re.findall(r"^#{2,4} `(aios[^`]*)`$", command_line.write(), re.MULTILINE)
    assert headings == [listed.words for listed in command_line.all_commands()]
    assert len(headings) == len(set(headings)) > 50


def test_every_option_that_sets_a_key_says_which() -> None:
    page = command_line.write()
    for key, options in command_line.options_by_key().items():
        assert keys.find(keys.split(key)) is not None
        assert f"Sets [`{key}`](CONFIGURATION.md#{key})" in page
        assert options
    assert len(command_line.options_by_key()) > 20


def test_every_key_has_a_row_with_its_variable_and_the_source_of_its_default() -> None:
    page = settings.write()
    for found in explain_all(load_config(env={})):
        assert found.default_source, found.key
        if not found.key.startswith("recipes."):
            variable = "AIOS_" + found.key.replace(".", "__").upper()
            name = found.key.rpartition(".")[2]
            row = next(line for line in page.splitlines() if f'<a id="{found.key}"></a>' in line)
            assert f"</a>`{name}` | " in row
            assert f"`{variable}` | " in row


def test_every_field_of_an_event_is_described() -> None:
    for kind in events.kinds():
        fields = [field.name for field in dataclasses.fields(kind)]
        assert list(events.described(kind)) == fields, kind.__name__


def test_every_variable_that_the_program_reads_is_named() -> None:
    found = {
        node.value
        for path in (ROOT / "src").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and READ_FROM_OUTSIDE.fullmatch(node.value)
    }
    assert found - SET_BY_THE_PROGRAM == set(settings.OTHER_VARIABLES)


def test_words_of_help_texts_are_safe_in_markdown() -> None:
    assert prose("a_b *c* `x_y` <d> [e] f|g") == r"a\_b \*c\* `x_y` \<d> \[e\] f\|g"
    assert prose("Say --dry-run, or --set a.b=0.5.") == "Say `--dry-run`, or `--set a.b=0.5`."
    assert prose("see experiments/a_b.md.") == "see `experiments/a_b.md`."
    assert prose("``x``\n    and more") == "`x` and more"


def test_values_are_shown_as_they_are_written() -> None:
    assert [value(each) for each in (None, True, 0, 0.0001, "auto", "", [], ["a", "b"])] == [
        "`null`",
        "`true`",
        "`0`",
        "`0.0001`",
        "`auto`",
        "empty",
        "empty",
        "`a`, `b`",
    ]
    assert value("two\nlines") == r"`two\nlines`".replace("two", '"two').replace("lines", 'lines"')


def test_a_table_without_rows_is_left_out() -> None:
    assert table(("a",), []) == ""
