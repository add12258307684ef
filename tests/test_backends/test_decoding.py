"""The decoder: its logits are transformers' own, and what is kept is moved and freed rightly."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Lfm2Config,
    Lfm2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from aios.backends.decoding import Decoder, check_decodable
from aios.backends.decoding_cache import Prompt
from aios.core.errors import ModelError

SIZES: dict[str, Any] = {
    "vocab_size": 90,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 400,
    "initializer_range": 0.3,
}
KINDS: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "all heads": lambda: LlamaForCausalLM(LlamaConfig(**{**SIZES, "num_key_value_heads": 6})),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES)),
    "window": lambda: MistralForCausalLM(MistralConfig(**SIZES, sliding_window=9)),
    "cap": lambda: Gemma2ForCausalLM(
        Gemma2Config(**SIZES, sliding_window=7, attn_logit_softcapping=2.0)
    ),
}


def build(kind: str = "llama") -> Any:
    torch.manual_seed(0)
    return KINDS[kind]().eval()


def tokens(count: int, seed: int = 0) -> list[int]:
    return random.Random(seed).choices(range(90), k=count)


@torch.inference_mode()
def expected(model: Any, ids: list[int]) -> Tensor:
    logits: Tensor = model(torch.tensor([ids]), use_cache=False).logits[0, -1]
    return logits


def close(found: Tensor, wanted: Tensor) -> bool:
    return torch.allclose(found, wanted, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_logits_are_those_of_the_plain_forward_pass(kind: str) -> None:
    model = build(kind)
    decoder = Decoder(model, 4)
    texts: list[list[int]] = []
    for n, length in enumerate((5, 70, 21)):
        ids = tokens(length, n)
        prompt, logits = decoder.read(ids, rows=2)
        assert close(logits, expected(model, ids))
        for _ in range(2):
            decoder.open(prompt)
            texts.append(list(ids))
    for step in range(70):
        chosen = tokens(len(texts), 100 + step)
        logits = decoder.step(chosen)
        for text, token in zip(texts, chosen, strict=True):
            text.append(token)
        if step in (0, 1, 30, 63, 64, 69):
            for row, text in enumerate(texts):
                assert close(logits[row], expected(model, text)), (step, row)


@torch.inference_mode()
def test_completions_come_and_go() -> None:
    model, rng = build(), random.Random(1)
    decoder = Decoder(model, 2)
    texts: list[list[int]] = []
    pending: list[tuple[Prompt, list[int]]] = []
    for step in range(60):
        if rng.random() < 0.4 and len(texts) < 9:
            ids = tokens(rng.randrange(1, 90), step)
            prompt, _ = decoder.read(ids, rows=2)
            pending += [(prompt, list(ids)), (prompt, list(ids))]
        while pending and rng.random() < 0.7:
            prompt, ids = pending.pop(rng.randrange(len(pending)))
            if rng.random() < 0.2:
                decoder.release(prompt)
            else:
                decoder.open(prompt)
                texts.append(ids)
        if not texts:
            continue
        chosen = tokens(len(texts), 1000 + step)
        logits = decoder.step(chosen)
        for row, token in enumerate(chosen):
            texts[row].append(token)
            assert close(logits[row], expected(model, texts[row]))
        while texts and rng.random() < 0.5:
            row = rng.randrange(len(texts))
            decoder.close(row)
            texts[row] = texts[-1]
            texts.pop()
    assert len(decoder.prompts) <= len(texts) + len(pending) + 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_a_common_beginning_is_read_once_and_gives_the_same_numbers(dtype: torch.dtype) -> None:
    model = build().to(dtype)
    opening = tokens(40)
    decoder = Decoder(model, 4)
    first, _ = decoder.read(opening + tokens(9, 1), rows=1)
    decoder.open(first)
    read: list[int] = []
    handle = model.model.register_forward_pre_hook(
        lambda _, args, kwargs: read.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    _, shared = decoder.read(opening + tokens(30, 2), rows=1)
    _, again = decoder.read(opening + tokens(30, 2), rows=1)
    handle.remove()
    _, alone = Decoder(model, 4).read(opening + tokens(30, 2), rows=1)
    assert read == [30, 1]
    assert close(shared.float(), alone.float())
    assert close(again.float(), alone.float())
    if dtype == torch.bfloat16:
        assert torch.equal(shared, alone)


@torch.inference_mode()
def test_prompts_that_nobody_writes_from_are_let_go() -> None:
    decoder = Decoder(build(), 4)
    for n in range(40):
        prompt, _ = decoder.read(tokens(30, n), rows=1)
        decoder.open(prompt)
        decoder.step([3])
        decoder.close(0)
    assert len(decoder.prompts) <= 2
    size = decoder.cache_bytes
    decoder.read(tokens(30, 99), rows=1)
    assert decoder.cache_bytes == size


@torch.inference_mode()
def test_a_model_with_another_state_than_attention_is_refused() -> None:
    small = MambaConfig(vocab_size=90, hidden_size=16, state_size=4, num_hidden_layers=1)
    with pytest.raises(ModelError, match="'mamba' cannot write here"):
        Decoder(MambaForCausalLM(small), 4).read([1, 2], rows=1)


@pytest.mark.parametrize("kind", KINDS)
def test_models_that_are_decoded_rightly_pass_the_check(kind: str) -> None:
    check_decodable(build(kind))
    check_decodable(build(kind).to(torch.bfloat16))


def test_a_model_with_a_state_beside_its_attention_does_not_pass() -> None:
    settings = {**SIZES, "layer_types": ["conv", "full_attention"]}
    settings.pop("head_dim")
    with pytest.raises(ModelError, match="'lfm2' cannot write here: they keep another state"):
        check_decodable(Lfm2ForCausalLM(Lfm2Config(**settings)).eval())


@torch.inference_mode()
def test_the_model_is_left_as_it_was() -> None:
    model = build()
    before = model.config._attn_implementation
    wanted = expected(model, tokens(12))
    decoder = Decoder(model, 4)
    prompt, _ = decoder.read(tokens(12), rows=1)
    decoder.open(prompt)
    decoder.step([1])
    assert model.config._attn_implementation == before
    assert torch.equal(expected(model, tokens(12)), wanted)
