"""Folders of generators: whole or absent, checked when read, and nobody's other files are lost."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aios.core.errors import AdapterMismatchError, StorageError, UsageError
from aios.core.files import MAX_JSON_BYTES
from aios.core.types import AdapterRef
from aios.storage import generators
from aios.storage.generators import read_card, read_generator, write_generator
from tests.generator_folders import CARD, scripted_adapter, scripted_generator

FILES = {"README.md", "adapter_config.json", "adapter_model.safetensors", "generator.json"}


@pytest.fixture(autouse=True)
def _quick_disk(quick_disk: None) -> None:
    pass


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    scripted_generator(tmp_path / "gen")
    return tmp_path / "gen"


def change_card(folder: Path, **changes: Any) -> None:
    path = folder / "generator.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}), encoding="utf-8")


def test_a_generator_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    trained = scripted_adapter(tmp_path / "training")
    card = replace(CARD, adapter_digest=trained.digest, base_digest=trained.base_digest)
    folder = tmp_path / "deep" / "gen"
    written = write_generator(folder, trained, card)
    assert written == AdapterRef(folder, trained.digest, trained.base_digest)
    assert {path.name for path in folder.iterdir()} == FILES
    assert read_generator(folder) == (written, card)
    assert read_card(folder) == card
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (folder / name).read_bytes() == (trained.path / name).read_bytes()


def test_the_readme_tells_people_and_the_hub_what_it_is(folder: Path) -> None:
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert text.startswith("---\nbase_model: scripted\nlibrary_name: peft\n")
    assert "| strategies | implications 25%, rewrite 75% |" in text
    assert "| reward | loss, against passage, margin 0.12 |" in text
    assert "| 1 | 40 | 9 | 7 | 0.1000 |\n| 2 | 40 | 15 | 8 |  |" in text


def test_a_generator_replaces_an_older_one(folder: Path) -> None:
    scripted_generator(folder, round=3)
    assert read_card(folder).round == 3
    assert {path.name for path in folder.iterdir()} == FILES


def test_a_folder_with_other_files_is_never_replaced(folder: Path) -> None:
    (folder / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match=r"thesis\.txt"):
        scripted_generator(folder)
    assert (folder / "thesis.txt").read_text() == "years of work"
    assert read_card(folder).round == CARD.round


def test_an_empty_folder_becomes_a_generator(tmp_path: Path) -> None:
    (tmp_path / "gen").mkdir()
    scripted_generator(tmp_path / "gen")
    read_generator(tmp_path / "gen")


def test_a_card_of_another_adapter_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(AdapterMismatchError, match="another adapter or base model"):
        scripted_generator(tmp_path / "gen", adapter_digest="c" * 64)
    with pytest.raises(AdapterMismatchError, match="another adapter or base model"):
        scripted_generator(tmp_path / "gen", base_digest="c" * 64)
    assert not (tmp_path / "gen").exists()


def test_a_card_that_could_not_be_read_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="strategies"):
        scripted_generator(tmp_path / "gen", strategies={})
    assert not (tmp_path / "gen").exists()


def test_an_adapter_that_has_changed_since_is_not_written(tmp_path: Path) -> None:
    trained = scripted_adapter(tmp_path / "training")
    card = replace(CARD, adapter_digest=trained.digest, base_digest=trained.base_digest)
    with (trained.path / "adapter_model.safetensors").open("ab") as file:
        file.write(b"x")
    with pytest.raises(StorageError, match="not the file that was trained"):
        write_generator(tmp_path / "gen", trained, card)
    assert not (tmp_path / "gen").exists()


def test_a_kill_while_it_is_written_leaves_the_older_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def killed(*args: object) -> None:
        raise Killed

    before = read_generator(folder)
    monkeypatch.setattr(generators, "render_generator_card", killed)
    with pytest.raises(Killed):
        scripted_generator(folder, round=9)
    assert read_generator(folder) == before


def test_a_generator_that_was_moved_aside_by_a_killed_process_is_found(folder: Path) -> None:
    folder.rename(folder.with_name(".gen.old"))
    assert read_card(folder).round == CARD.round


@pytest.mark.parametrize("kind", ["missing", "file", "empty", "expert"])
def test_what_is_no_generator_is_wrong_usage(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "gen"
    if kind == "file":
        folder.write_text("x")
    elif kind != "missing":
        folder.mkdir()
    if kind == "expert":
        (folder / "adapter_model.safetensors").write_bytes(b"x")
        (folder / "expert.json").write_text("{}")
    with pytest.raises(UsageError, match="is not a generator") as caught:
        read_generator(folder)
    assert "restem optimize" in caught.value.remedy


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 1}', '{"round": NaN}', "[" * 10**5])
def test_a_damaged_card_is_refused(folder: Path, text: str) -> None:
    (folder / "generator.json").write_text(text)
    with pytest.raises(StorageError):
        read_generator(folder)


def test_a_card_of_a_wrong_type_is_refused_with_its_file(folder: Path) -> None:
    change_card(folder, passages="many")
    with pytest.raises(StorageError, match=r"gen/generator\.json is not valid: passages"):
        read_card(folder)


def test_huge_files_are_not_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generators, "_MAX_WEIGHTS_BYTES", 10)
    with pytest.raises(StorageError, match="larger than"):
        read_generator(folder)
    monkeypatch.undo()
    with (folder / "generator.json").open("ab") as file:
        file.truncate(MAX_JSON_BYTES * 100)  # sparse
    with pytest.raises(StorageError, match="larger than"):
        read_generator(folder)


def test_weights_other_than_those_of_the_card_are_refused(folder: Path) -> None:
    weights = folder / "adapter_model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[:-1] + b"?")
    with pytest.raises(StorageError, match="not the file that generator"):
        read_generator(folder)
    weights.unlink()
    with pytest.raises(StorageError, match=r"(?i)no such file"):
        read_generator(folder)
    os.mkfifo(weights)
    with pytest.raises(StorageError, match="not a regular file"):
        read_generator(folder)


@pytest.mark.parametrize("name", sorted(FILES - {"README.md"}))
def test_a_symlink_out_of_the_folder_is_not_followed(
    folder: Path, tmp_path: Path, name: str
) -> None:
    outside = tmp_path / f"outside-{name}"
    (folder / name).rename(outside)
    (folder / name).symlink_to(outside)
    with pytest.raises(UsageError, match="leads out of"):
        read_generator(folder)


def test_the_folder_itself_may_be_a_symlink(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder)
    assert read_generator(tmp_path / "link")[1] == read_card(folder)
