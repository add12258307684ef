from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from aios.backends.encoding import Encoded
from aios.backends.trials.grouped_tokens import GroupedTokens
from aios.backends.trials.packed_attention import _attend, packed_attention
from aios.core.errors import ModelError
from tests.tiny_model import VOCABULARY, build_llama


def _random(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()


@settings(max_examples=25)
@given(
    st.integers(1, 3), st.integers(1, 2), st.integers(1, 3), st.integers(1, 9), st.integers(0, 99)
)
def test_attention_and_its_gradients_are_those_of_torch(
    sequences: int, heads: int, repeats: int, length: int, seed: int
) -> None:
    query = _random(sequences, heads * repeats, length, 4, seed=seed)
    key = _random(sequences, heads, length, 4, seed=seed + 1)
    value = _random(sequences, heads, length, 4, seed=seed + 2)
    upstream = _random(*query.shape, seed=seed + 3).detach()
    out = _attend(query, key, value, 0.3)
    found = torch.autograd.grad(out, (query, key, value), upstream)
    expected = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, is_causal=True, scale=0.3, enable_gqa=True
    )
    torch.testing.assert_close(out, expected, atol=1e-12, rtol=0)
    for one, other in zip(
        found, torch.autograd.grad(expected, (query, key, value), upstream), strict=True
    ):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=0)


@pytest.mark.parametrize("lengths", [[5, 5, 5], [9, 2, 30, 4], [1, 17]])
def test_each_sequence_is_as_alone(lengths: list[int]) -> None:
    model = build_llama().double()
    generator = torch.Generator().manual_seed(3)
    ids = [torch.randint(VOCABULARY, (n,), generator=generator).tolist() for n in lengths]
    tokens = GroupedTokens.of([[Encoded(tuple(i), tuple(i)) for i in ids]], torch.device("cpu"))
    with torch.no_grad(), packed_attention(model):
        states = model.get_decoder()(
            input_ids=tokens.ids, position_ids=tokens.positions, use_cache=False, packed=tokens
        ).last_hidden_state[0]
    start = 0
    for mine in ids:
        with torch.no_grad():
            alone = model.get_decoder()(input_ids=torch.tensor([mine])).last_hidden_state[0]
        torch.testing.assert_close(states[start : start + len(mine)], alone, atol=1e-6, rtol=0)
        start += len(mine)


def test_the_models_own_attention_is_back_afterwards() -> None:
    model = build_llama()
    before = model.config._attn_implementation
    with packed_attention(model):
        assert model.config._attn_implementation != before
    assert model.config._attn_implementation == before


def test_without_a_layout_it_says_what_is_wrong() -> None:
    model = build_llama()
    with packed_attention(model), pytest.raises(ModelError, match="unusual kind"):
        model(input_ids=torch.tensor([[1, 2]]))
