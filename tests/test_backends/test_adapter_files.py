"""Adapter folders: what is written, what is kept, and what is refused from outside."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from torch import Tensor

from aios.backends import adapter_files
from aios.backends.adapter_files import (
    AdapterFolder,
    TrainingState,
    adapter_ref,
    plain_config,
    read_adapter,
)
from aios.core.errors import ModelError, StorageError, UsageError
from aios.core.trainings import CurvePoint, TrainingJob
from aios.core.types import LoraRecipe, TrainExample

CONFIG = plain_config(
    LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
    "tiny",
)
A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


def make_job(folder: Path, **changes: Any) -> TrainingJob:
    job = TrainingJob((TrainExample.whole("The mill."),), LoraRecipe(), 1, folder)
    return replace(job, **changes)


def point(step: int, loss: float | None) -> CurvePoint:
    return CurvePoint(step, step / 2, step * 10, None, loss, 0.5)


def weights(value: float) -> dict[str, Tensor]:
    return {A: torch.full((2, 3), value)}


def train(folder: AdapterFolder, *losses: float | None) -> TrainingState:
    """Commits one checkpoint an evaluation; the weights hold the step's number."""
    state = TrainingState()
    for step, loss in enumerate(losses):
        state.step = step
        state.add(point(step, loss))
        folder.commit(state, weights(step), {"step:x": torch.tensor(float(step))}, CONFIG)
    return state


def write_adapter(folder: Path, **changes: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps({**CONFIG, **changes}))
    save_file(weights(1.0), folder / "adapter_model.safetensors")
    return folder


# ---------------------------------------------------------------- the state


@pytest.mark.parametrize(
    ("losses", "best"),
    [
        ([3.0, 2.0, 1.0], 2),
        ([3.0, 1.0, 2.0], 1),
        ([1.0, 2.0, 3.0], 0),
        ([1.0, 1.0], 0),
        ([None, None, None], 2),
    ],
)
def test_the_best_is_the_lowest_loss_or_the_last_without_losses(
    losses: list[float | None], best: int
) -> None:
    state = TrainingState(loss_sum=3.0, loss_tokens=2)
    for step, loss in enumerate(losses):
        state.add(point(step, loss))
    assert state.best_point() == point(best, losses[best])
    assert (state.loss_sum, state.loss_tokens) == (0.0, 0)


# ---------------------------------------------------------------- checkpoints


def test_the_best_and_the_newest_checkpoint_are_kept_and_no_other(tmp_path: Path) -> None:
    train(AdapterFolder(make_job(tmp_path), "base"), 3.0, 1.0, 2.0, 2.5)
    names = sorted(p.name for p in (tmp_path / "checkpoints").iterdir() if p.is_dir())
    assert names == ["step-0000001", "step-0000003"]
    assert len(list((tmp_path / "checkpoints").iterdir())) <= 4  # with their locks


def test_what_was_committed_is_restored(tmp_path: Path) -> None:
    folder = AdapterFolder(make_job(tmp_path), "base")
    state = train(folder, 3.0, 1.0, 2.0)
    state.loss_sum, state.loss_tokens, state.seconds, state.step = 1.1, 3, 2.5, 7
    folder.commit(state, weights(7.0), {"step:x": torch.tensor(7.0)}, CONFIG)
    restored = AdapterFolder(make_job(tmp_path), "base").restore()
    assert restored is not None
    assert restored[0] == state
    assert torch.equal(restored[1][A], torch.full((2, 3), 7.0))
    assert restored[2] == {"step:x": torch.tensor(7.0)}


def test_the_finished_adapter_is_the_best_one(tmp_path: Path) -> None:
    folder = AdapterFolder(make_job(tmp_path), "base")
    adapter = folder.finish(train(folder, 3.0, 1.0, 2.0))
    data = (tmp_path / "adapter_model.safetensors").read_bytes()
    assert load_file(tmp_path / "adapter_model.safetensors")[A][0, 0] == 1.0
    assert (adapter.digest, adapter.base_digest) == (hashlib.sha256(data).hexdigest(), "base")
    record = json.loads((tmp_path / "training.json").read_text())
    assert (record["best_step"], record["base_digest"]) == (1, "base")
    assert [p["validation_loss"] for p in record["curve"]] == [3.0, 1.0, 2.0]
    assert not (tmp_path / "checkpoints").exists()
    assert adapter_ref(tmp_path, "base") == adapter


def test_a_finished_training_is_known_as_such(tmp_path: Path) -> None:
    folder = AdapterFolder(make_job(tmp_path), "base")
    assert folder.finished() is None
    state = train(folder, 3.0, 1.0, 2.0)
    assert folder.finished() is None
    adapter = folder.finish(state)
    assert AdapterFolder(make_job(tmp_path), "base").finished() == (state, adapter)
    with pytest.raises(UsageError, match="other data or settings"):
        AdapterFolder(make_job(tmp_path, seed=2), "base").finished()
    (tmp_path / "adapter_model.safetensors").write_bytes(b"other")
    with pytest.raises(StorageError, match="not the one that was trained"):
        folder.finished()
    (tmp_path / "adapter_model.safetensors").unlink()
    with pytest.raises(StorageError, match="damaged"):
        folder.finished()


def test_there_is_nothing_to_restore_in_an_empty_folder(tmp_path: Path) -> None:
    assert AdapterFolder(make_job(tmp_path / "none"), "base").restore() is None


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 2},
        {"recipe": LoraRecipe(rank=3)},
        {"examples": (TrainExample("The mill.", ((0, 3),)),)},
        {"max_steps": 3},
        {"max_tokens": 3},
        {"patience": 3},
        {"evaluations_per_epoch": 3},
        {"evaluate_every_tokens": 3},
    ],
    ids=str,
)
def test_the_checkpoint_of_another_training_is_refused(
    change: dict[str, Any], tmp_path: Path
) -> None:
    train(AdapterFolder(make_job(tmp_path), "base"), 3.0)
    with pytest.raises(UsageError, match="other data or settings"):
        AdapterFolder(make_job(tmp_path, **change), "base").restore()
    with pytest.raises(UsageError, match="other data or settings"):
        AdapterFolder(make_job(tmp_path), "another base").restore()
    moved = AdapterFolder(make_job(tmp_path, resume=True), "base").restore()
    assert moved is not None


@pytest.mark.parametrize("text", ["[]", "{}", '{"fingerprint": 1}', "3"])
def test_a_state_of_another_form_is_refused(text: str, tmp_path: Path) -> None:
    folder = AdapterFolder(make_job(tmp_path), "base")
    train(folder, 3.0)
    (tmp_path / "checkpoints" / "step-0000000" / "state.json").write_text(text)
    with pytest.raises(UsageError):
        folder.restore()
    record = {"fingerprint": folder.fingerprint, "curve": [{"step": 1}]}
    (tmp_path / "checkpoints" / "step-0000000" / "state.json").write_text(json.dumps(record))
    with pytest.raises(StorageError, match="damaged"):
        folder.restore()


def test_starting_over_removes_what_was_there_and_nothing_else(tmp_path: Path) -> None:
    folder = AdapterFolder(make_job(tmp_path), "base")
    folder.finish(train(folder, 3.0))
    (tmp_path / "README.md").write_text("mine")
    folder.start_over()
    assert [p.name for p in tmp_path.iterdir()] == ["README.md"]
    AdapterFolder(make_job(tmp_path / "none"), "base").start_over()


def test_a_folder_that_cannot_be_written_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="file is where a folder should be"):
        train(AdapterFolder(make_job(tmp_path / "file" / "a"), "base"), 3.0)


def test_a_full_disk_leaves_the_checkpoint_of_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = AdapterFolder(make_job(tmp_path), "base")
    state = train(folder, 3.0)

    def full(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(StorageError, match="disk full"):
        folder.commit(replace(state, step=5), weights(5.0), {}, CONFIG)
    monkeypatch.undo()
    restored = folder.restore()
    assert restored is not None
    assert restored[0].step == 0
    names = [p.name for p in (tmp_path / "checkpoints").iterdir() if p.is_dir()]
    assert names == ["step-0000000"]


# ---------------------------------------------------------------- the config


def test_the_config_is_plain_json_with_the_base_models_name() -> None:
    config = LoraConfig(r=2, target_modules=["v_proj", "q_proj"], base_model_name_or_path="/a/b")
    plain = plain_config(config, "tiny")
    assert plain == json.loads(json.dumps(plain))
    assert plain["target_modules"] == ["q_proj", "v_proj"]
    assert plain["base_model_name_or_path"] == "tiny"
    assert plain["inference_mode"] is True


def test_a_written_adapter_is_read_again(tmp_path: Path) -> None:
    config, tensors = read_adapter(write_adapter(tmp_path))
    assert (config["r"], config["lora_alpha"]) == (2, 4)
    assert torch.equal(tensors[A], torch.ones(2, 3))
    LoraConfig(**config)


def test_keys_that_we_do_not_know_are_not_passed_on(tmp_path: Path) -> None:
    folder = write_adapter(
        tmp_path,
        auto_mapping={"base_model_class": "os.system"},
        megatron_core="evil.module",
        base_model_name_or_path="https://example.invalid/evil",
        lora_dropout=0.7,
        brand_new_option=True,
    )
    config, _ = read_adapter(folder)
    assert config.keys().isdisjoint({"auto_mapping", "megatron_core", "brand_new_option"})
    assert "base_model_name_or_path" not in config
    assert "lora_dropout" not in config


@pytest.mark.parametrize(
    "change",
    [
        {"peft_type": "PROMPT_TUNING"},
        {"peft_type": None},
        {"bias": "all"},
        {"use_dora": True},
        {"modules_to_save": ["lm_head"]},
        {"layer_replication": [[0, 2]]},
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": {"a": 1}},
        {"r": 0},
        {"r": 10**9},
        {"r": "8"},
        {"r": True},
        {"r": None},
        {"lora_alpha": "8"},
        {"lora_alpha": None},
        {"target_modules": None},
        {"target_modules": "(a+)+$"},
        {"target_modules": ["q_proj", "(a|aa)+$"]},
        {"target_modules": ["q_proj", 3]},
        {"target_modules": {"q_proj": 1}},
        {"rank_pattern": {"(a+)+$": 4}},
        {"rank_pattern": {"q_proj": 10**9}},
        {"rank_pattern": ["q_proj"]},
        {"alpha_pattern": {"q_proj": "x"}},
        {"alpha_pattern": 3},
    ],
    ids=str,
)
def test_a_config_that_we_cannot_follow_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        read_adapter(write_adapter(tmp_path, **change))
    assert str(tmp_path) in caught.value.message


def truncate(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-5])


def claim_a_huge_header(folder: Path) -> None:
    (folder / "adapter_model.safetensors").write_bytes((2**62).to_bytes(8, "little") + b"{}")


def pickle_the_weights(folder: Path) -> None:
    torch.save(weights(1.0), folder / "adapter_model.safetensors")


def only_a_pickle(folder: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()
    torch.save(weights(1.0), folder / "adapter_model.bin")


def link_to_a_device(folder: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.safetensors").symlink_to("/dev/zero")


def no_config(folder: Path) -> None:
    (folder / "adapter_config.json").unlink()


def no_json(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"')


def a_list(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("[]")


def a_huge_config(folder: Path) -> None:
    (folder / "adapter_config.json").write_text(json.dumps({**CONFIG, "x": "y" * (2**20)}))


def deep_json(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("[" * 200_000)


@pytest.mark.parametrize(
    "spoil",
    [
        truncate,
        claim_a_huge_header,
        pickle_the_weights,
        only_a_pickle,
        link_to_a_device,
        no_config,
        no_json,
        a_list,
        a_huge_config,
        deep_json,
    ],
    ids=lambda f: f.__name__,
)
def test_a_damaged_adapter_is_a_model_error(spoil: Callable[[Path], None], tmp_path: Path) -> None:
    folder = write_adapter(tmp_path)
    spoil(folder)
    with pytest.raises(ModelError) as caught:
        read_adapter(folder)
    assert str(folder) in caught.value.message


def test_weights_that_are_too_large_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_adapter(tmp_path)
    monkeypatch.setattr(adapter_files, "_MAX_WEIGHTS_BYTES", 10)
    with pytest.raises(ModelError, match="larger than the 10 bytes allowed"):
        read_adapter(folder)


def test_a_folder_without_an_adapter_has_no_reference(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there is no adapter in"):
        adapter_ref(tmp_path, "base")
