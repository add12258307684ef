"""``aios completion``, and what a shell is given to complete: commands, options, names."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.shell_completion import CompletionItem, ShellComplete

from aios.cli.aios import ENTRIES, cli, run
from aios.cli.completing import VARIABLE
from aios.core.config.keys import every_key
from aios.core.types import Expert
from aios.storage.expert_goals import GoalStore
from aios.storage.expert_trash import ExpertTrash
from aios.storage.experts import FileExpertStore
from aios.storage.runs import RunDirectory

Capture = pytest.CaptureFixture[str]
ARTIFACTS = Path("artifacts")


def completed(line: str) -> list[CompletionItem]:
    """What completes the last word of a line; it is empty after a space."""
    *words, last = line.split(" ")
    shell = ShellComplete(cli, {}, "aios", VARIABLE)
    return shell.get_completions([word for word in words if word], last)


def values(line: str) -> list[str]:
    return [item.value for item in completed(line)]


def expert_store(artifacts: Path = ARTIFACTS) -> FileExpertStore:
    return FileExpertStore(artifacts / "experts", "scripted")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_a_shell_asks_the_program(shell: str, capsys: Capture) -> None:
    assert run(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert f"{VARIABLE}={shell}_complete" in script
    assert run(["completion", shell, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"shell": shell, "script": script}


def test_an_unknown_shell_is_refused_with_those_there_are(capsys: Capture) -> None:
    assert run(["completion", "tcsh"]) == 2
    assert "'bash', 'zsh', 'fish'" in capsys.readouterr().err


def test_commands_complete_from_the_table_with_its_help(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(cli), "get_command", None)  # nothing is imported for their names
    assert {item.value: item.help for item in completed("")} == {
        name: entry.help for name, entry in ENTRIES.items()
    }
    assert values("e") == ["experts", "examples"]


def test_commands_of_a_group_and_options_complete() -> None:
    assert values("seal pre") == ["preview"]
    assert values("seal generate --strat") == ["--strategy"]
    assert values("completion ") == ["bash", "zsh", "fish"]


@pytest.mark.parametrize(
    "line",
    [
        "experts show ",
        "experts set-parent mills ",
        "experts list --parent ",
        "experts create new --parent ",
        "goals link-expert tides ",
        "hrm-hf train-expert --expert-id ",
    ],
)
def test_experts_complete(line: str) -> None:
    for name in ("mills", "places"):
        expert_store().save(Expert(name, name.title()))
    assert values(line) == ["mills", "places"]
    assert values(f"{line}m") == ["mills"]


def test_an_expert_comes_with_its_description_in_one_line() -> None:
    expert_store().save(Expert("mills", "The mills", description="Mills\nand  weirs"))
    assert [item.help for item in completed("experts show ")] == ["Mills and weirs"]


def test_what_others_wrote_cannot_steer_the_terminal() -> None:
    expert_store().save(Expert("tide", "Tide", description="a\x1b[2Jb\u202ec"))
    (item,) = completed("experts show t")
    assert item.help == "a\ufffd[2Jb\ufffdc"
    for name in ("restem-good", "restem-\x1b[2J"):
        RunDirectory.create(
            ARTIFACTS / "runs", "restem", run_id="given", config_yaml="", seed=0
        ).close()
        (ARTIFACTS / "runs" / "given").rename(ARTIFACTS / "runs" / name)
    assert values("seal restem status r") == ["restem-good"]


def test_who_answers_a_chat_completes() -> None:
    expert_store().save(Expert("mills", "The mills"))
    assert values("chat --expert ") == ["auto", "base", "mills"]


def test_experts_in_the_trash_complete_where_they_are_restored() -> None:
    store = expert_store()
    for name in ("mills", "places"):
        store.save(Expert(name, name))
    ExpertTrash(store).delete("mills")
    assert values("experts restore ") == ["mills"]
    assert values("experts show ") == ["places"]


def test_goals_complete() -> None:
    GoalStore(expert_store()).add("Answer about tides", "tides")
    assert [(item.value, item.help) for item in completed("goals remove ")] == [
        ("tides", "Answer about tides")
    ]
    assert values("experts list --goal t") == ["tides"]


def test_restem_runs_complete_and_no_others() -> None:
    for kind in ("restem", "generate"):
        RunDirectory.create(
            ARTIFACTS / "runs", kind, run_id=f"a-{kind}", config_yaml="", seed=0
        ).close()
    assert values("seal restem status ") == ["a-restem"]
    assert values("seal restem rewards --run-id a") == ["a-restem"]


def test_where_no_run_has_that_name_a_path_is_completed() -> None:
    assert [(item.value, item.type) for item in completed("seal restem status ./r")] == [
        ("./r", "file")
    ]


def test_strategies_complete_with_those_of_the_prompts_file() -> None:
    Path("prompts.yaml").write_text("my-own:\n  template: 'On: {passage}'\n", encoding="utf-8")
    known = values("seal generate --strategy ")
    assert known[:2] == ["auto", "implications"]
    assert "my-own" not in known
    assert values("seal generate --set seal.prompts_file=prompts.yaml --strategy my") == ["my-own"]


def test_models_complete_or_a_path_does() -> None:
    assert values("models show s") == ["smollm2-135m-instruct", "scripted"]
    assert [item.type for item in completed("seal generate --model ./mod")] == ["file"]


def test_settings_complete_sections_only_where_they_can_be_shown() -> None:
    settable = values("seal generate --set ")
    recipe = "recipes."
    assert {key.removesuffix("=") for key in settable if not key.startswith(recipe)} == {
        key.dotted for key in every_key() if not key.section and not key.dotted.startswith(recipe)
    }
    assert all(key.endswith("=") for key in settable)
    assert values("config show telem")[0] == "telemetry"
    assert "telemetry.trackers" in values("config explain telemetry.")


def test_experts_are_those_of_the_artifacts_in_force(monkeypatch: pytest.MonkeyPatch) -> None:
    for number, name in enumerate(("file", "given", "env", "set")):
        expert_store(Path(name)).save(Expert(f"e{number}-{name}", name))
    user_file = Path("home") / "aios" / "config.yaml"
    monkeypatch.setattr("aios.cli.options.user_config_file", lambda: user_file)
    user_file.parent.mkdir(parents=True)
    user_file.write_text("paths:\n  artifacts: file\n", encoding="utf-8")
    Path("given.yaml").write_text("paths:\n  artifacts: given\n", encoding="utf-8")
    assert values("experts show ") == ["e0-file"]
    assert values("experts show --config given.yaml ") == ["e1-given"]
    monkeypatch.setenv("AIOS_PATHS__ARTIFACTS", "env")
    assert values("experts show --config given.yaml ") == ["e2-env"]
    assert values("experts show --set paths.artifacts=set ") == ["e3-set"]


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("artifacts/experts/registry.json", "experts show "),
        ("artifacts/experts/goals.json", "goals remove "),
        ("artifacts/runs", "seal restem rewards --round 1 --run-id "),
        ("prompts.yaml", "seal generate --set seal.prompts_file=prompts.yaml --strategy "),
    ],
)
def test_what_is_damaged_completes_to_nothing(file: str, line: str, capsys: Capture) -> None:
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    Path(file).write_text("{ damaged", encoding="utf-8")
    found = completed(line)
    assert [item.value for item in found if item.type == "plain"] in ([], ["auto"])
    assert capsys.readouterr() == ("", "")


def test_completing_imports_neither_a_model_library_nor_the_models_of_the_config() -> None:
    expert_store().save(Expert("mills", "The mills"))
    lines = ("experts show ", "seal restem status ", "seal generate --strategy ", "config show ")
    code = f"{_COMPLETE}\nfor line in {lines}: complete(line)\n{_LOADED}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in json.loads(done.stdout)}
    assert loaded.isdisjoint({"torch", "transformers", "peft", "numpy", "pydantic", "rich"})


_COMPLETE = """
from click.shell_completion import ShellComplete
from aios.cli.aios import cli
def complete(line):
    *words, last = line.split(" ")
    assert ShellComplete(cli, {}, "aios", "_AIOS_COMPLETE").get_completions(words, last)
"""
_LOADED = "import json, sys; json.dump(sorted(sys.modules), sys.stdout)"


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_completes_with_the_script(tmp_path: Path) -> None:
    expert_store().save(Expert("mills", "The mills"))
    program = tmp_path / "aios"
    program.write_text(f"#!/bin/sh\nexec '{sys.executable}' -m aios \"$@\"\n", encoding="utf-8")
    program.chmod(0o755)
    line = (
        f"PATH='{tmp_path}':$PATH; source <(aios completion bash);"
        "COMP_WORDS=(aios experts show m); COMP_CWORD=3; _aios_completion aios;"
        'echo "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "--norc", "-c", line], capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("mills\n", "")
