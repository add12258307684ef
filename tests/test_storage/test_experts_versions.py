"""Versions of experts: what is replaced is kept, and comes back as a new version."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aios.core.errors import FrozenExpertError, StorageError, UnknownExpertError, UsageError
from aios.core.types import Expert
from aios.storage.expert_trash import ExpertTrash
from aios.storage.expert_versions import ExpertVersions
from aios.storage.experts import FileExpertStore
from tests.expert_cards import write_card


@pytest.fixture
def store(tmp_path: Path) -> FileExpertStore:
    return FileExpertStore(tmp_path / "experts", "tiny")


@pytest.fixture
def versions(store: FileExpertStore) -> ExpertVersions:
    return ExpertVersions(store)


def weights(text: str) -> Callable[[Path], None]:
    """Fills a version's folder with "weights"."""

    def fill(folder: Path) -> None:
        (folder / "adapter_model.safetensors").write_text(text)
        (folder / "README.md").write_text(f"# {text}")

    return fill


def train(versions: ExpertVersions, text: str, **options: Any) -> Expert:
    """Installs a version of ``mills``, as a training would."""

    def make(before: Expert | None) -> Expert:
        expert = before or Expert("mills", "Mills")
        return replace(expert, last_trained=text, performance_metrics={"loss": len(text)})

    card = {"adapter_digest": f"digest of {text}", "notes": text}
    return versions.install("mills", weights(text), make, card=card, **options)


def listed(versions: ExpertVersions) -> list[tuple[int, str, bool]]:
    return [
        (one.number, (one.folder / "adapter_model.safetensors").read_text(), one.current)
        for one in versions.list("mills")
    ]


def card(store: FileExpertStore) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((store.folder("mills") / "expert.json").read_text())
    return content


def test_a_first_training_has_no_older_version(
    store: FileExpertStore, versions: ExpertVersions
) -> None:
    expert = train(versions, "one")
    assert store.get("mills") == expert
    assert listed(versions) == [(1, "one", True)]
    assert (card(store)["version"], card(store)["notes"]) == (1, "one")
    assert (card(store)["expert_id"], card(store)["base_model"]) == ("mills", "tiny")
    names = {path.name for path in store.folder("mills").iterdir()}
    assert names == {"adapter_model.safetensors", "README.md", "expert.json"}
    assert not (store.root / ".versions").exists()


def test_each_training_keeps_what_it_replaces(
    store: FileExpertStore, versions: ExpertVersions
) -> None:
    for text in ("one", "two!", "three"):
        train(versions, text)
        (store.folder("mills") / f"note-{text}.txt").write_text("mine")
    assert listed(versions) == [(1, "one", False), (2, "two!", False), (3, "three", True)]
    first, second, third = versions.list("mills")
    assert (first.trained, second.trained, third.trained) == ("one", "two!", "three")
    assert (first.adapter_digest, first.metrics) == ("digest of one", {"loss": 3})
    assert (first.folder / "note-one.txt").read_text() == "mine"
    assert first.kept_at.endswith("+00:00")
    assert third.kept_at == ""
    names = {path.name for path in store.root.iterdir() if not path.name.startswith(".")}
    assert names == {"mills", "registry.json", "registry.json.bak"}


def test_keys_of_others_in_the_card_survive_a_training(
    store: FileExpertStore, versions: ExpertVersions
) -> None:
    train(versions, "one")
    write_card(store, "mills", {"theirs": 1})
    train(versions, "two")
    assert (card(store)["theirs"], card(store)["notes"]) == (1, "two")


def test_a_rollback_is_a_new_version_and_loses_nothing(
    store: FileExpertStore, versions: ExpertVersions
) -> None:
    for text in ("one", "two!", "three"):
        train(versions, text)
    write_card(store, "mills", {"only": "of three"})
    store.update("mills", lambda e: replace(e, goals=("g",), is_active=False))
    expert = versions.rollback("mills")
    assert (expert.last_trained, expert.performance_metrics) == ("two!", {"loss": 4})
    assert (expert.goals, expert.is_active) == (("g",), False)
    assert store.get("mills") == expert
    assert listed(versions) == [
        (1, "one", False),
        (2, "two!", False),
        (3, "three", False),
        (4, "two!", True),
    ]
    assert (card(store)["adapter_digest"], card(store)["version"]) == ("digest of two!", 4)
    assert (card(store)["notes"], card(store)["goals"]) == ("two!", ["g"])
    assert "only" not in card(store)
    assert versions.list("mills")[-1].rolled_back_to == 2
    assert versions.rollback("mills", to=1).last_trained == "one"
    assert versions.list("mills")[-1].number == 5
    train(versions, "six")
    assert versions.list("mills")[-1].rolled_back_to is None
    assert not (store.folder("mills") / "version.json").exists()


@pytest.mark.parametrize("number", [0, 2, 7, -1])
def test_a_version_that_is_not_there_is_refused(versions: ExpertVersions, number: int) -> None:
    train(versions, "one")
    train(versions, "two")
    with pytest.raises(UsageError, match="has no older version") as caught:
        versions.rollback("mills", to=number)
    assert "older versions: 1;" in caught.value.remedy


def test_there_is_nothing_to_roll_back_to_after_one_training(versions: ExpertVersions) -> None:
    train(versions, "one")
    with pytest.raises(UsageError, match="has no older version"):
        versions.rollback("mills")
    with pytest.raises(UnknownExpertError):
        versions.rollback("mill")


def test_a_frozen_expert_is_neither_replaced_nor_rolled_back(
    store: FileExpertStore, versions: ExpertVersions
) -> None:
    train(versions, "one")
    train(versions, "two")
    store.set_frozen("mills", True)
    for call in (lambda: versions.rollback("mills"), lambda: train(versions, "three")):
        with pytest.raises(FrozenExpertError):
            call()
    assert [text for _, text, _ in listed(versions)] == ["one", "two"]


def test_the_same_training_published_again_keeps_no_version(versions: ExpertVersions) -> None:
    train(versions, "one")
    train(versions, "one", replaces_equal=True)
    assert listed(versions) == [(1, "one", True)]
    train(versions, "two", replaces_equal=True)
    assert listed(versions) == [(1, "one", False), (2, "two", True)]
    train(versions, "two")
    assert len(listed(versions)) == 3


def test_versions_that_are_dropped_are_gone_and_their_numbers_with_them(
    versions: ExpertVersions,
) -> None:
    for text in ("one", "two", "three"):
        train(versions, text)
    versions.drop("mills", (1, 2, 9))
    assert listed(versions) == [(3, "three", True)]
    train(versions, "four")
    assert listed(versions) == [(3, "three", False), (4, "four", True)]


def test_versions_go_to_the_trash_and_come_back(
    store: FileExpertStore, versions: ExpertVersions
) -> None:
    train(versions, "one")
    train(versions, "two")
    ExpertTrash(store).delete("mills")
    assert not (store.root / ".versions" / "mills").exists()
    with pytest.raises(UnknownExpertError):
        versions.list("mills")
    ExpertTrash(store).restore("mills")
    assert listed(versions) == [(1, "one", False), (2, "two", True)]


def test_what_lies_among_the_versions_by_chance_is_left_alone(
    store: FileExpertStore, versions: ExpertVersions
) -> None:
    train(versions, "one")
    train(versions, "two")
    (versions.folder("mills") / "notes").mkdir()
    (store.folder("mills") / "link").symlink_to("/etc/passwd")
    train(versions, "three")
    assert [number for number, *_ in listed(versions)] == [1, 2, 3]
    assert not (versions.folder("mills") / "2" / "link").exists()


def test_a_damaged_version_is_named(store: FileExpertStore, versions: ExpertVersions) -> None:
    train(versions, "one")
    train(versions, "two")
    record = versions.folder("mills") / "1" / "version.json"
    record.write_text(json.dumps({"record": {"name": 7}}))
    with pytest.raises(StorageError, match=r"version\.json is corrupt"):
        versions.rollback("mills")
    record.unlink()  # its card says enough
    assert versions.rollback("mills").last_trained == "one"


class Killed(BaseException):
    """What ends the work at a point of it, as a kill would."""


@pytest.mark.parametrize("call", range(12))
def test_a_training_killed_while_it_is_published_leaves_one_version_in_place(
    store: FileExpertStore, versions: ExpertVersions, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    train(versions, "one")
    left = call

    def killing(real: Callable[..., None]) -> Callable[..., None]:
        def maybe(*arguments: Any) -> None:
            nonlocal left
            if left == 0:
                raise Killed
            left -= 1
            real(*arguments)

        return maybe

    with monkeypatch.context() as patch:
        for name in ("replace", "rename"):
            patch.setattr(os, name, killing(getattr(os, name)))
        try:
            train(versions, "two")
        except Killed:
            assert call < 9
    train(versions, "two", replaces_equal=True)
    texts = [text for _, text, _ in listed(versions)]
    assert texts in (["one", "two"], ["one", "one", "two"])
    assert store.require("mills").last_trained == "two"
