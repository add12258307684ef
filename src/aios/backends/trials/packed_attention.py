"""Causal attention over the sequences of a packed row, without a mask of N × N.

Handed to a transformers model in place of its own attention for the time of a block. All other
layers work token by token, so they see the packed row, without any padding; only here are its
sequences laid out in buckets of similar length (`grouped_tokens`).

On a GPU, scores are PyTorch's `scaled_dot_product_attention`. On a CPU its fused form has a slow
backward pass for sequences of some dozens of tokens, and its plain form keeps several matrices of
T × T a head until then; so there it is done here, and the weights are computed anew in the
backward pass (Dao et al. 2022, arXiv 2205.14135, appendix B, without the tiles).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface

from aios.backends.attention_choice import attention_named
from aios.backends.trials.grouped_tokens import GroupedTokens, Padded
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


class _PlainAttention(torch.autograd.Function):
    """Causal attention of whole sequences; what is kept for the backward pass is linear in T.

    Axes: S sequences, H heads of keys, R query heads for each of them, T tokens, d.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        q, k, v = _folded(query, key.shape[1]), _folded(key), _folded(value)
        out = torch.bmm(_weights(q, k, scale), v)
        ctx.save_for_backward(query, key, value, out.to(query.dtype))
        ctx.scale = scale
        return out.view(query.shape).to(query.dtype)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        query, key, value, out = ctx.saved_tensors
        heads, scale = key.shape[1], ctx.scale
        q, k, v = _folded(query, heads), _folded(key), _folded(value)
        delta = _folded(upstream[0], heads)
        weights = _weights(q, k, scale)
        by_value = torch.bmm(weights.transpose(1, 2), delta)
        pull = torch.bmm(delta, v.transpose(1, 2))
        pull.sub_((delta * out).sum(-1, keepdim=True)).mul_(weights).mul_(scale)
        by_query = torch.bmm(pull, k).view(query.shape)
        by_key = torch.bmm(pull.transpose(1, 2), q)
        return (
            by_query.to(query.dtype),
            by_key.view(key.shape).to(key.dtype),
            by_value.view(value.shape).to(value.dtype),
            None,
        )


def _folded(x: Tensor, heads: int | None = None) -> Tensor:
    """``[S, H·R, T, d]`` as ``[S·H, R·T, d]``, float32 at least."""
    exact = x.to(torch.promote_types(x.dtype, torch.float32))
    return exact.reshape(x.shape[0] * (heads or x.shape[1]), -1, x.shape[-1])


def _weights(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """Softmax over the tokens that each token may see, ``[S·H, R·T, T]``."""
    length = k.shape[1]
    unseen = torch.full((length, length), -torch.inf, dtype=q.dtype).triu_(1)
    scores = torch.bmm(q, k.transpose(1, 2)).mul_(scale)
    scores.view(len(q), -1, length, length).add_(unseen)
    return scores.softmax(-1)


def _attend(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Causal attention, ``[S, heads, T, d]``, with as many or fewer heads of keys and values."""
    if query.device.type == "cpu":
        out: Tensor = _PlainAttention.apply(query, key, value, scale)
        return out
    return torch.nn.functional.scaled_dot_product_attention(
        query, key, value, is_causal=True, scale=scale, enable_gqa=query.shape[1] != key.shape[1]
    )


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
        mixed = _attend(q, k, v, q.shape[-1] ** -0.5 if scaling is None else scaling)
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
    with attention_named(model, _NAME):
        yield


def unsupported(model: Any, reason: str) -> ModelError:
    """The error for a model that the trial engine cannot train, and why."""
    kind = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    return ModelError(
        f"models of type {kind!r} cannot be trained many at once: {reason}",
        "use a model of another type, such as Llama, Qwen, Mistral or SmolLM",
    )
