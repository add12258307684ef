"""Scoring gives the model's own numbers, whatever shares a row; loading refuses what is broken."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from aios.backends.encoding import encode, pack
from aios.backends.models import ModelSource
from aios.backends.packed_forward import last_hidden_states
from aios.backends.torch_lm import TorchLM
from aios.core.errors import BackendError, ModelError, NonFiniteError, UsageError
from aios.core.types import GenerationRequest, SamplingParams, Score, ScoreRequest
from tests.tiny_model import (
    CONTEXT,
    build_llama,
    build_opening_tokenizer,
    build_tokenizer,
    source_of,
)

CPU = torch.device("cpu")
WORDS = "The mill at Orvane was built in 1871 and its wheel turns twelve stones a day".split()


def requests_of_many_lengths(number: int, seed: int = 0) -> list[ScoreRequest]:
    rng = random.Random(seed)
    made = []
    for _ in range(number):
        prompt = " ".join(rng.choices(WORDS, k=rng.randint(0, 20)))
        made.append(ScoreRequest(prompt, " " + " ".join(rng.choices(WORDS, k=rng.randint(2, 9)))))
    return made


def plain_score(lm: TorchLM, request: ScoreRequest) -> Score:
    """The score by the model's own forward pass over this text alone."""
    text = request.prompt + request.continuation
    batch = lm.tokenizer(text, return_offsets_mapping=True)
    ids = torch.tensor([batch["input_ids"]])
    with torch.inference_mode():
        logprobs = lm.model(input_ids=ids).logits[0].log_softmax(dim=-1)
    wanted = [
        at
        for at, (_, end) in enumerate(batch["offset_mapping"])
        if at > 0 and end > len(request.prompt)
    ]
    total = sum(float(logprobs[at - 1, ids[0, at]]) for at in wanted)
    greedy = all(int(logprobs[at - 1].argmax()) == int(ids[0, at]) for at in wanted)
    return Score(total, len(wanted), greedy)


def assert_same(found: list[Score], wanted: list[Score]) -> None:
    for a, b in zip(found, wanted, strict=True):
        assert a.logprob == pytest.approx(b.logprob, rel=1e-5, abs=1e-4)
        assert (a.tokens, a.greedy) == (b.tokens, b.greedy)


def test_packed_scores_are_those_of_the_plain_forward_pass(lm: TorchLM) -> None:
    requests = requests_of_many_lengths(60)
    assert sum(lm.count_tokens(r.prompt + r.continuation) for r in requests) > 4 * 512
    assert_same(lm.score(requests), [plain_score(lm, r) for r in requests])


def test_packed_scores_are_those_of_each_request_alone(lm: TorchLM) -> None:
    requests = requests_of_many_lengths(20)
    assert_same(lm.score(requests), [lm.score([r])[0] for r in requests])


def test_the_order_of_requests_does_not_matter(lm: TorchLM) -> None:
    requests = requests_of_many_lengths(40)
    scores = lm.score(requests)
    order = list(range(len(requests)))
    random.Random(1).shuffle(order)
    shuffled = lm.score([requests[i] for i in order])
    assert_same(shuffled, [scores[i] for i in order])


def test_an_example_sees_nothing_of_the_others_in_its_row(lm: TorchLM) -> None:
    members = [encode(lm.tokenizer, " ".join(WORDS[:n]), [(0, 9)]) for n in (4, 9, 6)]
    perturbed = replace(members[1], ids=members[1].ids[::-1])
    with torch.inference_mode():
        before = last_hidden_states(lm.model, pack(members, CPU))
        after = last_hidden_states(lm.model, pack([members[0], perturbed, members[2]], CPU))
    begin = len(members[0].ids)
    end = begin + len(members[1].ids)
    assert torch.equal(before[:begin], after[:begin])
    assert torch.equal(before[end:], after[end:])
    assert not torch.allclose(before[begin:end], after[begin:end])


def test_a_row_cannot_see_ahead(lm: TorchLM) -> None:
    ids = encode(lm.tokenizer, "The mill at Orvane was built.", [(0, 3)])
    changed = replace(ids, ids=(*ids.ids[:-1], 9))
    with torch.inference_mode():
        a, b = (last_hidden_states(lm.model, pack([e], CPU)) for e in (ids, changed))
    assert torch.equal(a[:-1], b[:-1])


def test_greedy_says_whether_every_token_is_the_likeliest(lm: TorchLM) -> None:
    likely = None
    for request in requests_of_many_lengths(60, seed=3):
        prompt = request.prompt + request.continuation
        greedy = SamplingParams(temperature=0.0, max_new_tokens=1)
        ((completion,),) = lm.generate([GenerationRequest(prompt, (1,), greedy)])
        joined = lm.tokenizer(prompt)["input_ids"] + lm.tokenizer(completion.text)["input_ids"]
        if completion.text and lm.tokenizer(prompt + completion.text)["input_ids"] == joined:
            likely = ScoreRequest(prompt, completion.text)
            break
    assert likely is not None
    unlikely = ScoreRequest(likely.prompt, likely.continuation + " mill")
    assert [s.greedy for s in lm.score([likely, unlikely])] == [True, False]


def test_an_empty_continuation_is_refused(lm: TorchLM) -> None:
    with pytest.raises(BackendError, match="nothing to score in ''"):
        lm.score([ScoreRequest("The mill", " turns"), ScoreRequest("The mill", "")])


def test_a_text_that_does_not_fit_the_context_is_refused(lm: TorchLM) -> None:
    exactly = ScoreRequest("", "a" * CONTEXT)
    assert lm.score([exactly])[0].tokens == CONTEXT - 1
    with pytest.raises(BackendError, match=f"{CONTEXT + 1} tokens does not fit"):
        lm.score([ScoreRequest("a", "a" * CONTEXT)])


def test_nan_weights_give_an_error_and_no_score(lm: TorchLM) -> None:
    with torch.no_grad():
        lm.model.get_decoder().norm.weight.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="not finite"):
        lm.score([ScoreRequest("The mill", " turns")])


def test_scoring_changes_no_weight(lm: TorchLM) -> None:
    before = {name: tensor.clone() for name, tensor in lm.model.state_dict().items()}
    lm.score(requests_of_many_lengths(3))
    lm.generate([GenerationRequest("The mill", (1,), SamplingParams(max_new_tokens=3))])
    assert all(torch.equal(before[n], t) for n, t in lm.model.state_dict().items())


def test_half_precision_scores_nearly_the_same(lm: TorchLM, tiny_source: ModelSource) -> None:
    half = TorchLM.load(tiny_source, device="cpu", dtype="bfloat16", threads=1)
    assert next(half.model.parameters()).dtype == torch.bfloat16
    requests = requests_of_many_lengths(10)
    for a, b in zip(half.score(requests), lm.score(requests), strict=True):
        assert a.loss == pytest.approx(b.loss, rel=0.05)


def test_tokens_are_counted_without_special_ones(lm: TorchLM) -> None:
    opening = TorchLM(build_llama(), build_opening_tokenizer())
    assert opening.count_tokens("The mill") == lm.count_tokens("The mill") > 1
    assert lm.count_tokens("") == 0


def test_chat_uses_the_template_of_the_model(lm: TorchLM) -> None:
    messages = [{"role": "user", "content": "What is a mill?"}]
    wanted = "<|im_start|>user\nWhat is a mill?<|im_end|>\n<|im_start|>assistant\n"
    assert lm.format_chat(messages) == wanted
    lm.tokenizer.chat_template = None
    assert lm.format_chat([*messages, *messages]) == "What is a mill?\n\nWhat is a mill?\n\n"


@pytest.mark.parametrize(
    ("template", "messages"),
    [
        (
            "{% if messages[0].role == 'system' %}"
            "{{ raise_exception('no system role') }}{% endif %}",
            [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}],
        ),
        (
            "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
            "{{ raise_exception('roles must alternate: ' + 'x' * 1000) }}{% endif %}{% endfor %}",
            [{"role": "user", "content": "Hello"}] * 2,
        ),
        ("{{ messages[0].name.upper() }}", [{"role": "user", "content": "Hello"}]),
    ],
    ids=["no system role", "roles alternate", "undefined"],
)
def test_messages_that_the_chat_template_refuses_are_the_callers_error(
    lm: TorchLM, template: str, messages: list[dict[str, str]]
) -> None:
    lm.tokenizer.chat_template = template
    with pytest.raises(UsageError, match="chat template refuses these messages") as caught:
        lm.format_chat(messages)
    assert "leave out system texts" in caught.value.remedy
    assert len(caught.value.message) < 300


@pytest.mark.parametrize("template", ["{% if %}", "{{ 1 + 'a' }}"])
def test_a_broken_chat_template_is_the_models_error(lm: TorchLM, template: str) -> None:
    lm.tokenizer.chat_template = template
    with pytest.raises(ModelError, match="chat template is broken"):
        lm.format_chat([{"role": "user", "content": "Hello"}])
    with pytest.raises(ModelError, match="chat template is broken"):
        _ = lm.end_of_turn


def test_a_turn_ends_with_the_end_token_of_the_chat_template(lm: TorchLM) -> None:
    assert lm.end_of_turn == "<|im_end|>"
    tokenizer = build_tokenizer(eos_token="<|endoftext|>")
    model = build_llama()
    model.generation_config.eos_token_id = [0, 2]  # as models whose turns end otherwise than texts
    assert TorchLM(model, tokenizer).end_of_turn == "<|im_end|>"
    tokenizer.chat_template = None
    assert TorchLM(model, tokenizer).end_of_turn == "<|endoftext|>"


def test_a_model_without_an_end_token_has_no_end_of_turn() -> None:
    model, tokenizer = build_llama(), build_tokenizer()
    model.generation_config.eos_token_id = tokenizer.eos_token = None
    assert TorchLM(model, tokenizer).end_of_turn == ""
    model.generation_config.eos_token_id = 10**6
    assert TorchLM(model, tokenizer).end_of_turn == ""


def test_an_answer_and_its_end_of_turn_carry_loss_and_the_prompt_does_not(lm: TorchLM) -> None:
    prompt = lm.format_chat([{"role": "user", "content": "What is a mill?"}])
    text = f"{prompt}A house.{lm.end_of_turn}"
    encoded = encode(lm.tokenizer, text, [(len(prompt), len(text))])
    labels = [label for label in encoded.labels if label >= 0]
    assert lm.tokenizer.decode(labels) == "A house.<|im_end|>"
    assert labels[-1] in lm.end_tokens()


def test_the_context_length_is_that_of_the_config(lm: TorchLM) -> None:
    assert lm.context_length == CONTEXT


def test_a_wrapped_pair_is_frozen_and_named_by_its_weights_and_tokenizer() -> None:
    model = build_llama()
    first = TorchLM(model, build_tokenizer())
    assert not any(p.requires_grad for p in model.parameters())
    assert not model.training
    assert first.digest == TorchLM(build_llama(), build_tokenizer()).digest
    assert len(first.digest) == 64
    other = build_llama()
    with torch.no_grad():
        other.model.norm.weight[3] += 1e-3
    assert first.digest != TorchLM(other, build_tokenizer()).digest
    tokenizer = build_tokenizer()
    tokenizer.add_tokens(["mill"])
    assert first.digest != TorchLM(model, tokenizer).digest


def test_a_slow_tokenizer_is_refused() -> None:
    with pytest.raises(ModelError, match="not a fast one"):
        TorchLM(build_llama(), SimpleNamespace(is_fast=False))


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_a_model_that_has_adapters_already_is_refused() -> None:
    wrapped = get_peft_model(build_llama(), LoraConfig(target_modules=["q_proj"]))
    for model in (wrapped, wrapped.get_base_model()):
        with pytest.raises(ModelError, match="has adapters on it"):
            TorchLM(model, build_tokenizer())


# ---------------------------------------------------------------- loading


def load(folder: Path, **options: str) -> TorchLM:
    settings = {"device": "cpu", "dtype": "float32", **options}
    return TorchLM.load(source_of(folder), threads=1, **settings)


def test_a_loaded_model_has_the_name_and_digest_of_its_source(lm: TorchLM) -> None:
    assert (lm.name, lm.digest, lm.adapter_digest) == ("tiny", "d" * 64, "")


def test_loading_says_nothing(tiny_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load(tiny_folder)
    assert capfd.readouterr() == ("", "")


def test_unknown_devices_and_dtypes_are_refused(tiny_folder: Path) -> None:
    with pytest.raises(UsageError, match="unknown device 'abacus'"):
        load(tiny_folder, device="abacus")
    with pytest.raises(UsageError, match="unknown dtype 'float7'"):
        load(tiny_folder, dtype="float7")


def truncate_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def garble_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"garbage" * 100)


def drop_a_weight(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def remove_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def pickle_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save(build_llama().state_dict(), folder / "pytorch_model.bin")


def garble_config(folder: Path) -> None:
    (folder / "config.json").write_text("{not json")


def set_unknown_type(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "abacus"}')


def widen_config(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 130}))


def garble_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')


def bring_code(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoModelForCausalLM": "evil.Evil"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(f"open({str(folder / 'ran')!r}, 'w').close()\n")


@pytest.mark.parametrize(
    "spoil",
    [
        truncate_weights,
        garble_weights,
        drop_a_weight,
        remove_weights,
        pickle_weights,
        garble_config,
        set_unknown_type,
        widen_config,
        garble_tokenizer,
        bring_code,
    ],
    ids=lambda f: f.__name__,
)
def test_a_broken_folder_is_a_model_error(
    spoil: Callable[[Path], None], tiny_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(tiny_folder, folder)
    spoil(folder)
    with pytest.raises(ModelError, match="cannot load model 'tiny' from"):
        load(folder)
    assert not (folder / "ran").exists()


def test_the_fixture_is_a_transformers_folder(tiny_folder: Path) -> None:
    assert isinstance(LlamaForCausalLM.from_pretrained(tiny_folder), LlamaForCausalLM)
