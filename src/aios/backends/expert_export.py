"""Adapters checked against PEFT's rules, and put into the weights of their base model.

Merging computes W + s·B·A for each module that the adapter changes (LoRA, Hu et al. 2021, section
4.1), with s = alpha / r, or alpha / √r for rank-stabilised LoRA. It is done in float32 and rounded
once to the number format of the base weights, one weight file after the other, so memory holds the
largest file and the adapter. No model is loaded and no code of a model's folder is run.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from aios.backends.adapter_files import read_adapter
from aios.backends.model_files.folder import inspect_folder
from aios.core.errors import AdapterMismatchError, ModelError
from aios.core.files import guarded

_PREFIX = "base_model.model."


def check_adapter(folder: Path) -> None:
    """Checks that an adapter can be attached as far as it goes without its base model.

    Raises:
        ModelError: It is of a kind that is not supported, damaged, or holds NaN or infinity.
    """
    _, weights = read_adapter(folder)
    for name, tensor in weights.items():
        if not bool(torch.isfinite(tensor).all()):
            raise ModelError(
                f"the adapter in {folder} holds numbers that are not finite ({name})",
                "train it again, or restore it from a copy",
            )


def merge_adapter(base: Path, adapter: Path, output: Path) -> int:
    """Writes a model folder: the base model's files, with the adapter in the weights.

    Args:
        base: The base model's folder.
        adapter: The adapter's folder.
        output: An empty folder.

    Returns:
        How many weights were changed.

    Raises:
        ModelError: The base model or the adapter is damaged or not supported.
        AdapterMismatchError: The adapter changes modules that the base model does not have.
        StorageError: The folder cannot be written.
    """
    facts = inspect_folder(base)
    config, weights = read_adapter(adapter)
    updates = _updates(config, weights)
    files = [path for path in facts.files if path.suffix == ".safetensors"]
    places = _places(files, updates, adapter)
    for path in facts.files:
        if path not in files:
            with guarded("copy", path):
                shutil.copyfile(path, output / path.name)
    for path in files:
        with guarded("write", output / path.name):
            _merge_file(path, output / path.name, updates, places)
    return len(places)


class _Update:
    """What is added to the weights of one module: s·B·A, in float32, shape [out, in]."""

    def __init__(self, a: Tensor, b: Tensor, scale: float, *, transposed: bool) -> None:
        self.a, self.b, self.scale, self.transposed = a, b, scale, transposed

    def added_to(self, weight: Tensor, name: str) -> Tensor:
        """The weight with the update, in the weight's number format.

        Raises:
            AdapterMismatchError: The shapes differ.
        """
        update = self.scale * (self.b.float() @ self.a.float())
        update = update.T if self.transposed else update
        if update.shape != weight.shape:
            raise AdapterMismatchError(
                f"the adapter changes {name} as {tuple(update.shape)}, and the base model has it "
                f"as {tuple(weight.shape)}",
                "use the base model that the adapter was trained on",
            )
        return (weight.float() + update).to(weight.dtype)


def _updates(config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> dict[str, _Update]:
    """The update of each module, by the module's name in the base model."""
    updates = {}
    for name, a in weights.items():
        module, found, _ = name.removeprefix(_PREFIX).partition(".lora_A.")
        if not found:
            continue
        b = weights.get(name.replace(".lora_A.", ".lora_B."))
        if b is None or a.ndim != 2 or b.ndim != 2:
            raise ModelError(
                f"the adapter's matrices for {module} cannot be merged", "only linear layers can be"
            )
        rank = _by_pattern(config, "rank_pattern", module, config["r"])
        alpha = _by_pattern(config, "alpha_pattern", module, config["lora_alpha"])
        scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
        transposed = bool(config.get("fan_in_fan_out"))
        updates[module] = _Update(a, b, scale, transposed=transposed)
    others = [name for name in weights if ".lora_A." not in name and ".lora_B." not in name]
    if others or not updates:
        raise ModelError(
            f"the adapter cannot be merged: it holds {(others or ['nothing'])[0]}",
            "only plain LoRA on linear layers can be merged",
        )
    return updates


def _by_pattern(config: Mapping[str, Any], key: str, module: str, default: Any) -> Any:
    for name, value in (config.get(key) or {}).items():
        if module == name or module.endswith(f".{name}"):
            return value
    return default


def _places(files: list[Path], updates: Mapping[str, _Update], adapter: Path) -> dict[str, str]:
    """Names of the base weights that change, each with its module.

    Some models are saved without the first part of their modules' names, as GPT-2 is.

    Raises:
        AdapterMismatchError: A module has no weights in these files.
    """
    names: set[str] = set()
    for path in files:
        with _opened(path) as file:
            names.update(file.keys())
    places = {}
    for module in updates:
        choices = (f"{module}.weight", f"{module.partition('.')[2]}.weight")
        found = next((name for name in choices if name in names), None)
        if found is None:
            raise AdapterMismatchError(
                f"the adapter in {adapter} changes {module}, which has no weights of its own in "
                "the base model",
                "use the base model that the adapter was trained on",
            )
        places[found] = module
    return places


def _merge_file(
    path: Path, target: Path, updates: Mapping[str, _Update], places: Mapping[str, str]
) -> None:
    with _opened(path) as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dict
    for name in tensors.keys() & places.keys():
        tensors[name] = updates[places[name]].added_to(tensors[name], name).contiguous()
    save_file(tensors, target, metadata=metadata)


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt", device="cpu")
    except SafetensorError as error:
        raise ModelError(f"{path} is damaged: {error}", "fetch the model again") from error
