"""The attention of incremental decoding, over what `decoding_cache` keeps.

Attention multiplies all queries of a prompt's completions with its keys at once, adds each
completion's own keys, and takes one softmax over both (the split of Hydragen, Juravsky et al.
2024, arXiv 2402.05099, without its second softmax). It is handed to a transformers model through
transformers' interface for attention functions, under the name `NAME`; the decoder gives it its
state with each forward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface

from aios.backends.decoding_cache import KeyValueCache, Slot, padded
from aios.core.errors import ModelError

NAME = "aios_incremental"
_QUERIES = 256  # prompt tokens whose attention is computed at once: bounds the scores' memory


@dataclass(slots=True)
class Layout:
    """Where the rows of a step find their prompt: rows are laid out as prompts × most rows.

    Attributes:
        prompts: Number of prompt places in use.
        most: Most rows of one prompt.
        places: Each row's place in that grid, ``[rows]``.
        lengths: Tokens of each row's prompt, ``[rows]``.
        longest: Tokens of the longest prompt.
    """

    prompts: int
    most: int
    places: Tensor
    lengths: Tensor
    longest: int

    @classmethod
    def of(cls, slots: Sequence[Slot], device: torch.device) -> Layout:
        """The layout of a step with one row for each of the slots."""
        counts: dict[int, int] = {}
        within = []
        for slot in slots:
            within.append(counts.get(slot.prompt.slot, 0))
            counts[slot.prompt.slot] = within[-1] + 1
        most = max(counts.values())
        places = [s.prompt.slot * most + w for s, w in zip(slots, within, strict=True)]
        lengths = [len(slot.prompt.tokens) for slot in slots]
        return cls(
            prompts=max(counts) + 1,
            most=most,
            places=torch.tensor(places, device=device),
            lengths=torch.tensor(lengths, device=device),
            longest=max(lengths),
        )

    def multiply(self, rows: Tensor, kept: Tensor) -> Tensor:
        """Each row times what is kept of its prompt, all rows of a prompt in one product.

        Args:
            rows: ``[rows, heads, group, x]``.
            kept: ``[prompts, heads, x, y]``.

        Returns:
            ``[rows, heads, group, y]``.
        """
        _, heads, group, width = rows.shape
        grid = (self.prompts, self.most)
        laid = rows.new_zeros(self.prompts * self.most, heads, group, width)
        laid[self.places] = rows
        laid = laid.view(*grid, heads, group, width).transpose(1, 2)
        laid = laid.reshape(self.prompts * heads, self.most * group, width)
        product = torch.bmm(laid, kept.flatten(0, 1))
        product = product.view(self.prompts, heads, self.most, group, -1).transpose(1, 2)
        product = product.reshape(self.prompts * self.most, heads, group, -1)
        chosen: Tensor = product[self.places]
        return chosen


class Reading:
    """Attention while a prompt's tokens from `start` on are read."""

    def __init__(self, store: KeyValueCache, slot: int, start: int, end: int) -> None:
        self._store, self._slot, self._start, self._end = store, slot, start, end
        self.used = False

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, how: _How) -> Tensor:
        """``query`` is ``[1, query heads, T, d]``; gives ``[1, T, query heads, d]``."""
        self.used = True
        kept = self._store.layer(layer, key, value)
        kept.keys[self._slot, :, :, self._start : self._end] = key[0].transpose(1, 2)
        kept.values[self._slot, :, self._start : self._end] = value[0]
        length = padded(self._end)
        keys = kept.keys[self._slot, :, :, :length]
        values = kept.values[self._slot, :, :length]
        heads, count, width = keys.shape[0], query.shape[2], query.shape[3]
        parts = []
        for first in range(0, count, _QUERIES):
            part = query[0, :, first : first + _QUERIES]
            at = torch.arange(part.shape[1], device=query.device) + self._start + first
            mask = _visible(torch.arange(length, device=query.device), at[:, None], how.window)
            grouped = part.reshape(heads, -1, width)  # the query heads of a key head in a row
            scores = torch.bmm(grouped, keys).view(heads, -1, part.shape[1], length)
            weights = how.softmax(scores, mask).to(value.dtype)
            mixed = torch.bmm(weights.view(heads, -1, length), values)
            parts.append(mixed.view(query.shape[1], part.shape[1], -1))
        return torch.cat(parts, dim=1).transpose(0, 1)[None]


class Writing:
    """Attention while one token of each completion is read."""

    def __init__(
        self, prompts: KeyValueCache, own: KeyValueCache, layout: Layout, slots: Sequence[Slot]
    ) -> None:
        self._prompts, self._own, self._layout = prompts, own, layout
        device = layout.places.device
        self._written = torch.tensor([slot.written for slot in slots], device=device)
        self._rows = torch.arange(len(slots), device=device)
        self._own_length = padded(max(slot.written for slot in slots) + 1)
        self._prompt_length = padded(layout.longest)
        self._masks: dict[int | None, Tensor] = {}
        self.used = False

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, how: _How) -> Tensor:
        """``query`` is ``[rows, query heads, 1, d]``; gives ``[rows, 1, query heads, d]``."""
        self.used = True
        count, padded = len(self._rows), query.shape[0]
        heads, width, wide = key.shape[1], key.shape[3], value.shape[3]
        own = self._own.layer(layer, key, value)
        own.keys[self._rows, :, :, self._written] = key[:count, :, 0]
        own.values[self._rows, :, self._written] = value[:count, :, 0]
        asked = query[:count, :, 0].reshape(count, heads, -1, width)
        prompts = self._prompts.layers[layer]
        shared_keys = prompts.keys[: self._layout.prompts, :, :, : self._prompt_length]
        shared_scores = self._layout.multiply(asked, shared_keys)
        keys = own.keys[:count, :, :, : self._own_length].flatten(0, 1)
        own_scores = torch.bmm(asked.flatten(0, 1), keys).view(count, heads, -1, self._own_length)
        scores = torch.cat([shared_scores, own_scores], dim=-1)
        weights = how.softmax(scores, self._mask(how.window)).to(value.dtype)
        split = self._prompt_length
        values = own.values[:count, :, : self._own_length].flatten(0, 1)
        mixed = torch.bmm(weights[..., split:].flatten(0, 1), values).view(count, heads, -1, wide)
        shared_values = prompts.values[: self._layout.prompts, :, :split]
        mixed = mixed + self._layout.multiply(weights[..., :split], shared_values)
        out = mixed.reshape(count, 1, -1, wide)
        if padded == count:
            return out
        return torch.cat([out, out.new_zeros(padded - count, *out.shape[1:])])

    def _mask(self, window: int | None) -> Tensor:
        """What each row may not see, as −∞, ``[rows, 1, 1, prompt length + own length]``."""
        if window not in self._masks:
            lengths = self._layout.lengths[:, None]
            device = lengths.device
            at = lengths + self._written[:, None]
            in_prompt = torch.arange(self._prompt_length, device=device)[None]
            own = torch.arange(self._own_length, device=device)[None] + lengths
            seen = torch.cat(
                [
                    _visible(in_prompt, at, window).where(in_prompt < lengths, -torch.inf),
                    _visible(own, at, window),
                ],
                dim=1,
            )
            self._masks[window] = seen[:, None, None]
        return self._masks[window]


@dataclass(frozen=True, slots=True)
class _How:
    """What a model's attention layer asks for besides: scale, window, cap of the scores."""

    scaling: float
    window: int | None
    cap: float | None

    def softmax(self, scores: Tensor, mask: Tensor) -> Tensor:
        """Weights in float32 from raw products and a mask that is added."""
        if self.cap is not None:
            scores = self.cap / self.scaling * torch.tanh(scores.float() * self.scaling / self.cap)
        return torch.softmax(torch.add(mask, scores, alpha=self.scaling), dim=-1)


def attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    incremental: Reading | Writing | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it, over what the decoder keeps."""
    if incremental is None or s_aux is not None:
        raise ModelError(
            f"{type(module).__name__} has an attention that cannot be decoded here",
            "use a model of another type, such as Llama, Qwen, Mistral or SmolLM",
        )
    how = _How(query.shape[-1] ** -0.5 if scaling is None else scaling, sliding_window, softcap)
    return incremental.attend(module.layer_idx, query, key, value, how), None


AttentionInterface.register(NAME, attention)


def _visible(position: Tensor, at: Tensor, window: int | None) -> Tensor:
    """0 where a token at `at` sees a position, −∞ where it does not."""
    seen = position <= at
    if window is not None:
        seen = seen & (position > at - window)
    return torch.zeros((), device=position.device).where(seen, -torch.inf)
