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


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head: Tensor, labels: Tensor, weights: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        gradient = torch.empty_like(hidden)
        exact = torch.promote_types(hidden.dtype, torch.float32)
        losses = torch.empty(len(labels), dtype=exact, device=hidden.device)
        for start in range(0, hidden.shape[0], _CHUNK):
            part = slice(start, start + _CHUNK)
            targets = labels[part, None]
            logits = (hidden[part] @ head.T).to(exact)
            normaliser = torch.logsumexp(logits, dim=-1, keepdim=True)
            losses[part] = (normaliser - logits.gather(1, targets))[:, 0]
            probabilities = logits.sub_(normaliser).exp_()
            probabilities.scatter_add_(1, targets, torch.full_like(normaliser, -1.0))
            if weights is not None:
                probabilities.mul_(weights[part, None])
            gradient[part] = probabilities.to(head.dtype) @ head
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(losses)
        return (losses if weights is None else losses * weights).sum(), losses

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream[0].to(gradient.dtype), None, None, None


def summed_cross_entropy(hidden: Tensor, head: Tensor, labels: Tensor) -> Tensor:
    """Sum over tokens of the negative log-likelihood of `labels`.

    Args:
        hidden: Last hidden states, ``[T, d]``; gradients flow to it.
        head: The frozen output embedding, ``[V, d]``; gets no gradient.
        labels: The tokens to predict, ``[T]``, each in ``[0, V)``.

    Returns:
        A scalar (nats), float32 at least.
    """
    total: Tensor = _CrossEntropy.apply(hidden, head, labels, None)[0]
    return total


def weighted_cross_entropy(
    hidden: Tensor, head: Tensor, labels: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """Weighted sum over tokens of the negative log-likelihood of `labels`.

    Args:
        hidden: Last hidden states, ``[T, d]``; gradients flow to it.
        head: The frozen output embedding, ``[V, d]``; gets no gradient.
        labels: The tokens to predict, ``[T]``, each in ``[0, V)``.
        weights: ``[T]``.

    Returns:
        The sum, a scalar (nats), and each token's own loss without its weight, ``[T]``, which
        carries no gradient; float32 at least.
    """
    total, losses = _CrossEntropy.apply(hidden, head, labels, weights)
    return total, losses


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
