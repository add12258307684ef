"""How much memory many trainings take, and how many of them fit.

Counted before the start: each training keeps its weights and AdamW's two moments; a pass has the
weights and gradients of those that take part, and the activations of its tokens. What is counted
is checked against measurements in the benchmarks (``make bench-trial-costs``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import psutil
import torch

from aios.backends.trials.lora_bank import LoraBank

_SHARE = 0.8  # of the memory that is free; the rest is for what is not counted
_LOGIT_TOKENS = 128  # of the chunked loss
_GROUPS = {"cuda": 64}  # more do not make a pass larger, so they gain nothing
_PASS_TOKENS = {"cuda": 16384}
_CPU_GROUPS = 16
_CPU_PASS_TOKENS = 1024


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Trainings at a time, and what they take.

    Attributes:
        groups: Trainings kept at a time.
        pass_tokens: Most tokens of a pass.
        training_bytes: Memory of each training.
        pass_bytes: Memory of a pass.
    """

    groups: int
    pass_tokens: int
    training_bytes: int
    pass_bytes: int


def plan_memory(
    bank: LoraBank, *, groups: int | None = None, pass_tokens: int | None = None
) -> MemoryPlan:
    """The most trainings that fit, at least one.

    Args:
        bank: An empty bank of the adapters' shape.
        groups: Most trainings at a time; by default as many as are of use on the device.
        pass_tokens: Most tokens of a pass; by default what keeps the device busy.
    """
    kind = bank.device.type
    groups = groups or _GROUPS.get(kind, _CPU_GROUPS)
    tokens = pass_tokens or _PASS_TOKENS.get(kind, _CPU_PASS_TOKENS)
    exact, small = bank.exact.itemsize, bank.dtype.itemsize
    training = 3 * exact * bank.length
    free = int(free_memory(bank.device) * _SHARE)
    activations = tokens * activation_bytes(bank.model, bank.dtype)
    member = (exact + small) * bank.length  # of a pass
    fitting = (free - activations) // (training + member)
    groups = max(1, min(groups, fitting))
    return MemoryPlan(groups, tokens, training, activations + groups * member)


def activation_bytes(model: Any, dtype: torch.dtype) -> int:
    """Bytes that a token takes until the backward pass has gone by, in all layers (estimate).

    A decoder layer keeps about fourteen tensors of the hidden size (norms in float32 among them)
    and five of the inner size; the loss has a chunk of logits in float32, twice.
    """
    config = model.config.get_text_config()
    hidden, inner = config.hidden_size, getattr(config, "intermediate_size", 4 * config.hidden_size)
    kept = config.num_hidden_layers * (18 * hidden + 5 * inner) * dtype.itemsize
    logits = 2 * 4 * config.vocab_size * _LOGIT_TOKENS // _CPU_PASS_TOKENS
    return int(kept + logits)


def free_memory(device: torch.device) -> int:
    """Bytes that can still be taken on a device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)
