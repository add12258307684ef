"""Scoring and answering with many adapters in place: groups × questions in one batch.

Takes adapters as rows of weights (`adapter_rows`) and, for each, texts to score or prompts to
answer. Nothing is written to disk or loaded anew, and adapters meet in one pass as in training. A
base model without an adapter is a row of zeros, so that before and after are sums of the same
form.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from aios.backends.chunked_loss import token_logprobs
from aios.backends.encoding import Encoded
from aios.backends.packed_forward import output_head
from aios.backends.trials.grouped_tokens import GroupedTokens
from aios.backends.trials.lora_bank import LoraBank
from aios.core.types import Score


def score_groups(
    bank: LoraBank,
    rows: Sequence[Tensor],
    texts: Sequence[Sequence[Encoded]],
    pass_tokens: int,
) -> list[list[Score]]:
    """Log-probabilities of the label tokens of each text under its group's adapter.

    Args:
        bank: The bank; must be installed.
        rows: One adapter a group, ``[P]``.
        texts: For each group its texts; may be empty.
        pass_tokens: Most tokens of a pass; a longer text goes alone.

    Returns:
        For each group its texts' scores. A log-probability may be NaN: who reads it checks.
    """
    scores: list[list[Score]] = [[] for _ in rows]
    head = output_head(bank.model)
    for part in _passes(texts, pass_tokens):
        groups = [group for group, _ in part]
        bank.load([rows[group] for group in groups])
        tokens = GroupedTokens.of([members for _, members in part], bank.device)
        with torch.inference_mode():
            hidden = bank.hidden_states(tokens)[tokens.predicting]
            logprobs, likeliest = token_logprobs(hidden, head, tokens.targets)
        owners = [group for group, members in part for _ in members]
        for sequence, score in enumerate(_by_sequence(tokens, logprobs, likeliest, len(owners))):
            scores[owners[sequence]].append(score)
    return scores


def _passes(
    texts: Sequence[Sequence[Encoded]], limit: int
) -> Iterator[list[tuple[int, list[Encoded]]]]:
    """Groups with some of their texts, in order, so that no pass has more tokens than `limit`."""
    part: list[tuple[int, list[Encoded]]] = []
    filled = 0
    for group, members in enumerate(texts):
        for text in members:
            if part and filled + len(text.ids) > limit:
                yield part
                part, filled = [], 0
            if not part or part[-1][0] != group:
                part.append((group, []))
            part[-1][1].append(text)
            filled += len(text.ids)
    if part:
        yield part


def _by_sequence(
    tokens: GroupedTokens, logprobs: Tensor, likeliest: Tensor, count: int
) -> Iterator[Score]:
    """The score of each sequence, in order."""
    exact = logprobs.double()
    sums = torch.zeros(count, dtype=exact.dtype, device=exact.device)
    sums.index_add_(0, tokens.owner, exact)
    labels = torch.bincount(tokens.owner, minlength=count)
    hits = torch.bincount(tokens.owner, weights=likeliest.double(), minlength=count)
    for logprob, label, hit in zip(
        sums.cpu().tolist(), labels.cpu().tolist(), hits.cpu().tolist(), strict=True
    ):
        yield Score(logprob, label, hit == label)
