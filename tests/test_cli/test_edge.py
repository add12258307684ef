"""The program's edge: help, versions, and errors as messages, documents and exit codes."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import click
import pytest

from aios.cli.aios import _report_bug, cli, run
from aios.cli.lazy import LazyGroup
from aios.core.errors import (
    AIOSError,
    ConfigError,
    DataError,
    ExpertExistsError,
    ModelError,
    OutOfMemoryError,
    StorageError,
)

Capture = pytest.CaptureFixture[str]
PROGRAM = [sys.executable, "-m", "aios"]


def walk(group: click.Command, path: str = "aios") -> Iterator[tuple[str, click.Command]]:
    """All commands below a group, with what one types to reach them."""
    yield path, group
    if isinstance(group, click.Group):
        ctx = click.Context(group)
        for name in group.list_commands(ctx):
            command = group.get_command(ctx, name)
            assert command is not None
            yield from walk(command, f"{path} {name}")


COMMANDS = dict(walk(cli))


def raising(error: BaseException) -> Callable[[dict[str, Any]], None]:
    def during(kwargs: dict[str, Any]) -> None:
        raise error

    return during


def test_version_is_that_of_the_package(capsys: Capture) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"aios {metadata.version('aios')}\n"


@pytest.mark.parametrize("group", [[], ["seal"], ["seal", "cache"], ["models"]])
def test_a_group_without_a_command_shows_its_help_and_is_wrong_usage(
    group: list[str], capsys: Capture
) -> None:
    assert run(group) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "Commands:" in err


def test_a_mistyped_command_gets_the_close_one(capsys: Capture) -> None:
    assert run(["seal", "prevew"]) == 2
    err = capsys.readouterr().err
    assert "'prevew'; did you mean preview?" in err
    assert "→ see aios seal --help" in err


def test_an_unknown_command_gets_the_list(capsys: Capture) -> None:
    assert run(["zzz"]) == 2
    names = "seal, hrm-hf, experts, goals, chat, serve, web, models, config, runs, examples, doctor"
    assert f"the commands are: {names}, completion" in capsys.readouterr().err


def test_a_common_option_before_the_command_is_explained(capsys: Capture) -> None:
    assert run(["--quiet", "doctor"]) == 2
    assert "stands after the command" in capsys.readouterr().err


def test_a_missing_input_file_is_wrong_usage_before_any_work(app: Any, capsys: Capture) -> None:
    assert run(["seal", "generate", "--input", "nope.txt", "--output", "o.txt"]) == 2
    assert "'nope.txt' does not exist" in capsys.readouterr().err
    assert app.calls == []


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (DataError("in.txt: is empty", "give a file with passages"), 2),
        (ExpertExistsError("expert e1 exists", "add --overwrite"), 2),
        (ModelError("no such model", "aios models list"), 1),
        (StorageError("the disk is full", "free some space"), 1),
        (OutOfMemoryError("out of memory", "a smaller batch"), 1),
    ],
)
def test_an_error_is_two_lines_and_its_exit_code(
    error: AIOSError, code: int, app: Any, passages: Path, capsys: Capture
) -> None:
    app.during = raising(error)
    assert run(["seal", "preview", "--input", str(passages)]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"error: {error.message}\n  → {error.remedy}\n"


def test_json_errors_are_a_document_alone_on_stdout(
    app: Any, passages: Path, capsys: Capture
) -> None:
    app.during = raising(ModelError("no such model", "aios models list"))
    assert run(["seal", "preview", "--input", str(passages), "--json"]) == 1
    out, err = capsys.readouterr()
    assert json.loads(out) == {
        "error": {
            "type": "ModelError",
            "message": "no such model",
            "remedy": "aios models list",
        }
    }
    assert err == ""


def test_json_is_kept_for_lines_that_cannot_be_parsed(capsys: Capture) -> None:
    assert run(["seal", "preview", "--json", "--nope"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["type"] == "UsageError"


def test_config_errors_come_all_at_once(app: Any, passages: Path, capsys: Capture) -> None:
    line = ["seal", "preview", "--input", str(passages)]
    assert run([*line, "--set", "seal.temperature=9", "--set", "seal.top_p=0"]) == 2
    err = capsys.readouterr().err
    assert "seal.temperature" in err
    assert "seal.top_p" in err
    assert app.calls == []


def test_the_traceback_comes_with_debug_alone(app: Any, passages: Path, capsys: Capture) -> None:
    app.during = raising(ConfigError("bad"))
    line = ["seal", "preview", "--input", str(passages)]
    assert run(line) == 2
    assert "Traceback" not in capsys.readouterr().err
    assert run([*line, "--debug"]) == 2
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert err.endswith("error: bad\n")


def test_an_operating_system_error_is_a_message(app: Any, passages: Path, capsys: Capture) -> None:
    app.during = raising(PermissionError(13, "Permission denied", "/some/file"))
    assert run(["seal", "preview", "--input", str(passages)]) == 1
    assert "Permission denied: '/some/file'" in capsys.readouterr().err


def test_ctrl_c_outside_long_work_is_interrupted(app: Any, passages: Path, capsys: Capture) -> None:
    app.during = raising(KeyboardInterrupt())
    assert run(["seal", "preview", "--input", str(passages)]) == 130
    assert capsys.readouterr().err == "error: interrupted\n"


def test_a_bug_is_not_caught_but_reported_by_the_hook(
    app: Any, passages: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    app.during = raising(ZeroDivisionError("division by zero"))
    with pytest.raises(ZeroDivisionError) as caught:
        run(["seal", "preview", "--input", str(passages)])
    monkeypatch.setattr(sys, "argv", ["aios", "seal", "preview"])
    _report_bug(caught.type, caught.value, caught.tb)
    err = capsys.readouterr().err
    assert err.startswith("error: internal error: ZeroDivisionError: division by zero\n")
    assert "--debug" in err
    assert "Traceback" not in err


def test_a_bug_ends_the_process_with_1_and_no_traceback(tmp_path: Path) -> None:
    script = tmp_path / "buggy.py"
    script.write_text(
        "import aios.core.config.loader as loader\n"
        "def broken(**_): raise ZeroDivisionError('oh')\n"
        "loader.load_config = broken\n"
        "from aios.cli.aios import main\n"
        "main('config', 'show')\n",
        encoding="utf-8",
    )
    result = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "internal error: ZeroDivisionError: oh" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.skipif(os.name != "posix", reason="pipes")
def test_a_reader_that_leaves_ends_the_program_quietly() -> None:
    with subprocess.Popen(
        [*PROGRAM, "config", "schema"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        err = process.stderr.read()
    assert process.returncode == 0
    assert err == b""


def test_output_survives_a_terminal_that_only_knows_ascii() -> None:
    env = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    line = [*PROGRAM, "config", "show", "--json", "--set", "seal.domain=Zürich", "seal.domain"]
    result = subprocess.run(line, capture_output=True, env=env, check=True)
    assert json.loads(result.stdout)["value"] == "Zürich"


def test_every_short_help_is_the_same_in_the_table_and_at_the_command() -> None:
    for path, command in COMMANDS.items():
        if isinstance(command, LazyGroup):
            for name, entry in command.entries.items():
                found = COMMANDS[f"{path} {name}"].get_short_help_str(limit=100)
                assert found == entry.help, f"{path} {name}"


def test_every_command_has_an_example_that_its_parser_takes(
    passages: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("passages.md", "passages.jsonl", "edits.jsonl", "token.txt"):
        Path(name).write_text("x", encoding="utf-8")
    (Path("artifacts") / "runs" / "RUN").mkdir(parents=True)
    for path, command in COMMANDS.items():
        examples = getattr(command, "examples", ())
        assert isinstance(command, LazyGroup) or examples, path
        for line in examples:
            words = shlex.split(line.split(">")[0])
            depth = max(n for n in range(1, len(words) + 1) if " ".join(words[:n]) in COMMANDS)
            target = COMMANDS[" ".join(words[:depth])]
            target.make_context(line, words[depth:])


def test_every_command_but_groups_has_all_common_options() -> None:
    flags = {"--config", "--set", "--json", "--quiet", "--seed", "--debug", "--offline"}
    for path, command in COMMANDS.items():
        if not isinstance(command, LazyGroup):
            assert flags <= {name for param in command.params for name in param.opts}, path
