"""``aios examples``: what ships with the program, listed and copied."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

import aios
from aios.app.data import examples
from aios.app.data.examples import EXAMPLES, list_examples
from aios.cli.aios import run

Capture = pytest.CaptureFixture[str]


def copied(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def originals() -> dict[str, bytes]:
    return {one.name: one.path.read_bytes() for one in list_examples()}


def test_the_examples_are_listed_with_where_they_are(capsys: Capture) -> None:
    assert run(["examples", "list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["examples"]
    assert [one["name"] for one in listed] == list(EXAMPLES)
    assert all(Path(one["path"]).is_file() for one in listed)
    assert run(["examples", "list"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in EXAMPLES)
    assert f"in {Path(listed[0]['path']).parent}\n" in shown


def test_they_are_copied_to_where_the_documentation_names_them(capsys: Capture) -> None:
    assert run(["examples", "copy"]) == 0
    said = capsys.readouterr()
    assert said.out == "examples: 4 written\n"
    assert "aios seal preview --input examples/passages.jsonl" in said.err
    assert copied(Path("examples")) == originals()
    line = ["seal", "preview", "--input", "examples/passages.jsonl", "--num-samples", "1"]
    assert run([*line, "--model", "scripted", "--quiet"]) == 0


def test_a_second_copy_changes_nothing(capsys: Capture) -> None:
    assert run(["examples", "copy", "a/b", "--json"]) == 0
    before = os.stat("a/b/passages.jsonl").st_mtime_ns
    capsys.readouterr()
    assert run(["examples", "copy", "a/b", "--json"]) == 0
    done = json.loads(capsys.readouterr().out)
    assert done == {"folder": "a/b", "files": dict.fromkeys(EXAMPLES, "unchanged")}
    assert os.stat("a/b/passages.jsonl").st_mtime_ns == before


def test_a_file_of_the_users_is_replaced_only_where_asked(capsys: Capture) -> None:
    Path("mine").mkdir()
    Path("mine/demo.yaml").write_text("seed: 5\n", encoding="utf-8")
    assert run(["examples", "copy", "mine"]) == 2
    said = capsys.readouterr().err
    assert "demo.yaml" in said
    assert "--replace" in said
    assert copied(Path("mine")) == {"demo.yaml": b"seed: 5\n"}
    assert run(["examples", "copy", "mine", "--replace", "--quiet"]) == 0
    assert capsys.readouterr() == ("mine: 3 written, 1 replaced\n", "")
    assert copied(Path("mine")) == originals()


def test_a_file_in_the_folders_place_is_refused(capsys: Capture) -> None:
    Path("taken").write_text("", encoding="utf-8")
    assert run(["examples", "copy", "taken"]) == 2
    assert "taken" in capsys.readouterr().err


def test_packaged_examples_come_before_those_of_a_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site-packages" / "aios"
    (package / "_examples").mkdir(parents=True)
    (package / "_examples" / "passages.jsonl").write_text("{}\n", encoding="utf-8")
    monkeypatch.setattr(aios, "__file__", str(package / "__init__.py"))
    assert [one.path for one in examples.list_examples()] == [
        package / "_examples" / "passages.jsonl"
    ]


def test_an_installation_without_them_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr(aios, "__file__", str(tmp_path / "a" / "b" / "aios" / "__init__.py"))
    assert run(["examples", "copy"]) == 1
    assert "Install the package again" in capsys.readouterr().err
    assert not Path("examples").exists()
