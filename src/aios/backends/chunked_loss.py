"""Cross-entropy and log-probabilities over a large vocabulary without ever holding all logits.

Logits of T tokens over a vocabulary of 50,000 are by far the largest tensor of a small model's
step. Here they are made a chunk at a time; since the output head is frozen, the gradient by the
hidden states is finished in the same pass and nothing of the chunk has to be kept.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_CHUNK = 128


class _SummedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, labels: Tensor) -> Tensor:
        gradient = torch.empty_like(hidden)
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        for start in range(0, hidden.shape[0], _CHUNK):
            rows = hidden[start : start + _CHUNK]
            targets = labels[start : start + _CHUNK, None]
            logits = (rows @ head.T).float()
            normaliser = torch.logsumexp(logits, dim=-1, keepdim=True)
            total += (normaliser - logits.gather(1, targets)).sum()
            probabilities = logits.sub_(normaliser).exp_()
            probabilities.scatter_add_(1, targets, torch.full_like(normaliser, -1.0))
            gradient[start : start + _CHUNK] = probabilities.to(head.dtype) @ head
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream[0].to(gradient.dtype), None, None


def summed_cross_entropy(hidden: Tensor, head: Tensor, labels: Tensor) -> Tensor:
    """Sum over tokens of the negative log-likelihood of `labels`.

    Args:
        hidden: Last hidden states, ``[T, d]``; gradients flow to it.
        head: The frozen output embedding, ``[V, d]``; gets no gradient.
        labels: The tokens to predict, ``[T]``, each in ``[0, V)``.

    Returns:
        A float32 scalar (nats).
    """
    total: Tensor = _SummedCrossEntropy.apply(hidden, head, labels)
    return total


def token_logprobs(hidden: Tensor, head: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability of each label, and whether it is the most likely token; no gradients.

    Args:
        hidden: Last hidden states, ``[T, d]``.
        head: The output embedding, ``[V, d]``.
        labels: The tokens, ``[T]``, each in ``[0, V)``.

    Returns:
        ``[T]`` float32 (nats) and ``[T]`` bool.
    """
    picked = torch.empty(len(labels), dtype=torch.float32, device=hidden.device)
    likeliest = torch.empty(len(labels), dtype=torch.bool, device=hidden.device)
    with torch.no_grad():
        for start in range(0, len(labels), _CHUNK):
            part = slice(start, start + _CHUNK)
            targets = labels[part]
            logits = (hidden[part] @ head.T).float()
            chosen = logits.gather(1, targets[:, None])[:, 0]
            picked[part] = chosen - torch.logsumexp(logits, dim=-1)
            likeliest[part] = logits.argmax(dim=-1) == targets
    return picked, likeliest
