"""Trees, switches, counters and the trash of experts."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aios.core.errors import (
    ExpertExistsError,
    FrozenExpertError,
    StorageError,
    UnknownExpertError,
    UsageError,
)
from aios.core.types import Expert
from aios.storage import expert_trash
from aios.storage.expert_trash import ExpertTrash
from aios.storage.experts import FileExpertStore, fold_counters


@pytest.fixture
def store(tmp_path: Path) -> FileExpertStore:
    return FileExpertStore(tmp_path / "experts", "tiny")


@pytest.fixture
def trash(store: FileExpertStore) -> ExpertTrash:
    return ExpertTrash(store)


def add(store: FileExpertStore, *names: str, **changes: Any) -> None:
    """Experts with folders of a file each."""
    for name in names:
        store.save(Expert(name, name.title(), **changes))
        store.folder(name).mkdir(parents=True)
        (store.folder(name) / "README.md").write_text(f"# {name}")


def links(store: FileExpertStore) -> dict[str, tuple[str | None, tuple[str, ...]]]:
    return {e.expert_id: (e.parent_expert_id, e.child_expert_ids) for e in store.list()}


def entry(store: FileExpertStore, expert_id: str) -> dict[str, Any]:
    """The expert as it stands in the file, as a program of someone else reads it."""
    registry = json.loads((store.root / "registry.json").read_text())
    (found,) = [one for one in registry["experts"] if one["expert_id"] == expert_id]
    return dict(found)


def annotate(store: FileExpertStore, expert_id: str, **keys: Any) -> None:
    """Adds keys that we do not know, as another program would."""
    registry = json.loads((store.root / "registry.json").read_text())
    for one in registry["experts"]:
        if one["expert_id"] == expert_id:
            one.update(keys)
    (store.root / "registry.json").write_text(json.dumps(registry))


# ------------------------------------------------------------ changes


def test_an_update_sees_the_expert_as_it_is_now(store: FileExpertStore) -> None:
    add(store, "a")
    annotate(store, "a", theirs=[1])
    made = store.update("a", lambda e: replace(e, total_activations=e.total_activations + 1))
    assert made.total_activations == 1
    assert store.get("a") == made
    assert entry(store, "a")["theirs"] == [1]


def test_an_unknown_expert_comes_with_the_closest_ids(store: FileExpertStore) -> None:
    add(store, "harbours", "mills")
    with pytest.raises(UnknownExpertError, match="there is no expert 'harbour'") as caught:
        store.update("harbour", lambda expert: expert)
    assert caught.value.remedy == "did you mean harbours?"
    with pytest.raises(UnknownExpertError) as caught:
        store.require("xyz")
    assert caught.value.remedy == "known: harbours, mills"


def test_an_expert_cannot_be_changed_into_another(store: FileExpertStore) -> None:
    add(store, "a")
    for call in (store.update, store.put):
        with pytest.raises(UsageError, match="cannot become"):
            call("a", lambda expert: Expert("b", "B"))
    assert [e.expert_id for e in store.list()] == ["a"]


def test_a_change_that_fails_or_changes_nothing_writes_nothing(store: FileExpertStore) -> None:
    add(store, "a")
    before = store.path.stat().st_mtime_ns
    with pytest.raises(ZeroDivisionError), store.change() as open_registry:
        open_registry.put(Expert("b", "B"))
        raise ZeroDivisionError
    store.update("a", lambda expert: expert)
    assert store.path.stat().st_mtime_ns == before
    assert [e.expert_id for e in store.list()] == ["a"]


_ADDER = """
import sys
from dataclasses import replace
from pathlib import Path
from aios.storage.experts import FileExpertStore
store = FileExpertStore(Path(sys.argv[1]), "tiny")
for _ in range(25):
    store.update("a", lambda e: replace(e, total_activations=e.total_activations + 1))
"""


def test_updates_of_two_processes_at_once_all_count(store: FileExpertStore) -> None:
    add(store, "a")
    annotate(store, "a", theirs=1)
    command = [sys.executable, "-c", _ADDER, str(store.root)]
    processes = [subprocess.Popen(command) for _ in range(2)]
    assert [process.wait(60) for process in processes] == [0, 0]
    assert store.require("a").total_activations == 50
    assert entry(store, "a")["theirs"] == 1


def test_a_reader_of_the_format_sees_the_fields_it_knows(store: FileExpertStore) -> None:
    add(store, "all", "mills", goals=("Answer questions",))
    store.set_parent("mills", "all")
    store.set_active("mills", False)
    store.set_frozen("mills", True)
    fold_counters(store, {"mills": (12, 0.75)})
    mills = entry(store, "mills")
    assert (mills["expert_id"], mills["name"], mills["goals"]) == (
        "mills",
        "Mills",
        ["Answer questions"],
    )
    assert (mills["parent_expert_id"], entry(store, "all")["child_expert_ids"]) == (
        "all",
        ["mills"],
    )
    assert (mills["is_active"], mills["is_frozen"]) == (False, True)
    assert (mills["total_activations"], mills["avg_routing_weight"]) == (12, 0.75)


# ------------------------------------------------------------ counters


def test_counters_are_totals_and_written_once(
    store: FileExpertStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(store, "a", "b", "c")
    writes: list[Path] = []
    replace_file = os.replace

    def noted(source: Path, target: Path) -> None:
        writes.append(Path(target))
        replace_file(source, target)

    monkeypatch.setattr(os, "replace", noted)
    counters = {"a": (3, 0.5), "gone": (9, 1.0), "b": (1, 1)}
    assert fold_counters(store, counters) == ("gone",)
    assert [path.name for path in writes].count("registry.json") == 1
    found = {e.expert_id: (e.total_activations, e.avg_routing_weight) for e in store.list()}
    assert found == {"a": (3, 0.5), "b": (1, 1.0), "c": (0, 0.0)}
    writes.clear()
    fold_counters(store, counters)
    assert writes == []


@pytest.mark.parametrize("bad", [(-1, 0.5), (1, float("nan")), (1, float("inf"))])
def test_counters_that_are_none_are_refused(store: FileExpertStore, bad: Any) -> None:
    add(store, "a", "b")
    with pytest.raises(ValueError, match="no counters"):
        fold_counters(store, {"a": (5, 0.5), "b": bad})
    assert store.require("a").total_activations == 0


# ------------------------------------------------------------ trees


def test_a_parent_is_set_moved_and_cleared_on_both_sides(store: FileExpertStore) -> None:
    add(store, "all", "north", "mills")
    assert store.set_parent("mills", "all").parent_expert_id == "all"
    assert links(store) == {"all": (None, ("mills",)), "north": (None, ()), "mills": ("all", ())}
    store.set_parent("mills", "north")
    assert links(store) == {"all": (None, ()), "north": (None, ("mills",)), "mills": ("north", ())}
    store.set_parent("mills", "north")
    assert links(store)["north"] == (None, ("mills",))
    store.clear_parent("mills")
    assert set(links(store).values()) == {(None, ())}


def test_a_link_that_another_program_left_half_is_mended(store: FileExpertStore) -> None:
    add(store, "old", "new", "mills")
    store.update("old", lambda e: replace(e, child_expert_ids=("mills", "nobody")))
    store.set_parent("mills", "new")
    assert links(store) == {
        "old": (None, ("nobody",)),
        "new": (None, ("mills",)),
        "mills": ("new", ()),
    }


def test_no_expert_is_its_own_ancestor(store: FileExpertStore) -> None:
    add(store, "a", "b", "c")
    store.set_parent("b", "a")
    store.set_parent("c", "b")
    before = links(store)
    for child, parent in (("a", "a"), ("a", "b"), ("a", "c")):
        with pytest.raises(UsageError, match="cannot be the parent"):
            store.set_parent(child, parent)
    assert links(store) == before


def test_a_circle_that_another_program_wrote_hangs_nothing(store: FileExpertStore) -> None:
    add(store, "a", "b", "c")
    store.update("a", lambda e: replace(e, parent_expert_id="b", child_expert_ids=("b",)))
    store.update("b", lambda e: replace(e, parent_expert_id="a", child_expert_ids=("a",)))
    store.set_parent("c", "a")
    store.clear_parent("a")
    assert links(store)["a"] == (None, ("b", "c"))


@pytest.mark.parametrize(("child", "parent"), [("a", "none"), ("none", "a")])
def test_links_to_unknown_experts_are_refused(
    store: FileExpertStore, child: str, parent: str
) -> None:
    add(store, "a")
    with pytest.raises(UnknownExpertError):
        store.set_parent(child, parent)


def test_a_frozen_expert_keeps_its_parent_and_may_get_children(store: FileExpertStore) -> None:
    add(store, "all", "mills", "small")
    store.set_parent("mills", "all")
    store.set_frozen("mills", True)
    for call in (
        lambda: store.clear_parent("mills"),
        lambda: store.set_parent("mills", "small"),
        lambda: ExpertTrash(store).delete("all"),
        lambda: ExpertTrash(store).delete("mills"),
    ):
        with pytest.raises(FrozenExpertError, match="is frozen") as caught:
            call()
        assert "unfreeze" in caught.value.remedy
    store.set_parent("small", "mills")
    store.set_frozen("mills", False)
    assert store.clear_parent("mills").child_expert_ids == ("small",)


# ------------------------------------------------------------ the trash


def test_a_deleted_expert_comes_back_as_it_was(store: FileExpertStore, trash: ExpertTrash) -> None:
    add(store, "all", "mills", "small", goals=("g",))
    store.set_parent("mills", "all")
    store.set_parent("small", "mills")
    annotate(store, "mills", theirs={"x": 1})
    before, folder = store.list(), store.folder("mills")
    deleted = trash.delete("mills")
    assert not folder.exists()
    assert links(store) == {"all": (None, ()), "small": (None, ())}
    assert [(one.name, one.expert.expert_id) for one in trash.list()] == [(deleted.name, "mills")]
    assert deleted.bytes > 0
    assert deleted.name.startswith("mills-2")
    assert trash.restore("mills").goals == ("g",)
    assert sorted(store.list(), key=str) == sorted(before, key=str)
    assert (folder / "README.md").read_text() == "# mills"
    assert entry(store, "mills")["theirs"] == {"x": 1}
    assert trash.list() == ()
    assert list(trash.root.iterdir()) == []


def test_only_links_that_still_hold_come_back(store: FileExpertStore, trash: ExpertTrash) -> None:
    add(store, "all", "mills", "small", "tiny")
    store.set_parent("mills", "all")
    store.set_parent("small", "mills")
    store.set_parent("tiny", "mills")
    trash.delete("mills")
    store.set_parent("small", "tiny")  # has another parent now
    trash.delete("all")
    trash.restore("mills")
    assert links(store) == {
        "mills": (None, ("tiny",)),
        "small": ("tiny", ()),
        "tiny": ("mills", ("small",)),
    }
    trash.restore("all")
    assert links(store)["all"] == (None, ())  # it had lost its child before it went


def test_the_last_of_an_id_comes_back_or_the_one_that_is_named(
    store: FileExpertStore, trash: ExpertTrash
) -> None:
    add(store, "a", description="first")
    first = trash.delete("a")
    add(store, "a", description="second")
    second = trash.delete("a")
    assert first.name != second.name
    assert trash.restore("a").description == "second"
    with pytest.raises(ExpertExistsError, match="cannot be restored"):
        trash.restore(first.name)
    trash.delete("a")
    assert trash.restore(first.name).description == "first"


def test_what_was_never_deleted_cannot_be_restored(
    store: FileExpertStore, trash: ExpertTrash
) -> None:
    with pytest.raises(UnknownExpertError, match="in the trash"):
        trash.restore("a")
    add(store, "mills")
    trash.delete("mills")
    with pytest.raises(UnknownExpertError) as caught:
        trash.restore("mill")
    assert caught.value.remedy == "did you mean mills?"


def test_an_expert_without_a_folder_can_be_deleted_and_restored(
    store: FileExpertStore, trash: ExpertTrash
) -> None:
    store.save(Expert("a", "A"))
    trash.delete("a")
    trash.restore("a")
    assert store.get("a") == Expert("a", "A")
    assert not store.folder("a").exists()


def test_purging_is_for_good(store: FileExpertStore, trash: ExpertTrash) -> None:
    add(store, "a", "b")
    names = (trash.delete("a").name, trash.delete("b").name)
    assert trash.purge("a") == names[:1]
    assert trash.purge() == names[1:]
    with pytest.raises(UnknownExpertError):
        trash.restore("b")
    assert list(trash.root.iterdir()) == []


def test_a_damaged_entry_is_named(store: FileExpertStore, trash: ExpertTrash) -> None:
    add(store, "a")
    folder = trash.delete("a").folder
    (folder / "deleted.json").write_text('{"entry": {}}')
    with pytest.raises(StorageError, match=r"deleted\.json is corrupt"):
        trash.list()


def test_a_folder_that_leads_out_of_the_store_is_not_moved(
    store: FileExpertStore, trash: ExpertTrash, tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("mine")
    store.save(Expert("a", "A"))
    store.folder("a").symlink_to(tmp_path / "mine")
    with pytest.raises(UsageError, match="leads out of"):
        trash.delete("a")
    assert (tmp_path / "mine" / "file").exists()


class Killed(BaseException):
    """What ends the work at a point of it, as a kill would."""


def kill_at(monkeypatch: pytest.MonkeyPatch, call: int, *names: str) -> None:
    """Kills before the so-manieth of all renames and replacements, counted from 0."""
    left = call

    def killing(name: str) -> Callable[..., None]:
        real = getattr(os, name)

        def maybe(*arguments: Any) -> None:
            nonlocal left
            if left == 0:
                raise Killed
            left -= 1
            real(*arguments)

        return maybe

    for name in names:
        monkeypatch.setattr(os, name, killing(name))


@pytest.mark.parametrize("call", range(6))
def test_a_deletion_cut_short_anywhere_is_all_or_nothing(
    store: FileExpertStore, trash: ExpertTrash, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    add(store, "all", "mills", "other")
    store.set_parent("mills", "all")
    with monkeypatch.context() as patch:
        kill_at(patch, call, "replace", "rename")
        try:
            trash.delete("mills")
            finished = True
        except Killed:
            finished = False
    assert finished == (call > 4)
    gone = store.get("mills") is None
    trash.delete("other")  # the next one finishes the work
    if gone:
        assert links(store)["all"] == (None, ())
        trash.restore("mills")
    assert links(store) == {"all": (None, ("mills",)), "mills": ("all", ())}
    assert (store.folder("mills") / "README.md").is_file()
    assert [one.expert.expert_id for one in trash.list()] == ["other"]


@pytest.mark.parametrize("call", range(5))
def test_a_restoration_cut_short_anywhere_goes_on(
    store: FileExpertStore, trash: ExpertTrash, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    add(store, "all", "mills", "other")
    store.set_parent("mills", "all")
    trash.delete("mills")
    with monkeypatch.context() as patch:
        kill_at(patch, call, "replace", "rename")
        try:
            trash.restore("mills")
        except Killed:
            assert call < 4
    trash.delete("other")
    if store.get("mills") is None:
        trash.restore("mills")
    assert links(store) == {"all": (None, ("mills",)), "mills": ("all", ())}
    assert (store.folder("mills") / "README.md").is_file()
    assert [one.expert.expert_id for one in trash.list()] == ["other"]


def test_an_id_that_was_taken_meanwhile_is_not_overwritten(
    store: FileExpertStore, trash: ExpertTrash, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(store, "mills", "other", description="old")
    trash.delete("mills")
    with monkeypatch.context() as patch:
        kill_at(patch, 1, "replace", "rename")
        with pytest.raises(Killed):
            trash.restore("mills")
    add(store, "mills", description="new")
    trash.delete("other")
    assert store.require("mills").description == "new"
    assert [one.expert.description for one in trash.list()] == ["old", "old"]


def test_a_full_disk_keeps_the_expert(
    store: FileExpertStore, trash: ExpertTrash, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(store, "mills")

    def full(path: Path, value: object) -> None:
        raise StorageError(f"cannot write {path}: disk full")

    with monkeypatch.context() as patch:
        patch.setattr(expert_trash, "atomic_write_json", full)
        with pytest.raises(StorageError, match="disk full"):
            trash.delete("mills")
    assert store.get("mills") is not None
    assert store.folder("mills").is_dir()
    trash.delete("mills")
    assert [one.expert.expert_id for one in trash.list()] == ["mills"]


def test_a_folder_that_cannot_be_moved_is_moved_by_the_next_deletion(
    store: FileExpertStore, trash: ExpertTrash, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(store, "mills", "other")

    def refuse(*_: object) -> None:
        raise OSError(errno.EACCES, "no")

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", refuse)
        with pytest.raises(StorageError, match="no write access"):
            trash.delete("mills")
    assert store.get("mills") is None
    trash.delete("other")
    assert not store.folder("mills").exists()
    assert trash.restore("mills").name == "Mills"
