"""Experts of adapters from elsewhere: what is taken in, and what a hostile folder comes to."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from aios.app.experts.creation import create_expert
from aios.app.experts.registry import open_store, open_versions, show_expert
from aios.backends.scripted import ScriptedModel
from aios.core.config.schemas import Config
from aios.core.errors import (
    AdapterMismatchError,
    AIOSError,
    ExpertExistsError,
    ModelError,
    UnknownExpertError,
    UsageError,
)
from aios.storage import expert_intake
from aios.storage.expert_intake import inspect_adapter
from tests.test_app.scripted_jobs import files_below, make_config

A = "base_model.model.scripted.lora_A.weight"
B = "base_model.model.scripted.lora_B.weight"
CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["scripted"]}


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return make_config(tmp_path)


def weights(rank: int = 2, dtype: Any = np.float32) -> dict[str, Any]:
    return {A: np.ones((rank, 3), dtype), B: np.ones((5, rank), dtype)}


def adapter(folder: Path, tensors: dict[str, Any] | None = None, **changes: Any) -> Path:
    """A plain LoRA adapter in PEFT layout."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps({**CONFIG, **changes}))
    save_file(tensors or weights(), folder / "adapter_model.safetensors")
    return folder


def test_an_adapter_becomes_an_expert(config: Config, tmp_path: Path) -> None:
    create_expert(config, "all", adapter(tmp_path / "all"))
    source = adapter(tmp_path / "tides", base_model_name_or_path="somewhere/scripted")
    report = create_expert(
        config,
        "tides",
        source,
        name="Tides",
        description="Knows tides.",
        category="places",
        goals=["Answer about  tides"],
        parent="all",
    )
    expert = open_store(config).require("tides")
    assert expert == report.expert
    assert (expert.name, expert.category, expert.goals) == (
        "Tides",
        "places",
        ("Answer about tides",),
    )
    assert (expert.parent_expert_id, expert.is_active) == ("all", True)
    assert expert.training_config == {"rank": 2, "alpha": 4}
    assert (report.rank, report.modules, report.parameters) == (2, 1, 16)
    assert files_below(report.folder) == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "expert.json",
    }
    ref = open_store(config).adapter("tides")
    assert (ref.base_digest, ref.path) == (ScriptedModel().digest, report.folder)
    assert ref.digest == inspect_adapter(source).digest
    view = show_expert(config, "tides")
    assert not view.documents.known
    assert view.provenance["created_from"] == str(source)
    assert [note for note in report.notes if "taken for one of scripted" in note]
    assert len(report.notes) == 1


def test_only_what_a_plain_adapter_needs_is_copied(config: Config, tmp_path: Path) -> None:
    source = adapter(
        tmp_path / "a",
        base_model_name_or_path="other/model",
        auto_mapping={"parent_library": "os"},
        revision="x",
        rank_pattern={"q_proj": 4},
    )
    (source / "adapter_model.bin").write_bytes(pickle.dumps(1))
    (source / "run.py").write_text("raise SystemExit")
    report = create_expert(config, "a", source)
    copied = json.loads((report.folder / "adapter_config.json").read_text())
    assert copied["base_model_name_or_path"] == "scripted"
    assert not {"auto_mapping", "revision"} & copied.keys()
    assert copied["rank_pattern"] == {"q_proj": 4}
    assert not (report.folder / "run.py").exists()
    text = "\n".join(report.notes)
    assert "names the base model 'other/model'" in text
    assert "not copied (2): adapter_model.bin, run.py" in text


def test_the_digest_in_the_folder_decides_which_base_model_it_is_for(
    config: Config, tmp_path: Path
) -> None:
    source = adapter(tmp_path / "a")
    (source / "training.json").write_text(json.dumps({"base_digest": "0" * 64}))
    with pytest.raises(AdapterMismatchError, match="another base model"):
        create_expert(config, "a", source)
    (source / "training.json").write_text(json.dumps({"base_digest": ScriptedModel().digest}))
    assert create_expert(config, "a", source).notes == (
        "files that were not copied (1): training.json",
    )


def test_ids_and_parents_are_checked_first(config: Config, tmp_path: Path) -> None:
    source = adapter(tmp_path / "a")
    create_expert(config, "a", source)
    (open_store(config).root / "mine").mkdir()
    for expert_id, error in (
        ("a", ExpertExistsError),
        ("mine", ExpertExistsError),
        ("../b", UsageError),
        ("auto", UsageError),
    ):
        with pytest.raises(error):
            create_expert(config, expert_id, source)
    with pytest.raises(UnknownExpertError):
        create_expert(config, "b", source, parent="nobody")
    assert [expert.expert_id for expert in open_store(config).list()] == ["a"]


def test_a_base_model_that_is_not_here_is_asked_for(tmp_path: Path) -> None:
    config = make_config(tmp_path, model={"name": "owner/name", "cache_dir": tmp_path / "models"})
    with pytest.raises(ModelError, match="is not on this machine"):
        create_expert(config, "a", adapter(tmp_path / "a"))


def test_a_folder_in_its_place_is_taken_and_kept_as_it_was(config: Config) -> None:
    source = adapter(open_store(config).folder("a"))
    (source / "notes.txt").write_text("mine")
    create_expert(config, "a", source)
    assert not (source / "notes.txt").exists()
    older, _ = open_versions(config).list("a")
    assert (older.folder / "notes.txt").read_text() == "mine"


# ------------------------------------------------------------ hostile folders


def header(folder: Path, content: Any, data: bytes = b"\0" * 64) -> None:
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    path = folder / "adapter_model.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def tensor(*shape: int, begin: int = 0, end: int | None = None, dtype: str = "F32") -> Any:
    size = 4 * int(np.prod(shape)) if end is None else end - begin
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, begin + size]}


def a_link_to_weights(folder: Path) -> None:
    (folder / "adapter_model.safetensors").rename(folder.parent / "elsewhere")
    (folder / "adapter_model.safetensors").symlink_to(folder.parent / "elsewhere")


def a_link_to_a_secret(folder: Path) -> None:
    (folder / "README.md").symlink_to("/etc/passwd")


def a_link_as_config(folder: Path) -> None:
    (folder / "adapter_config.json").unlink()
    (folder / "adapter_config.json").symlink_to("/dev/zero")


def only_a_pickle(folder: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(1))


def a_pickle_in_disguise(folder: Path) -> None:
    (folder / "adapter_model.safetensors").write_bytes(pickle.dumps(list(range(1000))))


def a_pipe(folder: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()
    os.mkfifo(folder / "adapter_model.safetensors")


def a_folder_as_weights(folder: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.safetensors").mkdir()


def a_huge_header(folder: Path) -> None:
    (folder / "adapter_model.safetensors").write_bytes((2**62).to_bytes(8, "little") + b"{}")


def a_deep_header(folder: Path) -> None:
    header(folder, b"[" * 100_000)


def an_empty_file(folder: Path) -> None:
    (folder / "adapter_model.safetensors").write_bytes(b"")


def no_tensors(folder: Path) -> None:
    header(folder, {}, b"")


def cut_short(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-3])


def overlapping(folder: Path) -> None:
    header(folder, {A: tensor(2, 3), B: tensor(5, 2, begin=8)}, b"\0" * 48)


def a_gap(folder: Path) -> None:
    header(folder, {A: tensor(2, 3), B: tensor(5, 2, begin=28)}, b"\0" * 68)


def a_huge_shape(folder: Path) -> None:
    header(folder, {A: tensor(2**40, 2**40, end=24), B: tensor(5, 2, begin=24)})


def a_negative_shape(folder: Path) -> None:
    header(folder, {A: tensor(-2, -3), B: tensor(5, 2, begin=24)})


def an_unknown_type(folder: Path) -> None:
    header(folder, {A: tensor(2, 3, dtype="I64"), B: tensor(5, 2, begin=24)})


def offsets_that_are_texts(folder: Path) -> None:
    header(folder, {A: {**tensor(2, 3), "data_offsets": ["0", "24"]}})


def other_tensors(folder: Path) -> None:
    adapter(folder, {**weights(), "model.embed_tokens.weight": np.ones((2, 2), np.float32)})


def half_a_module(folder: Path) -> None:
    adapter(folder, {A: np.ones((2, 3), np.float32)})


def another_rank(folder: Path) -> None:
    adapter(folder, weights(3))


def numbers_that_are_none(folder: Path) -> None:
    adapter(folder, {**weights(), A: np.full((2, 3), np.nan, np.float32)})


def another_kind(folder: Path) -> None:
    adapter(folder, peft_type="PROMPT_TUNING")


def with_biases(folder: Path) -> None:
    adapter(folder, bias="all")


def with_whole_modules(folder: Path) -> None:
    adapter(folder, modules_to_save=["lm_head"])


def with_dora(folder: Path) -> None:
    adapter(folder, use_dora=True)


def without_a_rank(folder: Path) -> None:
    adapter(folder, r="2")


def no_config(folder: Path) -> None:
    (folder / "adapter_config.json").unlink()


def config_of_lists(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("[]")


def a_huge_config(folder: Path) -> None:
    (folder / "adapter_config.json").write_text(json.dumps({**CONFIG, "x": "y" * 2**20}))


HOSTILE: list[Callable[[Path], None]] = [
    *(a_link_to_weights, a_link_to_a_secret, a_link_as_config, only_a_pickle),
    *(a_pickle_in_disguise, a_pipe, a_folder_as_weights, a_huge_header, a_deep_header),
    *(an_empty_file, no_tensors, cut_short, overlapping, a_gap, a_huge_shape, a_negative_shape),
    *(an_unknown_type, offsets_that_are_texts, other_tensors, half_a_module, another_rank),
    *(numbers_that_are_none, another_kind, with_biases, with_whole_modules, with_dora),
    *(without_a_rank, no_config, config_of_lists, a_huge_config),
]


@pytest.mark.parametrize("spoil", HOSTILE, ids=lambda spoil: spoil.__name__)
def test_a_hostile_folder_is_refused_and_leaves_nothing(
    config: Config, tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    source = adapter(tmp_path / "hostile")
    spoil(source)
    with pytest.raises(AIOSError) as caught:
        create_expert(config, "a", source)
    assert str(source) in caught.value.message or "adapter in" in caught.value.message
    assert caught.value.remedy
    store = open_store(config)
    assert store.list() == ()
    assert not store.folder("a").exists()


def test_weights_that_are_too_large_are_not_read(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expert_intake, "_MAX_WEIGHTS_BYTES", 100)
    with pytest.raises(UsageError, match="larger than 8 GiB"):
        create_expert(config, "a", adapter(tmp_path / "a"))


def test_a_folder_of_too_many_files_is_refused(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expert_intake, "_MAX_FILES", 1)
    with pytest.raises(UsageError, match="more than 1 files"):
        create_expert(config, "a", adapter(tmp_path / "a"))


def test_half_precision_and_several_ranks_are_taken(config: Config, tmp_path: Path) -> None:
    create_expert(config, "a", adapter(tmp_path / "a", weights(2, np.float16)))
    name = "base_model.model.model.layers.0.q_proj.lora_{}.weight"
    more = {
        name.format("A"): np.ones((4, 3), np.float32),
        name.format("B"): np.ones((3, 4), np.float32),
    }
    source = adapter(tmp_path / "b", {**weights(), **more}, rank_pattern={"q_proj": 4})
    assert create_expert(config, "b", source).modules == 2
