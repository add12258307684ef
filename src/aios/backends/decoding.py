"""Incremental decoding with one cache for a prompt and one for each of its completions.

Takes prompts as tokens, then a next token for each completion; gives logits. A prompt is read
once, whatever the number of completions written from it (`decoding_cache`). Completions come and
go between steps, so a finished one is replaced at once. The model itself is transformers': only
its attention is ours (`decoding_attention`).

A completion's logits do not depend on what else is in the batch as long as the device's matrix
product gives each row the same sums whatever the other rows. bfloat16 on CPUs was found to do so;
float32 only with enough rows, so a step always multiplies a multiple of `ROWS` of them. Lengths
are padded with zeros, which change no sum. On a GPU none of this is promised.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from aios.backends.attention_choice import attention_named
from aios.backends.decoding_attention import NAME, Layout, Reading, Writing
from aios.backends.decoding_cache import LENGTHS, Block, KeyValueCache, Prompt, Slot, padded
from aios.core.errors import ModelError

ROWS = 16
_EXACT = 1e-3  # largest difference relative to the largest logit, in float32
_COARSE = 5e-2  # the same in half precision


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
        self._prompt_store = KeyValueCache(4, LENGTHS)
        self._own_store = KeyValueCache(padded(rows, ROWS), LENGTHS)
        self.slots: list[Slot] = []
        self.prompts: list[Prompt] = []
        self._layout: Layout | None = None

    @property
    def cache_bytes(self) -> int:
        """Memory of all keys and values."""
        return self._prompt_store.bytes + self._own_store.bytes

    def read(self, tokens: Sequence[int], *, rows: int) -> tuple[Prompt, Tensor]:
        """Reads a prompt for so many completions; gives the logits of what follows it, ``[V]``.

        What it shares with the beginning of a prompt that is kept is copied from there.
        """
        prompt = self.begin(tokens, rows=rows)
        known, shared = self._best_prefix(prompt)
        if known is not None and shared:
            self._prompt_store.move(known.slot, prompt.slot, shared)
            prompt.read = shared
        return prompt, self.read_on(prompt, len(prompt.tokens))

    def begin(self, tokens: Sequence[int], *, rows: int) -> Prompt:
        """Gives a prompt a place for so many completions; nothing of it is read yet."""
        self._drop_unused_prompts()
        self._prompt_store.reserve(len(self.prompts) + 1, len(tokens))
        prompt = Prompt(tuple(tokens), len(self.prompts), rows)
        self.prompts.append(prompt)
        return prompt

    def read_on(self, prompt: Prompt, end: int) -> Tensor:
        """Reads a prompt's tokens up to `end`; gives the logits of what follows, ``[V]``."""
        start = prompt.read
        rest = torch.tensor([prompt.tokens[start:end]], device=self._device)
        positions = torch.arange(start, end, device=self._device)[None]
        state = Reading(self._prompt_store, prompt.slot, start, end)
        logits = self._forward(rest, positions, state)
        prompt.read = end
        return logits[0, -1]

    def copy_out(self, prompt: Prompt, start: int, end: int) -> Block:
        """A copy of the keys and values of a part of a prompt that has been read."""
        return self._prompt_store.copy_out(prompt.slot, start, end)

    def copy_in(self, prompt: Prompt, block: Block) -> None:
        """Takes the next tokens of a prompt as read: their keys and values are these."""
        prompt.read = self._prompt_store.copy_in(prompt.slot, prompt.read, block)

    def open(self, prompt: Prompt) -> None:
        """Gives a completion of a prompt the place after the last one."""
        self.slots.append(Slot(prompt))
        self._own_store.reserve(len(self.slots), 1)
        self._layout = None

    def close(self, place: int, *, wipe: bool = False) -> None:
        """Gives a completion's place to the last one.

        Args:
            place: Which.
            wipe: Whether what it leaves behind is not finite, and must go: it would be multiplied
                with 0 where another's is shorter.
        """
        slot, last = self.slots[place], self.slots[-1]
        if wipe:
            self._own_store.wipe(place)
        self._own_store.move(len(self.slots) - 1, place, last.written)
        self.slots[place] = last
        self.slots.pop()
        self.release(slot.prompt, wipe=wipe)
        self._layout = None

    def release(self, prompt: Prompt, *, wipe: bool = False) -> None:
        """Says that one completion fewer will be written; after the last the prompt may go."""
        prompt.rows -= 1
        if wipe:
            self._prompt_store.wipe(prompt.slot)
            prompt.read = 0

    def step(self, tokens: Sequence[int]) -> Tensor:
        """Reads one token for each slot, in order; logits of what follows, ``[rows, V]``.

        There are at least as many rows as slots: a multiple of `ROWS`, the rest without meaning.
        """
        self._own_store.reserve(len(self.slots), max(slot.written for slot in self.slots) + 1)
        if self._layout is None:
            self._layout = Layout.of(self.slots, self._device)
        state = Writing(self._prompt_store, self._own_store, self._layout, self.slots)
        padding = [0] * (padded(len(tokens), ROWS) - len(tokens))
        ids = torch.tensor([*tokens, *padding], device=self._device)[:, None]
        where = [len(slot.prompt.tokens) + slot.written for slot in self.slots]
        positions = torch.tensor([*where, *padding], device=self._device)[:, None]
        logits = self._forward(ids, positions, state)
        for slot in self.slots:
            slot.written += 1
        return logits[:, -1]

    def _forward(self, ids: Tensor, positions: Tensor, state: Reading | Writing) -> Tensor:
        with attention_named(self._model, NAME):
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

    def _best_prefix(self, wanted: Prompt) -> tuple[Prompt | None, int]:
        """The kept prompt with the longest common beginning; at least one token stays unread."""
        best, length = None, 0
        for prompt in self.prompts:
            same = 0
            for a, b in zip(prompt.tokens[: prompt.read], wanted.tokens[:-1], strict=False):
                if a != b:
                    break
                same += 1
            if same > length:
                best, length = prompt, same
        return best, length

    def _drop_unused_prompts(self) -> None:
        """Frees the places of prompts without completions; the last read stays for its prefix.

        Prompts in the last places move into those that have become free.
        """
        newest = self.prompts[-1] if self.prompts else None
        self.prompts = [p for p in self.prompts if p.rows or p is newest]
        free = sorted(set(range(len(self.prompts))) - {p.slot for p in self.prompts})
        for prompt in [p for p in self.prompts if p.slot >= len(self.prompts)]:
            target = free.pop()
            self._prompt_store.move(prompt.slot, target, prompt.read)
            prompt.slot, self._layout = target, None


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
