from __future__ import annotations

import errno
import json
import os
import random
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aios.core.errors import StorageError, UsageError
from aios.core.protocols import ExpertStore
from aios.core.types import Expert
from aios.storage.experts import FileExpertStore

FULL = Expert(
    expert_id="botany",
    name="Botany",
    description="Knows plants",
    category="science",
    goals=("g1", "g2"),
    created_at="2026-01-01T00:00:00+00:00",
    last_trained="2026-01-02T00:00:00+00:00",
    training_datasets=("plants.jsonl",),
    performance_metrics={"loss": 2.5},
    total_activations=3,
    avg_routing_weight=0.5,
    is_active=False,
    is_frozen=True,
    parent_expert_id="science",
    child_expert_ids=("mosses",),
    model_architecture="tiny",
    checkpoint_path="botany",
    training_config={"rank": 8, "modules": ["q"]},
)


def store(root: Path) -> FileExpertStore:
    return FileExpertStore(root, "tiny")


def registry(root: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((root / "registry.json").read_text())
    return loaded


def test_it_is_an_expert_store(tmp_path: Path) -> None:
    assert isinstance(store(tmp_path), ExpertStore)


def test_an_empty_store_holds_nothing_and_makes_nothing(tmp_path: Path) -> None:
    assert store(tmp_path / "none").list() == ()
    assert store(tmp_path / "none").get("a") is None
    assert os.listdir(tmp_path) == []


def test_an_expert_comes_back_as_it_was(tmp_path: Path) -> None:
    store(tmp_path / "experts").save(FULL)
    assert store(tmp_path / "experts").get("botany") == FULL
    assert store(tmp_path / "experts").get("other") is None


def test_the_file_has_exactly_the_fields_of_the_format(tmp_path: Path) -> None:
    store(tmp_path).save(Expert("a", "A"))
    content = registry(tmp_path)
    assert list(content) == ["version", "created_at", "base_model", "experts"]
    assert content["base_model"] == "tiny"
    (entry,) = content["experts"]
    assert list(entry) == [
        *("expert_id", "name", "description", "category", "goals", "created_at", "last_trained"),
        *("training_datasets", "performance_metrics", "total_activations"),
        *("avg_routing_weight", "is_active", "is_frozen", "parent_expert_id"),
        *("child_expert_ids", "model_architecture", "checkpoint_path", "training_config"),
    ]


def test_experts_keep_the_order_in_which_they_were_added(tmp_path: Path) -> None:
    experts = store(tmp_path)
    for name in ("c", "a", "b"):
        experts.save(Expert(name, name))
    experts.save(Expert("a", "changed"))
    assert [(e.expert_id, e.name) for e in experts.list()] == [
        ("c", "c"),
        ("a", "changed"),
        ("b", "b"),
    ]


def test_keys_that_we_do_not_know_survive(tmp_path: Path) -> None:
    store(tmp_path).save(FULL)
    content = registry(tmp_path)
    content["routing"] = {"kind": "dense"}
    content["experts"][0]["mood"] = "sunny"
    (tmp_path / "registry.json").write_text(json.dumps(content))
    store(tmp_path).save(replace(FULL, name="New"))
    store(tmp_path).save(Expert("b", "B"))
    content = registry(tmp_path)
    assert content["routing"] == {"kind": "dense"}
    assert content["experts"][0]["mood"] == "sunny"
    assert content["experts"][0]["name"] == "New"


def test_a_registry_of_another_program_with_missing_and_null_fields_is_read(
    tmp_path: Path,
) -> None:
    entry = {"expert_id": "a", "last_trained": None, "total_activations": 4}
    (tmp_path / "registry.json").write_text(json.dumps({"experts": [entry]}))
    assert store(tmp_path).list() == (Expert("a", "a", total_activations=4),)


def corrupt_texts() -> list[str]:
    def entry(**changes: object) -> str:
        return json.dumps({"experts": [{"expert_id": "a", **changes}]})

    return [
        "",
        "{",
        "[]",
        '{"experts": {}}',
        '{"experts": [1]}',
        '{"experts": [{}]}',
        '{"experts": [{"expert_id": "a"}, {"expert_id": "a"}]}',
        '{"experts": [{"expert_id": "a", "avg_routing_weight": NaN}]}',
        entry(goals="g"),
        entry(goals=[1]),
        entry(name=3),
        entry(is_active="yes"),
        entry(total_activations=-1),
        entry(total_activations=True),
        entry(avg_routing_weight="much"),
        entry(performance_metrics=[]),
        entry(parent_expert_id=4),
    ]


@pytest.mark.parametrize("text", corrupt_texts())
def test_a_corrupt_registry_is_refused_and_never_overwritten(tmp_path: Path, text: str) -> None:
    path = tmp_path / "registry.json"
    path.write_text(text)
    for call in (store(tmp_path).list, lambda: store(tmp_path).save(FULL)):
        with pytest.raises(StorageError, match="is corrupt") as caught:
            call()
        assert "by hand" in caught.value.remedy
    assert path.read_text() == text


def test_the_last_good_registry_is_kept_and_named(tmp_path: Path) -> None:
    experts = store(tmp_path)
    experts.save(Expert("a", "A"))
    assert not (tmp_path / "registry.json.bak").exists()
    experts.save(Expert("b", "B"))
    (tmp_path / "registry.json").write_text("{")
    with pytest.raises(StorageError) as caught:
        experts.get("a")
    backup = tmp_path / "registry.json.bak"
    assert str(backup) in caught.value.remedy
    backup.replace(tmp_path / "registry.json")
    assert [e.expert_id for e in experts.list()] == ["a"]


def test_a_full_disk_leaves_the_old_registry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    experts = store(tmp_path)
    experts.save(FULL)
    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(StorageError, match="disk full"):
        experts.save(Expert("b", "B"))
    assert experts.list() == (FULL,)


def test_an_expert_with_a_score_that_is_not_a_number_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        store(tmp_path).save(replace(FULL, performance_metrics={"loss": float("nan")}))
    assert store(tmp_path).list() == ()


@pytest.mark.parametrize("bad", ["", "../x", "a/b", "/etc", "registry.json", "Registry.json.bak"])
def test_ids_that_lead_elsewhere_are_refused(tmp_path: Path, bad: str) -> None:
    experts = store(tmp_path)
    for call in (
        lambda: experts.folder(bad),
        lambda: experts.save(Expert(bad, "x")),
        lambda: experts.read_card(bad),
    ):
        with pytest.raises(UsageError, match="not a valid expert id"):
            call()
    assert os.listdir(tmp_path) == []


def test_a_folder_is_inside_the_store(tmp_path: Path) -> None:
    root = tmp_path / "experts"
    assert store(root).folder("a") == root / "a"
    root.mkdir()
    (root / "out").symlink_to(tmp_path)
    with pytest.raises(UsageError, match="leads out of"):
        store(root).folder("out")


def test_a_card_that_is_no_object_is_corrupt(tmp_path: Path) -> None:
    experts = store(tmp_path)
    assert experts.read_card("botany") == {}
    (tmp_path / "botany").mkdir()
    (tmp_path / "botany" / "expert.json").write_text("[]")
    with pytest.raises(StorageError, match="is corrupt"):
        experts.read_card("botany")


_SAVER = """
import sys
from pathlib import Path
from aios.core.types import Expert
from aios.storage.experts import FileExpertStore
root, name, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
store = FileExpertStore(root, "tiny")
print("ready", flush=True)
for i in range(count):
    store.save(Expert(f"{name}{i % 20}", str(i), description="x" * 5000))
"""


def saver(root: Path, name: str, count: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", _SAVER, str(root), name, str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE)


def test_two_processes_at_once_lose_nothing(tmp_path: Path) -> None:
    processes = [saver(tmp_path, name, 20) for name in "ab"]
    assert [process.wait(30) for process in processes] == [0, 0]
    for process in processes:
        assert process.stdout is not None
        process.stdout.close()
    found = {e.expert_id for e in store(tmp_path).list()}
    assert found == {f"{name}{i}" for name in "ab" for i in range(20)}


@pytest.mark.slow
def test_a_kill_leaves_the_old_or_the_new_registry(tmp_path: Path) -> None:
    store(tmp_path).save(FULL)
    before = 1
    for seed in range(5):
        with saver(tmp_path, "k", 10**6) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(random.Random(seed).uniform(0.0, 0.05))
            process.kill()
        experts = store(tmp_path).list()
        assert experts[0] == FULL
        assert len(experts) >= before
        before = len(experts)
    store(tmp_path).save(Expert("last", "Last"))  # the dead hold no lock
    assert store(tmp_path).get("last") is not None
