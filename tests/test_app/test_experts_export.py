"""Exported experts work in other programs: PEFT, transformers, and what vLLM and llama.cpp ask for.

The adapters are PEFT's own, random and not zero, on the tiny model.
"""

from __future__ import annotations

import json
import shutil
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from aios.app.experts.creation import create_expert
from aios.app.experts.export import ExportReport, export_expert
from aios.app.experts.registry import open_store
from aios.core.config.schemas import Config
from aios.core.errors import (
    AdapterMismatchError,
    BackendError,
    ModelError,
    StorageError,
    UnknownExpertError,
    UsageError,
)
from tests.test_app.scripted_jobs import files_below, make_config
from tests.tiny_model import build_llama, build_tokenizer

ADAPTERS: dict[str, dict[str, Any]] = {
    "plain": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"]},
    "several": {
        "r": 2,
        "lora_alpha": 8,
        "target_modules": ["q_proj", "o_proj", "gate_proj"],
        "rank_pattern": {"o_proj": 6},
        "alpha_pattern": {"layers.1.mlp.gate_proj": 32},
        "use_rslora": True,
    },
}
# PEFT asks transformers by an old name.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
Saved = dict[str, tuple[Path, Tensor]]
TOKENS = torch.tensor([[5, 17, 300, 42, 8, 99, 3]])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model in float32, its weights in several files."""
    folder = tmp_path_factory.mktemp("base") / "tiny"
    build_llama().save_pretrained(folder, max_shard_size="100KB")
    build_tokenizer().save_pretrained(folder)
    assert len(list(folder.glob("*.safetensors"))) > 1
    return folder


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(TOKENS).logits
    return found


@pytest.fixture(scope="module")
def adapters(
    base: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Path, Tensor]]:
    """Adapters that PEFT has saved, and the logits of the model with each."""
    made = {}
    for name, settings in ADAPTERS.items():
        torch.manual_seed(3)
        model = get_peft_model(build_llama(), LoraConfig(task_type="CAUSAL_LM", **settings))
        for key, parameter in model.named_parameters():
            if "lora_" in key:
                torch.nn.init.normal_(parameter, std=0.1)
        folder = tmp_path_factory.mktemp("adapters") / name
        model.save_pretrained(str(folder))
        made[name] = folder, logits(model.eval())
    return made


@pytest.fixture
def config(tmp_path: Path, base: Path) -> Config:
    return make_config(tmp_path, model={"name": str(base), "cache_dir": tmp_path / "models"})


@pytest.fixture
def expert(config: Config, adapters: Saved) -> str:
    create_expert(config, "plain", adapters["plain"][0], name="Plain")
    return "plain"


# ------------------------------------------------------------ peft


@pytest.mark.parametrize("name", ADAPTERS)
def test_peft_loads_an_exported_expert_with_equal_output(
    config: Config, adapters: Saved, tmp_path: Path, name: str, base: Path
) -> None:
    create_expert(config, name, adapters[name][0])
    report = export_expert(config, name, "peft", tmp_path / "out")
    assert report.output == tmp_path / "out" / name
    assert report.base_model == str(base)

    def on_the_base(adapter: Path) -> Tensor:
        return logits(
            PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
        )

    wanted = on_the_base(adapters[name][0])
    assert torch.equal(on_the_base(report.output), wanted)
    assert torch.equal(on_the_base(open_store(config).folder(name)), wanted)
    assert not torch.allclose(logits(AutoModelForCausalLM.from_pretrained(base)), wanted, atol=0.1)


def test_the_folder_is_what_vllm_looks_for(config: Config, expert: str, tmp_path: Path) -> None:
    """The rules of vLLM's filesystem resolver and of its reader of PEFT's configurations."""
    out = tmp_path / "adapters"
    served = "the/served-model"
    report = export_expert(config, expert, "peft", out, base_name=served)
    found = json.loads((out / expert / "adapter_config.json").read_text())
    assert (found["peft_type"], found["base_model_name_or_path"]) == ("LORA", served)
    assert {"r", "lora_alpha", "target_modules"} <= found.keys()
    assert (found["bias"], found["modules_to_save"], found.get("use_dora")) == ("none", None, None)
    assert files_below(out / expert) == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "README.md",
    }
    with safe_open(out / expert / "adapter_model.safetensors", framework="pt") as file:
        names = list(file.keys())
    assert all(name.startswith("base_model.model.") for name in names)
    assert {name.rsplit(".", 2)[1] for name in names} == {"lora_A", "lora_B"}
    assert report.notes == ()


def test_what_vllm_must_be_told_or_cannot_do_is_noted(
    config: Config, adapters: Saved, base: Path, tmp_path: Path
) -> None:
    create_expert(config, "several", adapters["several"][0])
    (note,) = export_expert(config, "several", "peft", tmp_path / "a").notes
    assert "one rank and scale for all modules" in note
    for rank, said in ((24, "--max-lora-rank 32"), (600, "up to rank 512; this has 600")):
        lora = LoraConfig(r=rank, target_modules=["q_proj"], task_type="CAUSAL_LM")
        get_peft_model(build_llama(), lora).save_pretrained(str(tmp_path / str(rank)))
        create_expert(config, f"rank-{rank}", tmp_path / str(rank))
        (note,) = export_expert(config, f"rank-{rank}", "peft", tmp_path / "a").notes
        assert said in note


def test_an_adapter_is_exported_without_its_base_model(
    tmp_path: Path, config: Config, expert: str
) -> None:
    other = make_config(tmp_path)  # the scripted model
    store = open_store(config)
    store.update(expert, lambda e: type(e)(**{**_fields(e), "model_architecture": "gone/away"}))
    report = export_expert(other, expert, "peft", tmp_path / "out")
    assert report.base_model == "gone/away"
    with pytest.raises(ModelError, match=r"gone/away\) is not on this machine"):
        export_expert(other, expert, "merged", tmp_path / "merged")
    assert not (tmp_path / "merged" / expert).exists()


def _fields(expert: Any) -> dict[str, Any]:
    return {name: getattr(expert, name) for name in type(expert).__dataclass_fields__}


# ------------------------------------------------------------ merged


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_merged_model_needs_no_adapter(
    config: Config, adapters: Saved, tmp_path: Path, name: str, base: Path
) -> None:
    create_expert(config, name, adapters[name][0])
    report = export_expert(config, name, "merged", tmp_path / "out")
    merged = AutoModelForCausalLM.from_pretrained(report.output)
    torch.testing.assert_close(logits(merged), adapters[name][1], rtol=1e-4, atol=1e-4)
    ours = merged.state_dict()
    theirs = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base), adapters[name][0]
    ).merge_and_unload()
    for key, value in theirs.state_dict().items():
        torch.testing.assert_close(ours[key], value, rtol=0, atol=1e-6)
    mine, its = (AutoTokenizer.from_pretrained(one) for one in (report.output, base))
    assert mine("The tide engine") == its("The tide engine")
    assert "library_name: transformers" in (report.output / "README.md").read_text()


def test_merging_keeps_the_number_format(tmp_path: Path, adapters: Saved) -> None:
    folder = tmp_path / "half"
    build_llama().bfloat16().save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    config = make_config(tmp_path, model={"name": str(folder), "cache_dir": tmp_path / "models"})
    create_expert(config, "plain", adapters["plain"][0])
    out = export_expert(config, "plain", "merged", tmp_path / "out").output
    with (
        safe_open(out / "model.safetensors", framework="pt") as after,
        safe_open(folder / "model.safetensors", framework="pt") as before,
    ):
        assert set(after.keys()) == set(before.keys())
        changed = set()
        for key in before.keys():  # noqa: SIM118 - no dict
            assert after.get_tensor(key).dtype == torch.bfloat16
            if not torch.equal(after.get_tensor(key), before.get_tensor(key)):
                changed.add(key.split(".")[-2])
    assert changed == {"q_proj", "v_proj", "down_proj"}


def test_an_adapter_of_other_shapes_or_modules_is_not_merged(
    config: Config, tmp_path: Path
) -> None:
    for name, settings, message in (
        ("wide", {"hidden_size": 128}, "and the base model has it as"),
        ("deep", {"num_hidden_layers": 3}, "has no weights of its own"),
    ):
        lora = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
        get_peft_model(build_llama(**settings), lora).save_pretrained(str(tmp_path / name))
        create_expert(config, name, tmp_path / name)
        with pytest.raises(AdapterMismatchError, match=message):
            export_expert(config, name, "merged", tmp_path / "out")
        assert list((tmp_path / "out").glob("[!.]*")) == []


# ------------------------------------------------------------ gguf

_CONVERTER = """
import pathlib, sys
args = sys.argv[1:]
assert args[0] == "--base" and args[2] == "--outfile", args
base, out, adapter = (pathlib.Path(args[i]) for i in (1, 3, 4))
assert (base / "config.json").is_file()
names = sorted(path.name for path in adapter.iterdir())
assert names == ["adapter_config.json", "adapter_model.safetensors"], names
{body}
"""


def converter(folder: Path, body: str, name: str = "convert_lora_to_gguf.py") -> Path:
    """A script with the command line of llama.cpp's converter."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(_CONVERTER.replace("{body}", body))
    return path


GOOD = "out.write_bytes(b'GGUF' + (adapter / 'adapter_model.safetensors').read_bytes())"


def found_by(way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path | None:
    script = converter(tmp_path / "llama.cpp", GOOD)
    if way == "LLAMA_CPP_DIR":
        monkeypatch.setenv("LLAMA_CPP_DIR", str(script.parent))
    elif way == "PATH":
        monkeypatch.setenv("PATH", str(script.parent))
    elif way == "program":
        program = script.with_name("convert-lora-to-gguf")
        program.write_text(f"#!{sys.executable}\n{script.read_text()}")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        script.unlink()
        monkeypatch.setenv("PATH", str(script.parent))
    return {"script": script, "folder": script.parent}.get(way)


@pytest.mark.parametrize("way", ["script", "folder", "LLAMA_CPP_DIR", "PATH", "program"])
def test_llama_cpps_own_converter_is_found_and_used(
    config: Config, expert: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    given = found_by(way, tmp_path, monkeypatch)
    report = export_expert(config, expert, "gguf-lora", tmp_path / "out", converter=given)
    assert report.output == tmp_path / "out" / "plain.gguf"
    weights = open_store(config).folder(expert) / "adapter_model.safetensors"
    assert report.output.read_bytes() == b"GGUF" + weights.read_bytes()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["plain.gguf"]


@pytest.mark.parametrize(
    ("body", "timeout", "message"),
    [
        ("sys.exit('no module named gguf')", 30.0, "no module named gguf"),
        ("out.write_bytes(b'PK')", 30.0, "wrote no GGUF file"),
        ("pass", 30.0, "wrote no GGUF file"),
        ("import time; time.sleep(60)", 0.2, "was not done after 0.2 s"),
    ],
)
def test_a_converter_that_fails_is_an_error_and_leaves_nothing(
    config: Config, expert: str, tmp_path: Path, body: str, timeout: float, message: str
) -> None:
    script = converter(tmp_path / "llama.cpp", body)
    with pytest.raises(BackendError, match=message) as caught:
        export_expert(
            config,
            expert,
            "gguf-lora",
            tmp_path / "out",
            converter=script,
            timeout_seconds=timeout,
        )
    assert caught.value.remedy
    assert list((tmp_path / "out").iterdir()) == []


def test_without_a_converter_one_is_told_what_to_get(
    config: Config, expert: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("LLAMA_CPP_DIR", raising=False)
    with pytest.raises(UsageError, match="was not found") as caught:
        export_expert(config, expert, "gguf-lora", tmp_path / "out")
    assert "LLAMA_CPP_DIR" in caught.value.remedy
    with pytest.raises(UsageError, match="there is no convert_lora_to_gguf"):
        export_expert(config, expert, "gguf-lora", tmp_path / "out", converter=tmp_path)


# ------------------------------------------------------------ refusals


def exported(config: Config, form: Any, out: Path) -> Callable[[], ExportReport]:
    return lambda: export_expert(config, "plain", form, out, converter=out)


@pytest.mark.parametrize("form", ["peft", "merged"])
def test_nothing_that_exists_is_replaced(
    config: Config, expert: str, tmp_path: Path, form: Any
) -> None:
    (tmp_path / "out" / expert).mkdir(parents=True)
    with pytest.raises(UsageError, match="exists already"):
        exported(config, form, tmp_path / "out")()
    assert list((tmp_path / "out" / expert).iterdir()) == []


@pytest.mark.parametrize("form", ["peft", "merged"])
def test_what_does_not_fit_on_the_disk_is_not_begun(
    config: Config, expert: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: Any
) -> None:
    usage = shutil.disk_usage(tmp_path)
    small = type(usage)(usage.total, usage.total - 1000, 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: small)
    with pytest.raises(StorageError, match="GB free"):
        exported(config, form, tmp_path / "out")()
    assert list((tmp_path / "out").iterdir()) == []


def test_damaged_experts_are_not_exported(config: Config, expert: str, tmp_path: Path) -> None:
    with pytest.raises(UnknownExpertError):
        export_expert(config, "plan", "peft", tmp_path / "out")
    weights = open_store(config).folder(expert) / "adapter_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(StorageError, match="not those that its card names"):
        export_expert(config, expert, "peft", tmp_path / "out")
    weights.unlink()
    with pytest.raises(StorageError, match="has no adapter"):
        export_expert(config, expert, "peft", tmp_path / "out")
    assert not (tmp_path / "out" / expert).exists()
