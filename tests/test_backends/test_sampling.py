"""Writing: greedy as transformers does it, draws that follow the softmax, and every way to end."""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from aios.backends import sampling
from aios.backends.torch_lm import TorchLM
from aios.core.errors import BackendError, NonFiniteError
from aios.core.types import Completion, GenerationRequest, SamplingParams
from tests.tiny_model import CONTEXT, VOCABULARY

PROMPTS = ("The mill at Orvane", "It", "The wheel of the mill turns twelve stones. The people")
GREEDY = SamplingParams(temperature=0.0, max_new_tokens=10)
WARM = SamplingParams(temperature=1.0, top_p=1.0, max_new_tokens=10)


def request(prompt: str, *seeds: int, like: SamplingParams, **changes: object) -> GenerationRequest:
    return GenerationRequest(prompt, seeds, replace(like, **changes))  # type: ignore[arg-type]


def write(
    lm: TorchLM, prompt: str, *seeds: int, like: SamplingParams = WARM, **changes: object
) -> list[Completion]:
    return lm.generate([request(prompt, *seeds, like=like, **changes)])[0]


def ids_of(lm: TorchLM, text: str) -> list[int]:
    return list(lm.tokenizer(text, add_special_tokens=False)["input_ids"])


def greedy_ids(lm: TorchLM, prompt: str, tokens: int) -> list[int]:
    """What transformers itself writes."""
    ids = torch.tensor([ids_of(lm, prompt)])
    out = lm.model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=tokens,
        pad_token_id=0,
    )
    return [int(token) for token in out[0, ids.shape[1] :]]


def next_token_probabilities(lm: TorchLM, prompt: str, temperature: float) -> Tensor:
    with torch.inference_mode():
        logits: Tensor = lm.model(torch.tensor([ids_of(lm, prompt)])).logits[0, -1]
    return (logits / temperature).softmax(dim=-1)


def raw_sample(
    lm: TorchLM, requests: list[GenerationRequest], end_tokens: frozenset[int] = frozenset()
) -> list[list[Completion]]:
    return sampling.sample(
        lm.model,
        lm.tokenizer,
        requests,
        context_length=CONTEXT,
        end_tokens=end_tokens,
        device=lm.device,
    )


def test_greedy_writing_is_what_transformers_writes(lm: TorchLM) -> None:
    for prompt in PROMPTS:
        (completion,) = write(lm, prompt, 1, like=GREEDY)
        wanted = greedy_ids(lm, prompt, 10)
        assert completion.text == lm.tokenizer.decode(wanted, skip_special_tokens=True)
        assert completion.tokens == len(wanted)


def test_prompts_of_different_lengths_in_one_batch_write_what_each_writes_alone(
    lm: TorchLM,
) -> None:
    requests = [request(prompt, 1, 2, like=GREEDY) for prompt in PROMPTS]
    together = lm.generate(requests)
    assert together == [lm.generate([alone])[0] for alone in requests]
    assert len({completions[0].text for completions in together}) == len(PROMPTS)


def test_the_same_call_writes_the_same_texts(lm: TorchLM) -> None:
    requests = [request(prompt, 1, 2, 3, like=WARM) for prompt in PROMPTS]
    torch.manual_seed(1)
    first = lm.generate(requests)
    torch.manual_seed(2)  # whatever else has been drawn
    torch.rand(3)
    assert lm.generate(requests) == first


def test_different_seeds_write_different_texts(lm: TorchLM) -> None:
    texts = [completion.text for completion in write(lm, PROMPTS[0], *range(20))]
    assert len(set(texts)) == 20


def test_a_seed_of_63_bits_is_accepted(lm: TorchLM) -> None:
    (completion,) = write(lm, PROMPTS[0], 2**63 - 1)
    assert completion.seed == 2**63 - 1


def test_requests_with_different_settings_share_a_batch(lm: TorchLM) -> None:
    greedy, short, drawn = lm.generate(
        [
            request(PROMPTS[0], 1, like=GREEDY),
            request(PROMPTS[0], 1, like=WARM, max_new_tokens=2),
            request(PROMPTS[0], 1, like=WARM),
        ]
    )
    assert greedy == write(lm, PROMPTS[0], 1, like=GREEDY)
    assert short[0].tokens == 2
    assert drawn[0].text.startswith(short[0].text.rstrip("\ufffd"))
    assert drawn[0].text != greedy[0].text


def test_a_completion_ends_at_its_token_limit(lm: TorchLM) -> None:
    for limit in (1, 4):
        (completion,) = write(lm, PROMPTS[0], 1, like=GREEDY, max_new_tokens=limit)
        assert (completion.tokens, completion.finish_reason) == (limit, "length")


def test_a_completion_ends_where_the_context_is_full(lm: TorchLM) -> None:
    prompt = "a" * (CONTEXT - 3)
    assert len(ids_of(lm, prompt)) == CONTEXT - 3
    (completion,) = write(lm, prompt, 1)
    assert (completion.tokens, completion.finish_reason) == (3, "length")


def test_a_prompt_that_fills_the_context_is_refused_by_its_number(lm: TorchLM) -> None:
    requests = [request("It", 1, like=WARM), request("a" * CONTEXT, 1, like=WARM)]
    with pytest.raises(BackendError, match=f"prompt 1 has {CONTEXT} tokens"):
        lm.generate(requests)


def test_an_empty_prompt_is_refused(lm: TorchLM) -> None:
    with pytest.raises(BackendError, match="prompt 0 is empty"):
        write(lm, "", 1)


def test_an_end_token_ends_the_text_and_is_counted_but_not_shown(lm: TorchLM) -> None:
    wanted = greedy_ids(lm, PROMPTS[0], 10)
    end = wanted[4]
    ((completion,),) = raw_sample(lm, [request(PROMPTS[0], 1, like=GREEDY)], frozenset({end}))
    at = wanted.index(end)
    assert completion.text == lm.tokenizer.decode(wanted[:at], skip_special_tokens=True)
    assert (completion.tokens, completion.finish_reason) == (at + 1, "stop")


def test_rows_that_have_ended_leave_the_others_as_they_are(lm: TorchLM) -> None:
    whole = raw_sample(lm, [request(p, 1, like=GREEDY) for p in PROMPTS])
    end = greedy_ids(lm, PROMPTS[1], 10)[2]
    assert all(end not in greedy_ids(lm, PROMPTS[i], 10) for i in (0, 2))
    cut = raw_sample(lm, [request(p, 1, like=GREEDY) for p in PROMPTS], frozenset({end}))
    assert cut[1][0].finish_reason == "stop"
    assert (cut[0], cut[2]) == (whole[0], whole[2])


def test_the_end_tokens_of_model_and_tokenizer_both_end_a_text(lm: TorchLM) -> None:
    first, second = greedy_ids(lm, PROMPTS[0], 4)[2:]
    lm.model.generation_config.eos_token_id = [first, 399]
    assert write(lm, PROMPTS[0], 1, like=GREEDY)[0].tokens == 3
    lm.model.generation_config.eos_token_id = None
    lm.tokenizer.eos_token = lm.tokenizer.convert_ids_to_tokens(second)
    assert write(lm, PROMPTS[0], 1, like=GREEDY)[0].tokens == 4


def test_a_text_is_cut_at_the_first_of_the_stop_texts(lm: TorchLM) -> None:
    (whole,) = write(lm, PROMPTS[0], 1)
    early, late = whole.text[3:5], whole.text[6:8]
    (cut,) = write(lm, PROMPTS[0], 1, stop=("never written", late, early))
    assert cut.text == whole.text[: whole.text.index(early)]
    assert cut.finish_reason == "stop"
    assert cut.tokens <= whole.tokens


def test_an_empty_stop_text_stops_nothing(lm: TorchLM) -> None:
    assert write(lm, PROMPTS[0], 1, stop=("",)) == write(lm, PROMPTS[0], 1)


def test_a_deadline_in_the_past_keeps_one_token_and_says_so(lm: TorchLM) -> None:
    late = replace(request(PROMPTS[0], 1, 2, like=WARM), deadline_seconds=0.0)
    for completion, whole in zip(lm.generate([late])[0], write(lm, PROMPTS[0], 1, 2), strict=True):
        assert (completion.tokens, completion.finish_reason) == (1, "deadline")
        assert whole.text.startswith(completion.text.rstrip("\ufffd"))


def test_a_deadline_is_the_time_of_a_completion_times_their_number(
    lm: TorchLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seeds in ((1,), (1, 2)):
        clock = count()  # one second a token
        monkeypatch.setattr(sampling, "time", SimpleNamespace(monotonic=lambda c=clock: next(c)))
        slow = replace(request(PROMPTS[0], *seeds, like=WARM), deadline_seconds=3.5)
        for completion in lm.generate([slow])[0]:
            assert completion.finish_reason == "deadline"
            assert completion.tokens == (4 if len(seeds) == 1 else 8)


def test_a_tiny_nucleus_is_greedy_at_any_temperature(lm: TorchLM) -> None:
    (greedy,) = write(lm, PROMPTS[0], 1, like=GREEDY)
    for completion in write(lm, PROMPTS[0], 1, 2, temperature=1.5, top_p=1e-6):
        assert completion.text == greedy.text


def chi_square(drawn: Tensor, probabilities: Tensor) -> tuple[float, int]:
    """The statistic and its degrees of freedom; rare tokens are counted as one."""
    expected = probabilities * drawn.sum()
    common = expected >= 5
    groups = torch.cat([expected[common], expected[~common].sum()[None]])
    found = torch.cat([drawn[common], drawn[~common].sum()[None]])
    known = groups > 0
    statistic = ((found[known] - groups[known]) ** 2 / groups[known]).sum()
    return float(statistic), int(known.sum()) - 1


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.5])
def test_tokens_are_drawn_with_the_probabilities_of_the_softmax(
    lm: TorchLM, temperature: float
) -> None:
    drawn = draw_first_tokens(lm, 3000, temperature=temperature, top_p=1.0)
    statistic, freedom = chi_square(drawn, next_token_probabilities(lm, PROMPTS[0], temperature))
    assert freedom > 20
    assert abs(statistic - freedom) < 4 * (2 * freedom) ** 0.5


def test_only_the_nucleus_is_drawn_with_its_own_proportions(lm: TorchLM) -> None:
    drawn = draw_first_tokens(lm, 3000, temperature=1.0, top_p=0.5)
    probabilities = next_token_probabilities(lm, PROMPTS[0], 1.0)
    top, order = probabilities.sort(descending=True)
    size = int((top.cumsum(0) < 0.5).sum()) + 1  # the fewest tokens with half of the mass
    nucleus = torch.zeros_like(probabilities)
    nucleus[order[:size]] = top[:size] / top[:size].sum()
    assert drawn[nucleus == 0].sum() == 0
    statistic, freedom = chi_square(drawn, nucleus)
    assert statistic - freedom < 4 * (2 * freedom) ** 0.5


class RecordingTokenizer:
    """A tokenizer that remembers the tokens that it was given to decode."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.bos_token_id = tokenizer.bos_token_id
        self.decoded: list[int] = []

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self.tokenizer(*arguments, **options)

    def decode(self, ids: list[int], **options: Any) -> str:
        self.decoded.extend(ids)
        return str(self.tokenizer.decode(ids, **options))


def draw_first_tokens(lm: TorchLM, times: int, **settings: float) -> Tensor:
    """How often each token is drawn first, over that many seeds; ``[V]``."""
    many = request(PROMPTS[0], *range(times), like=WARM, max_new_tokens=1, **settings)
    lm.tokenizer = recording = RecordingTokenizer(lm.tokenizer)
    raw_sample(lm, [many])
    lm.tokenizer = recording.tokenizer
    return torch.bincount(torch.tensor(recording.decoded), minlength=VOCABULARY).double()


def test_sorting_only_the_likeliest_tokens_changes_nothing(
    lm: TorchLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    for top_p in (0.3, 0.95, 1.0):
        whole = write(lm, PROMPTS[0], *range(8), top_p=top_p)
        monkeypatch.setattr(sampling, "_NUCLEUS_FIRST", 5)
        assert write(lm, PROMPTS[0], *range(8), top_p=top_p) == whole
        monkeypatch.undo()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nan_weights_are_an_error_and_no_text(lm: TorchLM, temperature: float) -> None:
    with torch.no_grad():
        lm.model.get_decoder().norm.weight.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="not finite"):
        write(lm, PROMPTS[0], 1, temperature=temperature)


def test_nothing_asked_is_nothing_written(lm: TorchLM) -> None:
    assert lm.generate([]) == []
    assert lm.generate([request(PROMPTS[0], like=WARM)]) == [[]]
