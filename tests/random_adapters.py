"""Adapters with random weights for the tiny model, on disk in PEFT layout."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file

from aios.backends.adapter_files import adapter_ref, plain_config
from aios.core.files import atomic_write_json
from aios.core.types import AdapterRef
from tests.tiny_model import build_llama


def write_random_adapter(
    folder: Path, base_digest: str, *, seed: int = 0, scale: float = 0.1, **config: Any
) -> AdapterRef:
    """An adapter that changes what is written: A and B are both drawn, by the seed."""
    settings = LoraConfig(
        **{"r": 4, "lora_alpha": 8, "target_modules": "all-linear", **config},
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():  # PEFT asks transformers by an old name
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
        model = get_peft_model(build_llama(), settings)
    generator = torch.Generator().manual_seed(seed)
    weights = {
        name: torch.randn(tensor.shape, generator=generator) * scale
        for name, tensor in get_peft_model_state_dict(model, save_embedding_layers=False).items()
    }
    folder.mkdir(parents=True)
    save_file(weights, folder / "adapter_model.safetensors")
    atomic_write_json(
        folder / "adapter_config.json", plain_config(model.peft_config["default"], "tiny")
    )
    return adapter_ref(folder, base_digest)
