"""``aios seal strategies``, and strategies in the options of other commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from aios.cli.aios import run
from aios.core.seal.strategies import known_strategies

Capture = pytest.CaptureFixture[str]


def test_every_strategy_is_listed_once_with_what_it_makes(capsys: Capture) -> None:
    assert run(["seal", "strategies", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["strategies"]
    assert [row["name"] for row in rows] == list(known_strategies())
    descriptions = [row["description"] for row in rows]
    assert len(set(descriptions)) == len(descriptions)
    for row in rows:
        assert row["description"].endswith(".")
        assert "`" not in row["description"]
        assert (row["source"], row["problem"]) == ("built in", "")


def test_the_recipes_that_use_a_strategy_are_named(capsys: Capture) -> None:
    assert run(["seal", "strategies", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["strategies"]}
    assert rows["cloze"]["recipes"] == ["smollm2-135m-instruct"]
    assert rows["implications"]["recipes"] == ["default"]
    assert rows["rewrite"]["recipes"] == []
    mixed = ["--set", "recipes.default.strategy=rewrite:2,cloze:3"]
    assert run(["seal", "strategies", "--json", *mixed]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["strategies"]}
    assert rows["rewrite"]["recipes"] == ["default"]
    assert rows["cloze"]["recipes"] == ["default", "smollm2-135m-instruct"]


def test_the_meaning_of_auto_is_told(capsys: Capture) -> None:
    assert run(["seal", "strategies"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("auto is cloze for smollm2-135m-instruct, by recipes.smollm2-135m-")
    assert run(["seal", "strategies", "--json", "--set", "model.name=other"]) == 0
    auto = json.loads(capsys.readouterr().out)["auto"]
    assert (auto["model"], auto["strategy"], auto["recipe"]) == ("other", "implications", "default")


def test_prompts_of_the_users_own_are_listed_with_their_file(
    tmp_path: Path, capsys: Capture
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "facts: {template: 'List {passage}'}\nrewrite: {template: '{passage}', parser: rewrite}\n",
        encoding="utf-8",
    )
    assert run(["seal", "strategies", "--json", "--set", f"seal.prompts_file={file}"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["strategies"]}
    assert rows["facts"]["source"] == f"prompts file {file}"
    assert rows["facts"]["description"] == "Your prompt, read as a list, one training text each."
    assert rows["rewrite"]["description"] == "Your prompt, read as rewrites."
    assert rows["self-qa"]["source"] == "built in"


def test_a_prompts_file_that_cannot_be_read_is_wrong_usage(capsys: Capture) -> None:
    assert run(["seal", "strategies", "--set", "seal.prompts_file=none.yaml"]) == 2
    assert "none.yaml: cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "strategy", "number"),
    [
        (["--strategy", "rewrite:2,self-qa:2"], "rewrite:2,self-qa:2", None),
        (["--strategy", "rewrite:2, self-qa:2", "--num-edits", "4"], "rewrite:2, self-qa:2", 4),
    ],
)
def test_a_mix_reaches_the_app(
    flags: list[str], strategy: str, number: int | None, app: Any, passages: Path
) -> None:
    assert run(["seal", "preview", "--input", str(passages), *flags]) == 0
    assert app.config.seal.strategy == strategy
    assert app.config.seal.num_edits_per_passage == number


@pytest.mark.parametrize(
    "command",
    [
        ["seal", "preview", "--input", "passages.txt", "--strategy"],
        ["seal", "generate", "--input", "passages.txt", "--output", "o.jsonl", "--strategy"],
        ["hrm-hf", "train-expert", "--expert-id=e", "--dataset=passages.txt", "--seal-strategy"],
    ],
)
@pytest.mark.parametrize(
    ("mix", "more", "said"),
    [
        ("rewrite:2,self-qa:2", ["--num-edits", "3"], "leave out num_edits_per_passage (--num-ed"),
        ("rewrite:2,self-qa", [], "write rewrite:2,self-qa:1"),
    ],
)
@pytest.mark.usefixtures("passages")
def test_a_mix_that_contradicts_is_wrong_usage(
    command: list[str], mix: str, more: list[str], said: str, app: Any, capsys: Capture
) -> None:
    assert run([*command, mix, *more]) == 2
    assert said in capsys.readouterr().err
    assert app.calls == []


def test_a_number_from_the_environment_gives_way_to_a_mix_with_a_note(
    app: Any, passages: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setenv("AIOS_SEAL__NUM_EDITS_PER_PASSAGE", "7")
    mix = ["--strategy", "rewrite:2,self-qa:2"]
    assert run(["seal", "preview", "--input", str(passages), *mix]) == 0
    assert app.config.seal.num_edits_per_passage is None
    assert "is not used: rewrite:2,self-qa:2 makes 4" in capsys.readouterr().err


def test_the_settings_show_the_number_that_a_mix_makes(capsys: Capture) -> None:
    mixed = ["--set", "seal.strategy=rewrite:2,self-qa:2"]
    assert run(["config", "show", "seal.num_edits_per_passage", *mixed]) == 0
    assert "in force: 4, from the mix" in capsys.readouterr().out
    assert run(["config", "explain", "seal.num_edits_per_passage", *mixed]) == 0
    assert "null, which is 4 by the mix" in capsys.readouterr().out
