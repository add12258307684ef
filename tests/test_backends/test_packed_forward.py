"""Which architectures can be scored and trained: those whose own numbers we get, and no others."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import AutoModelForCausalLM

from aios.backends import packed_forward
from aios.backends.packed_forward import examine
from aios.backends.torch_lm import TorchLM
from aios.core.errors import ModelError
from aios.core.types import GenerationRequest, SamplingParams, ScoreRequest
from tests.tiny_model import VOCABULARY, build_llama, build_tokenizer

TOKENIZER = build_tokenizer()
REQUESTS = [
    ScoreRequest("The mill", " at Orvane was built in 1871 by the river, which was wide there."),
    ScoreRequest("", "Its wheel turns twelve stones."),
    ScoreRequest("Stones are", " many"),
]
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "bos_token_id": None,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
OPT = {
    **{k: v for k, v in SIZES.items() if k not in ("intermediate_size", "initializer_range")},
    "ffn_dim": 48,
    "init_std": 0.2,
    "word_embed_proj_dim": 16,
}


def build(config: str, attention: str = "sdpa", **settings: Any) -> Any:
    """A random model of an architecture, named by its configuration class."""
    settings = {**(OPT if config == "OPTConfig" else SIZES), **settings}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return AutoModelForCausalLM.from_config(
            getattr(transformers, config)(**settings), attn_implementation=attention
        )


def plain_logprob(model: Any, request: ScoreRequest) -> float:
    batch = TOKENIZER(request.prompt + request.continuation, return_offsets_mapping=True)
    ids = torch.tensor([batch["input_ids"]])
    with torch.inference_mode():
        logprobs = model(input_ids=ids).logits[0].float().log_softmax(dim=-1)
    return sum(
        float(logprobs[at - 1, ids[0, at]])
        for at, (_, end) in enumerate(batch["offset_mapping"])
        if at > 0 and end > len(request.prompt)
    )


def greedy_text(model: Any, prompt: str, tokens: int) -> str:
    """What the model writes by its plain forward pass, without a cache or padding."""
    ids = torch.tensor([TOKENIZER(prompt)["input_ids"]])
    with torch.inference_mode():
        for _ in range(tokens):
            token = model(input_ids=ids).logits[:, -1].argmax(dim=-1, keepdim=True)
            ids = torch.cat([ids, token], dim=1)
    return str(TOKENIZER.decode(ids[0, -tokens:].tolist(), skip_special_tokens=True))


@pytest.mark.parametrize(
    ("config", "attention", "settings"),
    [
        ("LlamaConfig", "eager", {}),
        ("Qwen2Config", "sdpa", {}),
        (
            "Qwen2Config",
            "sdpa",
            {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
        ),
        ("Qwen3Config", "sdpa", {"head_dim": 8}),
        ("MistralConfig", "sdpa", {"sliding_window": 8}),
        ("GPT2Config", "sdpa", {"n_inner": 48}),
        ("GemmaConfig", "sdpa", {"head_dim": 8}),
        (
            "Gemma3TextConfig",
            "sdpa",
            {
                "head_dim": 8,
                "sliding_window": 8,
                "layer_types": ["sliding_attention", "full_attention"],
            },
        ),
        ("OPTConfig", "sdpa", {}),
    ],
)
def test_scores_and_greedy_texts_are_those_of_the_model_itself(
    config: str, attention: str, settings: dict[str, Any]
) -> None:
    model = build(config, attention, **settings)
    lm = TorchLM(model, TOKENIZER)
    for score, request in zip(lm.score(REQUESTS), REQUESTS, strict=True):
        assert score.logprob == pytest.approx(plain_logprob(model, request), abs=1e-4)
    long = REQUESTS[0].prompt + REQUESTS[0].continuation  # longer than the sliding windows
    prompts = [long, "Stones are"]
    greedy = SamplingParams(temperature=0.0, max_new_tokens=6)
    written = lm.generate([GenerationRequest(prompt, (1,), greedy) for prompt in prompts])
    for prompt, (completion,) in zip(prompts, written, strict=True):
        assert completion.text == greedy_text(model, prompt, completion.tokens)


@pytest.mark.parametrize(
    ("config", "attention", "settings", "reason"),
    [
        ("Gemma2Config", "eager", {"head_dim": 8}, "changes its logits"),
        ("GraniteConfig", "sdpa", {"logits_scaling": 8.0}, "changes its logits"),
        ("CohereConfig", "sdpa", {}, "changes its logits"),
        ("PhiConfig", "sdpa", {}, "not a plain matrix"),
    ],
)
def test_a_model_that_does_more_than_multiply_at_the_end_is_refused(
    config: str, attention: str, settings: dict[str, Any], reason: str
) -> None:
    lm = TorchLM(build(config, attention, **settings), TOKENIZER)
    with pytest.raises(ModelError, match=f"cannot be scored or trained here: .*{reason}"):
        lm.score(REQUESTS)
    greedy = SamplingParams(temperature=0.0, max_new_tokens=2)
    assert lm.generate([GenerationRequest("The mill", (1,), greedy)])[0][0].tokens >= 1


def test_a_state_that_is_not_attention_is_refused_for_writing() -> None:
    lm = TorchLM(build("Lfm2Config", layer_types=["conv", "full_attention"]), TOKENIZER)
    with pytest.raises(ModelError, match="'lfm2' cannot write here"):
        lm.generate([GenerationRequest("The mill", (1,), SamplingParams(max_new_tokens=2))])


def test_examples_that_leak_into_each_other_get_rows_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def leaking(model: Any, row: Any) -> Tensor:
        out = model.get_decoder()(input_ids=row.ids, use_cache=False)  # one long text
        hidden: Tensor = out.last_hidden_state[0]
        return hidden

    model = build_llama().eval()
    assert examine(model) is True
    monkeypatch.setattr(packed_forward, "last_hidden_states", leaking)
    assert examine(model) is False


def test_a_decoder_that_is_not_what_the_output_layer_reads_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = build_llama().eval()
    monkeypatch.setattr(
        packed_forward, "last_hidden_states", lambda _, row: torch.ones(row.ids.shape[1], 64)
    )
    with pytest.raises(ModelError, match="does not read its decoder's states"):
        examine(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_plain_model_passes_in_any_precision(dtype: torch.dtype) -> None:
    assert examine(build_llama().eval().type(dtype)) is True
