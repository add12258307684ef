"""The chunked loss is the plain cross-entropy, in value and gradient."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy

from aios.backends.chunked_loss import summed_cross_entropy, token_logprobs


def draw(tokens: int, width: int, vocabulary: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, width, generator=generator, dtype=torch.float64)
    head = torch.randn(vocabulary, width, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, vocabulary, (tokens,), generator=generator)
    return hidden, head, labels


def plain(hidden: Tensor, head: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Value and gradient by torch's own loss in float64."""
    hidden = hidden.double().requires_grad_(True)
    loss = cross_entropy(hidden @ head.double().T, labels, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, hidden)
    return loss.detach(), gradient


def ours(hidden: Tensor, head: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    hidden = hidden.clone().requires_grad_(True)
    loss = summed_cross_entropy(hidden, head, labels)
    (gradient,) = torch.autograd.grad(loss, hidden)
    return loss.detach(), gradient


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("tokens", [1, 127, 128, 129, 300])
def test_equals_the_plain_loss_at_the_edges_of_a_chunk(tokens: int, dtype: torch.dtype) -> None:
    hidden, head, labels = draw(tokens, 17, 101, seed=tokens)
    value, gradient = ours(hidden.to(dtype), head.to(dtype), labels)
    wanted_value, wanted_gradient = plain(hidden, head, labels)
    assert value.dtype == dtype
    assert gradient.dtype == dtype
    torch.testing.assert_close(value.double(), wanted_value, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient.double(), wanted_gradient, rtol=1e-4, atol=1e-5)


@settings(max_examples=40)
@given(
    tokens=st.integers(1, 280),
    width=st.integers(1, 9),
    vocabulary=st.integers(1, 40),
    seed=st.integers(0, 2**32),
    scale=st.sampled_from([0.01, 1.0, 30.0]),
)
def test_equals_the_plain_loss_for_any_size_and_scale(
    tokens: int, width: int, vocabulary: int, seed: int, scale: float
) -> None:
    hidden, head, labels = draw(tokens, width, vocabulary, seed)
    hidden, head = (hidden * scale).float(), head.float()
    value, gradient = ours(hidden, head, labels)
    wanted_value, wanted_gradient = plain(hidden, head, labels)
    torch.testing.assert_close(value.double(), wanted_value, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(gradient.double(), wanted_gradient, rtol=1e-3, atol=1e-3)


def test_no_tokens_have_no_loss() -> None:
    hidden, head, _ = draw(0, 4, 5, seed=0)
    value, gradient = ours(hidden.float(), head.float(), torch.empty(0, dtype=torch.long))
    assert value.item() == 0
    assert gradient.shape == (0, 4)


def test_the_gradient_is_scaled_by_what_stands_above_and_stops_at_the_head() -> None:
    hidden, head, labels = draw(5, 4, 7, seed=1)
    hidden = hidden.float().requires_grad_(True)
    head = head.float().requires_grad_(True)
    (summed_cross_entropy(hidden, head, labels) / 5).backward()
    assert hidden.grad is not None
    torch.testing.assert_close(hidden.grad.double(), plain(hidden.detach(), head, labels)[1] / 5)
    assert head.grad is None


def test_half_precision_stays_close() -> None:
    hidden, head, labels = draw(150, 16, 60, seed=2)
    hidden, head = hidden.bfloat16(), head.bfloat16()
    value, gradient = ours(hidden, head, labels)
    wanted_value, wanted_gradient = plain(hidden, head, labels)
    torch.testing.assert_close(value.double(), wanted_value, rtol=1e-2, atol=0)
    torch.testing.assert_close(gradient.double(), wanted_gradient, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("tokens", [0, 1, 128, 200])
def test_log_probabilities_equal_the_log_softmax(tokens: int) -> None:
    hidden, head, labels = draw(tokens, 8, 30, seed=3)
    logits = hidden @ head.T
    labels[::2] = logits[::2].argmax(dim=-1)
    logprobs, likeliest = token_logprobs(hidden.float(), head.float(), labels)
    wanted = logits.log_softmax(dim=-1).gather(1, labels[:, None])[:, 0]
    torch.testing.assert_close(logprobs.double(), wanted, rtol=1e-4, atol=1e-4)
    assert likeliest.tolist() == (logits.argmax(dim=-1) == labels).tolist()


def test_log_probabilities_make_no_gradients() -> None:
    hidden, head, labels = draw(3, 4, 5, seed=4)
    logprobs, _ = token_logprobs(hidden.float().requires_grad_(True), head.float(), labels)
    assert not logprobs.requires_grad
