"""Greedy answers of many adapters at once: each prompt is gone on with under its group's adapter.

Prompts are read as one packed row (`grouped_tokens`) and their keys and values kept; then each
step reads one token of each answer that is not finished, sorted by group as in training. Answers
are short and all begin together, so there is no queue; finished ones are taken out when they are
half of the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface

from aios.backends.attention_choice import attention_named
from aios.backends.encoding import Encoded
from aios.backends.packed_forward import output_head
from aios.backends.trials.grouped_tokens import GroupedTokens
from aios.backends.trials.lora_bank import LoraBank
from aios.backends.trials.packed_attention import attend_packed, unsupported

_NAME = "aios_banked_answers"


@dataclass(slots=True)
class _Kept:
    """Keys and values of all layers for S sequences, and how many tokens each has so far.

    Attributes:
        lengths: ``[S]``.
        room: Tokens that there is room for.
        layers: By layer, keys and values ``[S, heads, room, d]``.
        prompts: The packed row while the prompts are being read, else None.
    """

    lengths: Tensor
    room: int
    layers: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    prompts: GroupedTokens | None = None

    def keep_prompts(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Takes over ``[1, heads, N, d]`` of a packed row."""
        count = len(self.lengths)
        sequence = torch.repeat_interleave(torch.arange(count, device=key.device), self.lengths)
        assert self.prompts is not None
        at = self.prompts.positions[0]
        shape = (count, key.shape[1], self.room, key.shape[3])
        keys, values = key.new_zeros(shape), value.new_zeros(*shape[:3], value.shape[3])
        keys[sequence, :, at] = key[0].transpose(0, 1)
        values[sequence, :, at] = value[0].transpose(0, 1)
        self.layers[layer] = keys, values

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """One new token a sequence: ``[1, heads, S, d]`` in, ``[1, S, heads, d]`` out."""
        keys, values = self.layers[layer]
        rows = torch.arange(len(self.lengths), device=key.device)
        keys[rows, :, self.lengths] = key[0].transpose(0, 1)
        values[rows, :, self.lengths] = value[0].transpose(0, 1)
        heads = keys.shape[1]
        asked = query[0].transpose(0, 1).unflatten(1, (heads, -1))  # [S, heads, group, d]
        scores = torch.matmul(asked, keys.transpose(2, 3)).float() * scale
        unseen = torch.arange(self.room, device=key.device) > self.lengths[:, None]
        weights = scores.masked_fill_(unseen[:, None, None], -torch.inf).softmax(-1)
        mixed = torch.matmul(weights.to(values.dtype), values)
        return mixed.flatten(1, 2)[None]

    def choose(self, rows: Tensor) -> None:
        """Keeps some of the sequences."""
        self.lengths = self.lengths[rows]
        self.layers = {i: (k[rows], v[rows]) for i, (k, v) in self.layers.items()}


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    kept: _Kept | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it."""
    if kept is None or s_aux is not None or softcap is not None:
        raise unsupported(module, "their attention is of an unusual kind")
    if sliding_window is not None and kept.room > sliding_window:
        raise unsupported(module, f"they see {sliding_window} tokens only, and a text is longer")
    if kept.prompts is None:
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        return kept.attend(module.layer_idx, query, key, value, scale), None
    kept.keep_prompts(module.layer_idx, key, value)
    return attend_packed(module, query, key, value, None, scaling=scaling, packed=kept.prompts)


AttentionInterface.register(_NAME, _attention)


@dataclass(eq=False, slots=True)
class _Answer:
    """An answer in the making."""

    group: int
    number: int
    limit: int
    tokens: list[int]
    finished: bool = False
    broken: bool = False


@torch.inference_mode()
def answer_groups(
    bank: LoraBank,
    rows: Sequence[Tensor],
    prompts: Sequence[Sequence[Sequence[int]]],
    *,
    max_tokens: Sequence[int],
    end_tokens: frozenset[int],
    is_last: Callable[[int], bool],
) -> list[list[list[int]] | None]:
    """Greedy continuations under each group's adapter.

    Args:
        bank: The bank; must be installed.
        rows: One adapter a group, ``[P]``.
        prompts: For each group its prompts, as tokens; none may be empty.
        max_tokens: For each group its longest answer.
        end_tokens: Tokens that end an answer; they are left out.
        is_last: Whether an answer ends with this token, which is kept.

    Returns:
        For each group its prompts' answers, as tokens; None where a logit was not finite.
    """
    answers = [
        _Answer(group, number, max_tokens[group], [])
        for group, mine in enumerate(prompts)
        for number in range(len(mine))
    ]
    encoded = [[Encoded(tuple(p), tuple(p)) for p in mine] for mine in prompts]
    used = [group for group, mine in enumerate(encoded) if mine]
    if answers:
        head = output_head(bank.model)
        tokens = GroupedTokens.of([encoded[group] for group in used], bank.device)
        lengths = torch.tensor([len(s.ids) for g in used for s in encoded[g]], device=bank.device)
        kept = _Kept(lengths, int(lengths.max()) + max(max_tokens), prompts=tokens)
        bank.load([rows[group] for group in used])
        with attention_named(bank.model, _NAME):
            hidden = bank.hidden_states(tokens, kept=kept)
            ends = torch.cumsum(lengths, 0) - 1
            write = _Writer(head, end_tokens, is_last)
            write(answers, hidden[ends])
            kept.prompts = None
            _go_on(bank, rows, answers, kept, write)
    texts: list[list[list[int]]] = [[[] for _ in mine] for mine in prompts]
    for answer in answers:
        texts[answer.group][answer.number] = answer.tokens
    broken = {answer.group for answer in answers if answer.broken}
    return [None if group in broken else mine for group, mine in enumerate(texts)]


def _go_on(
    bank: LoraBank,
    rows: Sequence[Tensor],
    answers: Sequence[_Answer],
    kept: _Kept,
    write: _Writer,
) -> None:
    """Writes the tokens after the first."""
    writing = list(answers)
    while going := [i for i, answer in enumerate(writing) if not answer.finished]:
        if 2 * len(going) <= len(writing):
            kept.choose(torch.tensor(going, device=bank.device))
            writing = [writing[i] for i in going]
            used = sorted({answer.group for answer in writing})
            bank.load([rows[group] for group in used])
        last = [answer.tokens[-1] if answer.tokens else 0 for answer in writing]
        tokens = _one_each(last, kept.lengths, [answer.group for answer in writing])
        hidden = bank.hidden_states(tokens, kept=kept)
        kept.lengths = kept.lengths + 1
        write(writing, hidden)


@dataclass(frozen=True, slots=True)
class _Writer:
    """Appends each answer's likeliest token."""

    head: Tensor
    end_tokens: frozenset[int]
    is_last: Callable[[int], bool]

    def __call__(self, answers: Sequence[_Answer], hidden: Tensor) -> None:
        logits = hidden @ self.head.T
        usable = torch.isfinite(logits).all(-1).tolist()
        for answer, token, finite in zip(answers, logits.argmax(-1).tolist(), usable, strict=True):
            if answer.finished:
                continue
            if not finite:
                answer.finished = answer.broken = True
                continue
            if token not in self.end_tokens:
                answer.tokens.append(token)
            ended = token in self.end_tokens or self.is_last(token)
            answer.finished = ended or len(answer.tokens) >= answer.limit


def _one_each(last: Sequence[int], positions: Tensor, groups: Sequence[int]) -> GroupedTokens:
    """One token of each sequence as grouped tokens."""
    order = sorted(set(groups))
    by_group = [
        [Encoded((t,), (t,)) for t, g in zip(last, groups, strict=True) if g == group]
        for group in order
    ]
    tokens = GroupedTokens.of(by_group, positions.device)
    return replace(tokens, positions=positions[None])
