"""Causal attention over the sequences of a packed row, without a mask.

Handed to a transformers model in place of its own attention for the time of a block. All other
layers work token by token, so they see the packed row, without any padding; only here are its
sequences laid out in buckets of similar length (`grouped_tokens`). Scores are PyTorch's
`scaled_dot_product_attention`, causal, so no mask of N × N is ever made. On a CPU its plain form
is chosen: for sequences of some dozens of tokens the backward pass of the fused one measured six
times slower.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AttentionInterface

from aios.backends.grouped_tokens import GroupedTokens, Padded
from aios.core.errors import ModelError

_NAME = "aios_packed"


class _Unpack(torch.autograd.Function):
    """Rows of ``[N, ...]`` in the places of a padded view, ``[M, ...]``; and back for gradients.

    Each token has one place, so the gradient is gathered too: nothing is added up.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, view: Padded) -> Tensor:
        ctx.view = view
        return x.index_select(0, view.index)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        return upstream[0].index_select(0, ctx.view.inverse), None


class _Repack(torch.autograd.Function):
    """The other way: places of tokens taken from ``[M, ...]`` into ``[N, ...]``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, view: Padded) -> Tensor:
        ctx.view = view
        return x.index_select(0, view.inverse)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        gradient = upstream[0].index_select(0, ctx.view.index)
        return gradient.index_fill_(0, ctx.view.padding, 0), None


def attend_packed(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    packed: GroupedTokens | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it: ``[1, heads, N, d]`` in, ``[1, N, heads, d]`` out."""
    if packed is None or s_aux is not None or softcap is not None:
        raise unsupported(module, "their attention is of an unusual kind")
    if sliding_window is not None and any(length > sliding_window for _, length in packed.buckets):
        raise unsupported(module, f"they see {sliding_window} tokens only, and a text is longer")
    rows = [x[0].transpose(0, 1) for x in (query, key, value)]  # [N, heads, d]
    if packed.unpacked is not None:
        rows = [_Unpack.apply(x, packed.unpacked) for x in rows]
    parts = []
    start = 0
    for count, length in packed.buckets:
        q, k, v = (
            x[start : start + count * length].unflatten(0, (count, length)).transpose(1, 2)
            for x in rows
        )
        mixed = torch.nn.functional.scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=scaling, enable_gqa=q.shape[1] != k.shape[1]
        )
        parts.append(mixed.transpose(1, 2).flatten(0, 1))
        start += count * length
    out = parts[0] if len(parts) == 1 else torch.cat(parts)
    if packed.unpacked is not None:
        out = _Repack.apply(out, packed.unpacked)
    return out[None], None


AttentionInterface.register(_NAME, attend_packed)


@contextmanager
def packed_attention(model: Any) -> Iterator[None]:
    """The model with this attention for the time of a block; transformers makes no mask for it.

    Raises:
        ModelError: The model has an attention of its own.
    """
    if not getattr(model, "_supports_attention_backend", False):
        raise unsupported(model, "they bring an attention of their own")
    config = model.config.get_text_config()
    before = config._attn_implementation
    config._attn_implementation = _NAME
    plain = model.device.type == "cpu"
    try:
        with sdpa_kernel(SDPBackend.MATH) if plain else nullcontext():
            yield
    finally:
        config._attn_implementation = before


def unsupported(model: Any, reason: str) -> ModelError:
    """The error for a model that the trial engine cannot train, and why."""
    kind = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    return ModelError(
        f"models of type {kind!r} cannot be trained many at once: {reason}",
        "use a model of another type, such as Llama, Qwen, Mistral or SmolLM",
    )
