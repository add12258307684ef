"""Incremental decoding with one cache for a prompt and one for each of its completions.

Takes prompts as tokens, then a next token for each completion; gives logits. A prompt is read
once, whatever the number of completions written from it: its keys and values are kept once a
prompt, and those of the tokens written since once a completion. Attention multiplies all queries
of a prompt's completions with its keys at once, adds each completion's own keys, and takes one
softmax over both (the split of Hydragen, Juravsky et al. 2024, arXiv 2402.05099, without its
second softmax). Completions come and go between steps, so a finished one is replaced at once and
nothing is padded to the longest.

The model itself is transformers': only its attention is ours, handed in through transformers'
interface for attention functions.

A completion's logits do not depend on what else is in the batch as long as the device's matrix
product gives each row the same sums whatever the other rows. bfloat16 on CPUs was found to do so;
float32 only with enough rows, so a step always multiplies a multiple of `_ROWS` of them. Lengths
are padded to multiples of `_LENGTHS` with zeros, which change no sum. On a GPU none of this is
promised.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface

from aios.backends.attention_choice import attention_named
from aios.core.errors import ModelError

_NAME = "aios_incremental"
_ROWS = 16
_LENGTHS = 64
_EXACT = 1e-3  # largest difference relative to the largest logit, in float32
_COARSE = 5e-2  # the same in half precision
_QUERIES = 256  # prompt tokens whose attention is computed at once: bounds the scores' memory


@dataclass(eq=False, slots=True)
class Prompt:
    """A prompt that has been read.

    Attributes:
        tokens: Its tokens.
        slot: Where its keys and values are.
        rows: Completions that are, or will be, written from it.
    """

    tokens: tuple[int, ...]
    slot: int
    rows: int


@dataclass(eq=False, slots=True)
class Slot:
    """A completion's place in the batch; `written` tokens of it have been read."""

    prompt: Prompt
    written: int = 0


@dataclass(slots=True)
class _Layer:
    """Keys ``[places, heads, d, length]`` and values ``[places, heads, length, d]`` of a layer."""

    keys: Tensor
    values: Tensor

    @classmethod
    def make(cls, places: int, length: int, key: Tensor, value: Tensor) -> _Layer:
        """Zeros, for keys and values like these (``[1, heads, length, d]``)."""
        heads = key.shape[1]
        return cls(
            key.new_zeros(places, heads, key.shape[-1], length),
            value.new_zeros(places, heads, length, value.shape[-1]),
        )

    def grow(self, places: int, length: int) -> None:
        """Makes room, keeping what is there."""
        old_places, heads, width, old_length = self.keys.shape
        keys = self.keys.new_zeros(places, heads, width, length)
        keys[:old_places, :, :, :old_length] = self.keys
        values = self.values.new_zeros(places, heads, length, self.values.shape[-1])
        values[:old_places, :, :old_length] = self.values
        self.keys, self.values = keys, values

    def move(self, source: int, target: int, length: int) -> None:
        self.keys[target, :, :, :length] = self.keys[source, :, :, :length]
        self.values[target, :, :length] = self.values[source, :, :length]


@dataclass(slots=True)
class _Store:
    """The layers' keys and values for one sort of place: prompts, or completions."""

    places: int
    length: int
    layers: dict[int, _Layer] = field(default_factory=dict)

    def layer(self, index: int, key: Tensor, value: Tensor) -> _Layer:
        if index not in self.layers:
            self.layers[index] = _Layer.make(self.places, self.length, key, value)
        return self.layers[index]

    def reserve(self, places: int, length: int) -> None:
        """Makes room for so many places of so many tokens."""
        if places <= self.places and length <= self.length:
            return
        if places > self.places:
            self.places = max(places, self.places + self.places // 2)
        if length > self.length:
            self.length = _padded(max(length, self.length + self.length // 2))
        for layer in self.layers.values():
            layer.grow(self.places, self.length)

    def move(self, source: int, target: int, length: int) -> None:
        if source != target:
            for layer in self.layers.values():
                layer.move(source, target, length)

    @property
    def bytes(self) -> int:
        """Memory that it takes."""
        return sum(
            t.numel() * t.element_size() for x in self.layers.values() for t in (x.keys, x.values)
        )


class Decoder:
    """The keys and values of a batch of completions, and the forward passes over it.

    Args:
        model: A transformers causal language model.
        rows: Completions expected at a time; more make it grow.

    Attributes:
        slots: The completions in the batch, in the order of the logits' rows.
        prompts: The prompts whose keys and values are kept.
    """

    def __init__(self, model: Any, rows: int) -> None:
        if not getattr(model, "_supports_attention_backend", False):
            raise _unsupported(model, "they bring an attention of their own")
        self._model = model
        self._device: torch.device = model.device
        self._prompt_store = _Store(4, _LENGTHS)
        self._own_store = _Store(_padded(rows, _ROWS), _LENGTHS)
        self.slots: list[Slot] = []
        self.prompts: list[Prompt] = []
        self._layout: _Layout | None = None

    @property
    def cache_bytes(self) -> int:
        """Memory of all keys and values."""
        return self._prompt_store.bytes + self._own_store.bytes

    def read(self, tokens: Sequence[int], *, rows: int) -> tuple[Prompt, Tensor]:
        """Reads a prompt for so many completions; gives the logits of what follows it, ``[V]``.

        What it shares with the beginning of a prompt that is kept is copied from there.
        """
        wanted = tuple(tokens)
        self._drop_unused_prompts()
        known, shared = self._best_prefix(wanted)
        prompt = Prompt(wanted, len(self.prompts), rows)
        self._prompt_store.reserve(len(self.prompts) + 1, len(wanted))
        self.prompts.append(prompt)
        if known is not None and shared:
            self._prompt_store.move(known.slot, prompt.slot, shared)
        rest = torch.tensor([wanted[shared:]], device=self._device)
        positions = torch.arange(shared, len(wanted), device=self._device)[None]
        state = _Reading(self._prompt_store, prompt.slot, shared, len(wanted))
        logits = self._forward(rest, positions, state)
        return prompt, logits[0, -1]

    def open(self, prompt: Prompt) -> None:
        """Gives a completion of a prompt the place after the last one."""
        self.slots.append(Slot(prompt))
        self._own_store.reserve(len(self.slots), 1)
        self._layout = None

    def close(self, place: int) -> None:
        """Gives a completion's place to the last one."""
        slot, last = self.slots[place], self.slots[-1]
        self._own_store.move(len(self.slots) - 1, place, last.written)
        self.slots[place] = last
        self.slots.pop()
        self.release(slot.prompt)
        self._layout = None

    def release(self, prompt: Prompt) -> None:
        """Says that one completion fewer will be written; after the last the prompt may go."""
        prompt.rows -= 1

    def step(self, tokens: Sequence[int]) -> Tensor:
        """Reads one token for each slot, in order; logits of what follows, ``[rows, V]``.

        There are at least as many rows as slots: a multiple of `_ROWS`, the rest without meaning.
        """
        self._own_store.reserve(len(self.slots), max(slot.written for slot in self.slots) + 1)
        if self._layout is None:
            self._layout = _Layout.of(self.slots, self._device)
        state = _Writing(self._prompt_store, self._own_store, self._layout, self.slots)
        padding = [0] * (_padded(len(tokens), _ROWS) - len(tokens))
        ids = torch.tensor([*tokens, *padding], device=self._device)[:, None]
        where = [len(slot.prompt.tokens) + slot.written for slot in self.slots]
        positions = torch.tensor([*where, *padding], device=self._device)[:, None]
        logits = self._forward(ids, positions, state)
        for slot in self.slots:
            slot.written += 1
        return logits[:, -1]

    def _forward(self, ids: Tensor, positions: Tensor, state: _Reading | _Writing) -> Tensor:
        with attention_named(self._model, _NAME):
            out = self._model(
                input_ids=ids,
                position_ids=positions,
                use_cache=False,
                logits_to_keep=1,
                incremental=state,
            )
        if not state.used:
            raise _unsupported(self._model, "their attention is not transformers'")
        logits: Tensor = out.logits
        return logits

    def _best_prefix(self, tokens: tuple[int, ...]) -> tuple[Prompt | None, int]:
        """The kept prompt with the longest common beginning; at least one token stays unread."""
        best, length = None, 0
        for prompt in self.prompts:
            same = 0
            for a, b in zip(prompt.tokens, tokens[:-1], strict=False):
                if a != b:
                    break
                same += 1
            if same > length:
                best, length = prompt, same
        return best, length

    def _drop_unused_prompts(self) -> None:
        """Frees the places of prompts without completions; the last read stays for its prefix."""
        newest = self.prompts[-1] if self.prompts else None
        keep = [p for p in self.prompts if p.rows or p is newest]
        for target, prompt in enumerate(keep):
            self._prompt_store.move(prompt.slot, target, len(prompt.tokens))
            if prompt.slot != target:
                prompt.slot, self._layout = target, None
        self.prompts = keep


@torch.inference_mode()
def check_decodable(model: Any) -> None:
    """Compares a few decoded tokens with the model's own forward pass.

    A model may keep more than the keys and values that we keep (a convolution's state, say), which
    nothing but the numbers shows. One whose logits are not finite passes: who writes is told.

    Raises:
        ModelError: The logits are others, or the attention is not transformers' own.
    """
    vocabulary = model.get_input_embeddings().num_embeddings
    tokens = [17 * i % vocabulary for i in range(1, 10)]
    ids = torch.tensor([tokens], device=model.device)
    expected = model(input_ids=ids, use_cache=False).logits[0, -1].float()
    if not bool(torch.isfinite(expected).all()):
        return
    decoder = Decoder(model, 1)
    prompt, logits = decoder.read(tokens[:5], rows=1)
    decoder.open(prompt)
    for token in tokens[5:]:
        logits = decoder.step([token])[0]
    tolerance = _EXACT if logits.dtype == torch.float32 else _COARSE
    difference = (logits.float() - expected).abs().max()
    if not bool(difference <= tolerance * expected.abs().max()):
        raise _unsupported(model, "they keep another state than that of attention")


def _unsupported(model: Any, reason: str) -> ModelError:
    kind = getattr(model.config, "model_type", type(model).__name__)
    return ModelError(
        f"models of type {kind!r} cannot write here: {reason}",
        "use a model of another type, such as Llama, Qwen, Mistral or SmolLM",
    )


@dataclass(slots=True)
class _Layout:
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
    def of(cls, slots: Sequence[Slot], device: torch.device) -> _Layout:
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


class _Reading:
    """Attention while a prompt's tokens from `start` on are read."""

    def __init__(self, store: _Store, slot: int, start: int, end: int) -> None:
        self._store, self._slot, self._start, self._end = store, slot, start, end
        self.used = False

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, how: _How) -> Tensor:
        """``query`` is ``[1, query heads, T, d]``; gives ``[1, T, query heads, d]``."""
        self.used = True
        kept = self._store.layer(layer, key, value)
        kept.keys[self._slot, :, :, self._start : self._end] = key[0].transpose(1, 2)
        kept.values[self._slot, :, self._start : self._end] = value[0]
        length = _padded(self._end)
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


class _Writing:
    """Attention while one token of each completion is read."""

    def __init__(
        self, prompts: _Store, own: _Store, layout: _Layout, slots: Sequence[Slot]
    ) -> None:
        self._prompts, self._own, self._layout = prompts, own, layout
        device = layout.places.device
        self._written = torch.tensor([slot.written for slot in slots], device=device)
        self._rows = torch.arange(len(slots), device=device)
        self._own_length = _padded(max(slot.written for slot in slots) + 1)
        self._prompt_length = _padded(layout.longest)
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


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    incremental: _Reading | _Writing | None = None,
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


AttentionInterface.register(_NAME, _attention)


def _visible(position: Tensor, at: Tensor, window: int | None) -> Tensor:
    """0 where a token at `at` sees a position, −∞ where it does not."""
    seen = position <= at
    if window is not None:
        seen = seen & (position > at - window)
    return torch.zeros((), device=position.device).where(seen, -torch.inf)


def _padded(length: int, multiple: int = _LENGTHS) -> int:
    return -(-length // multiple) * multiple
