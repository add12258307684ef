"""Gives an expert to other programs: as an adapter, as a whole model, or as GGUF.

- ``peft``: ``DIR/ID/`` with ``adapter_config.json`` and ``adapter_model.safetensors``. PEFT loads
  it; ``vllm serve BASE --enable-lora --lora-modules ID=DIR/ID`` takes it; and DIR is what vLLM's
  ``lora_filesystem_resolver`` looks into. That resolver compares the base model's name in the
  configuration with the model that vLLM serves, letter by letter, so the name can be chosen.
- ``merged``: ``DIR/ID/``, a model folder that needs no adapter any more.
- ``gguf-lora``: ``DIR/ID.gguf``, for ``llama-server --lora``.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml

from aios.app.experts.model_card import render_model_card
from aios.app.experts.registry import open_store
from aios.app.models import ModelInfo, show_model
from aios.backends.lora_to_gguf import convert, find_converter
from aios.core.config.schemas import Config
from aios.core.errors import ModelError, StorageError, UsageError
from aios.core.events import Notice
from aios.core.files import atomic_write_text, confined, guarded
from aios.core.folders import atomic_folder
from aios.core.protocols import Emit, ignore
from aios.core.types import AdapterRef, Expert
from aios.storage.expert_intake import AdapterFacts, copy_adapter, inspect_adapter
from aios.storage.experts import FileExpertStore

ExportFormat = Literal["peft", "merged", "gguf-lora"]
FORMATS: tuple[ExportFormat, ...] = ("peft", "merged", "gguf-lora")
CONVERSION_SECONDS = 600.0
_VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # values of vLLM's --max-lora-rank
_VLLM_DEFAULT_RANK = 16
_SPARE_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What was written.

    Attributes:
        expert_id: The expert.
        format: How.
        output: The folder or file.
        base_model: What the adapter names as its base model; for a merged one, what it came from.
        bytes: What it takes on disk.
        notes: What a person should know.
    """

    expert_id: str
    format: ExportFormat
    output: Path
    base_model: str
    bytes: int
    notes: tuple[str, ...] = ()


def export_expert(
    config: Config,
    expert_id: str,
    format: ExportFormat,
    output: Path,
    *,
    base_name: str | None = None,
    converter: Path | None = None,
    timeout_seconds: float = CONVERSION_SECONDS,
    emit: Emit = ignore,
) -> ExportReport:
    """Exports an expert; what is at the output already is never replaced.

    Args:
        config: The resolved config; the base model is found under its name or the expert's.
        expert_id: The expert.
        format: ``peft``, ``merged`` or ``gguf-lora``.
        output: The folder to write into; the expert gets a folder or file of its id in it.
        base_name: What the adapter names as its base model; by default the model's id on the hub,
            its folder on this machine, or its name.
        converter: llama.cpp's ``convert_lora_to_gguf.py``, or llama.cpp's folder.
        timeout_seconds: Time for the conversion.
        emit: Shows what is done.

    Returns:
        What was written and where.

    Raises:
        UnknownExpertError: There is no such expert.
        UsageError: The output is taken, the converter is not there, or the adapter is damaged.
        ModelError: The base model is needed, and missing or broken.
        BackendError: The converter failed.
        StorageError: The disk has too little space, or cannot be written.
    """
    from aios.backends.expert_export import check_adapter

    store = open_store(config)
    expert = store.require(expert_id)
    adapter, facts = sound_adapter(store, expert_id)
    check_adapter(adapter.path)
    with guarded("make", output):
        output.mkdir(parents=True, exist_ok=True)
    target = confined(output, expert_id if format != "gguf-lora" else f"{expert_id}.gguf")
    if target.exists():
        raise UsageError(f"{target} exists already", "move it away, or name another --output")
    base = base_model_of(config, expert, adapter)
    if format == "peft":
        name, notes = base_name or _name_of(base, expert), _vllm_notes(facts)
        _write_peft(store, expert, adapter, facts, target, name)
    elif format == "merged":
        name, notes = _on_this_machine(base, expert).name, ()
        _write_merged(expert, adapter, _on_this_machine(base, expert), target, emit)
    else:
        name, notes = _on_this_machine(base, expert).name, ()
        script = find_converter(converter, os.environ)
        emit(Notice(f"converting with {script}"))
        _write_gguf(adapter, facts, _on_this_machine(base, expert), target, script, timeout_seconds)
    return ExportReport(expert_id, format, target, name, _size(target), notes)


def sound_adapter(store: FileExpertStore, expert_id: str) -> tuple[AdapterRef, AdapterFacts]:
    """An expert's adapter, whose weights were found to be those that its card names.

    Raises:
        UnknownExpertError: There is no such expert.
        UsageError: It is no adapter that other programs can load.
        StorageError: The weights are others, are gone, or cannot be read.
    """
    adapter = store.adapter(expert_id)
    facts = inspect_adapter(adapter.path)
    if facts.digest != adapter.digest:
        raise StorageError(
            f"the weights in {adapter.path} are not those that its card names",
            f"restore them from a copy, or roll back: aios experts rollback {expert_id}",
        )
    return adapter, facts


def base_model_of(config: Config, expert: Expert, adapter: AdapterRef) -> ModelInfo | None:
    """The expert's base model, if it is on this machine; told by its digest, not by its name."""
    for name in dict.fromkeys((config.model.name, expert.model_architecture)):
        try:
            model = show_model(config, name)
        except ModelError:  # moved away, or never here
            continue
        if model.installed and model.digest == adapter.base_digest:
            return model
    return None


def _on_this_machine(base: ModelInfo | None, expert: Expert) -> ModelInfo:
    """The base model, where its files are needed.

    Raises:
        ModelError: It is not on this machine, or has no files.
    """
    name = expert.model_architecture
    if base is None:
        raise ModelError(
            f"the base model of expert {expert.expert_id!r} ({name}) is not on this machine",
            f"run `aios models pull {name}`, or set model.name to where it is",
        )
    if base.path is None or not base.path.is_dir():
        raise ModelError(f"the base model {name} has no weights that could be written", "")
    return base


def _name_of(base: ModelInfo | None, expert: Expert) -> str:
    """What other programs can find the base model by."""
    if base is None:
        return expert.model_architecture
    if base.kind == "hub":
        return base.name.partition("@")[0]
    return str(base.path.resolve()) if base.path and base.path.is_dir() else base.name


def _vllm_notes(facts: AdapterFacts) -> tuple[str, ...]:
    """What vLLM has to be told, or cannot do."""
    notes = []
    rank = next((one for one in _VLLM_RANKS if one >= facts.rank), None)
    if rank is None:
        notes.append(f"vLLM takes adapters up to rank {_VLLM_RANKS[-1]}; this has {facts.rank}")
    elif rank > _VLLM_DEFAULT_RANK:
        notes.append(f"vLLM needs --max-lora-rank {rank} for it")
    if any(facts.config.get(key) for key in ("rank_pattern", "alpha_pattern")):
        notes.append("vLLM knows one rank and scale for all modules; this adapter has several")
    return tuple(notes)


def _write_peft(
    store: FileExpertStore,
    expert: Expert,
    adapter: AdapterRef,
    facts: AdapterFacts,
    target: Path,
    base_name: str,
) -> None:
    require_space(target, facts.bytes)
    with atomic_folder(target) as building:
        copy_adapter(adapter.path, building, facts, base_name)
        card = render_model_card(expert, store.read_card(expert.expert_id))
        atomic_write_text(building / "README.md", card)


def _write_merged(
    expert: Expert, adapter: AdapterRef, base: ModelInfo, target: Path, emit: Emit
) -> None:
    from aios.backends.expert_export import merge_adapter

    assert base.path is not None  # `_on_this_machine`
    require_space(target, base.size_bytes or 0)
    with atomic_folder(target) as building:
        changed = merge_adapter(base.path, adapter.path, building)
        atomic_write_text(building / "README.md", _merged_card(expert, adapter))
    emit(Notice(f"{changed} weights of {base.name} were changed"))


def _merged_card(expert: Expert, adapter: AdapterRef) -> str:
    head = yaml.safe_dump(
        {
            "base_model": expert.model_architecture,
            "library_name": "transformers",
            "tags": ["aios", "merged"],
        },
        sort_keys=False,
    )
    text = (
        f"{expert.description or 'An expert trained by AI-OS SEAL.'}\n\nThe base model "
        f"{expert.model_architecture} (`{adapter.base_digest[:12]}`) with the adapter "
        f"`{adapter.digest[:12]}` in its weights: no adapter is needed."
    )
    return f"---\n{head}---\n\n# {expert.name}\n\n{text}\n"


def _write_gguf(
    adapter: AdapterRef,
    facts: AdapterFacts,
    base: ModelInfo,
    target: Path,
    script: Path,
    timeout_seconds: float,
) -> None:
    assert base.path is not None  # `_on_this_machine`
    require_space(target, 4 * facts.parameters)  # its default is float32
    with tempfile.TemporaryDirectory(prefix=".aios-", dir=target.parent) as folder:
        plain, written = Path(folder) / "adapter", Path(folder) / target.name
        plain.mkdir()
        copy_adapter(adapter.path, plain, facts, str(base.path))
        convert(script, plain, base.path, written, timeout_seconds=timeout_seconds)
        with guarded("write", target):
            os.replace(written, target)


def require_space(target: Path, size: int) -> None:
    """Refuses to begin what does not fit on the disk.

    Raises:
        StorageError: The disk of the folder above has less free than that, and some to spare.
    """
    with guarded("look at the disk of", target.parent):
        free = shutil.disk_usage(target.parent).free
    if free < size + _SPARE_BYTES:
        raise StorageError(
            f"{target} needs {size / 1e9:.2f} GB, and its disk has {free / 1e9:.2f} GB free",
            "free some space, or name an --output on another disk",
        )


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else (path,)
    return sum(one.stat().st_size for one in files if one.is_file())
