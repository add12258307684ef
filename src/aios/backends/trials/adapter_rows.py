"""An adapter as one row of numbers: how it begins, and how it becomes a PEFT folder.

The row holds, for each linear layer in the model's order, A ``[in, r]`` and B ``[r, out]``
(`lora_bank`). PEFT keeps both transposed, one tensor a layer.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from safetensors.torch import save
from torch import Tensor

from aios.backends.adapter_files import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    adapter_ref,
    plain_config,
)
from aios.backends.trials.lora_bank import LoraBank
from aios.core.files import atomic_write_bytes, atomic_write_json, guarded
from aios.core.seeds import derive
from aios.core.types import AdapterRef

_PREFIX = "base_model.model."
_KEPT = 3


class InitialRows:
    """The weights that trainings begin with, ``[P]``, as PEFT draws them for the same seed.

    A is uniform (Kaiming, a = √5), B is 0. PEFT makes each pair as two linear layers, which draw
    weights of their own first; so do we, that the same numbers come out. The last few seeds are
    kept, since candidates that are compared begin alike.

    Args:
        bank: A bank of the adapters' shape.
    """

    def __init__(self, bank: LoraBank) -> None:
        self._bank = bank
        self._kept: OrderedDict[int, Tensor] = OrderedDict()

    def __call__(self, seed: int) -> Tensor:
        """A copy of the row for a seed, on the bank's device."""
        if seed not in self._kept:
            self._kept[seed] = self._draw(seed)
            if len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(seed)
        return self._kept[seed].clone()

    def _draw(self, seed: int) -> Tensor:
        bank = self._bank
        row = torch.zeros(bank.length, dtype=bank.exact)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(seed, "adapter"))
            for site in bank.sites:
                a = torch.empty(bank.rank, site.inputs)
                b = torch.empty(site.outputs, bank.rank)
                for drawn in (a, b, a):
                    torch.nn.init.kaiming_uniform_(drawn, a=math.sqrt(5))
                row[site.start : site.start + a.numel()] = a.T.reshape(-1)
        return row.to(bank.device)


def peft_weights(bank: LoraBank, row: Tensor) -> dict[str, Tensor]:
    """A row as tensors by the names that PEFT gives them in files, float32."""
    tensors = {}
    for site in bank.sites:
        a, b = bank.views(row[None], site, 1)
        for kind, matrix in (("A", a[0]), ("B", b[0])):
            name = f"{_PREFIX}{site.name}.lora_{kind}.weight"
            tensors[name] = matrix.T.to("cpu", torch.float32).contiguous()
    return tensors


def row_of(bank: LoraBank, weights: dict[str, Tensor]) -> Tensor:
    """The row of tensors by PEFT's names.

    Raises:
        KeyError: A tensor is missing.
        RuntimeError: A tensor has another shape.
    """
    row = torch.empty(bank.length, dtype=bank.exact, device=bank.device)
    for site in bank.sites:
        a, b = bank.views(row[None], site, 1)
        a[0] = weights[f"{_PREFIX}{site.name}.lora_A.weight"].T
        b[0] = weights[f"{_PREFIX}{site.name}.lora_B.weight"].T
    return row


def peft_config(bank: LoraBank, base_name: str) -> dict[str, Any]:
    """The content of the row's ``adapter_config.json``."""
    trunk = bank.trunk_layers
    config = LoraConfig(
        r=bank.rank,
        lora_alpha=bank.alpha,
        target_modules=_targets([site.name for site in bank.sites], full_names=bool(trunk)),
        task_type="CAUSAL_LM",
    )
    return plain_config(config, base_name)


def _targets(names: Sequence[str], *, full_names: bool) -> list[str]:
    """What PEFT is told to adapt: the layers' last names, or whole names where some have none."""
    return sorted(names if full_names else {name.rpartition(".")[2] for name in names})


def export_row(
    bank: LoraBank, row: Tensor, folder: Path, *, base_name: str, base_digest: str
) -> AdapterRef:
    """Writes an adapter in PEFT layout; weights first, so that a folder with a config is whole.

    Raises:
        StorageError: The disk is full or cannot be written.
    """
    with guarded("make", folder):
        folder.mkdir(parents=True, exist_ok=True)
    atomic_write_bytes(folder / ADAPTER_WEIGHTS, save(peft_weights(bank, row)))
    atomic_write_json(folder / ADAPTER_CONFIG, peft_config(bank, base_name))
    return adapter_ref(folder, base_digest)
