"""Writing in a continuous batch: as transformers does it greedily, whatever is written beside."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import count, islice
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from aios.app.models import load_model
from aios.backends import batching
from aios.backends.batching import ContinuousBatch
from aios.backends.models import ModelSource
from aios.backends.torch_lm import TorchLM
from aios.core.config.schemas import Config
from aios.core.data.readers import read_passages
from aios.core.errors import BackendError, NonFiniteError
from aios.core.seal.strategies import get_strategy
from aios.core.streaming import collect
from aios.core.types import Completion, GenerationRequest, SamplingParams
from tests.tiny_model import CONTEXT

EXAMPLES = Path(__file__).parents[2] / "examples" / "passages.jsonl"
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


def raw_sample(
    lm: TorchLM,
    requests: list[GenerationRequest],
    end_tokens: frozenset[int] = frozenset(),
    width: int = 8,
) -> list[list[Completion]]:
    batch = ContinuousBatch(
        lm.tokenizer,
        lm.generating,
        width=width,
        context_length=CONTEXT,
        end_tokens=end_tokens,
    )
    return collect(batch.run(requests))


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


def test_a_deadline_is_the_share_of_a_completion_in_the_time(
    lm: TorchLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seeds in ((1,), (1, 2)):
        clock = count()  # every look at the clock is a second
        monkeypatch.setattr(batching, "time", SimpleNamespace(perf_counter=lambda c=clock: next(c)))
        slow = replace(request(PROMPTS[0], *seeds, like=WARM), deadline_seconds=3.5)
        for completion in lm.generate([slow])[0]:
            assert completion.finish_reason == "deadline"
            assert completion.tokens == (4 if len(seeds) == 1 else 8)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_completion_is_the_same_whatever_is_written_beside_it(
    tiny_source: ModelSource, dtype: str
) -> None:
    lm = TorchLM.load(tiny_source, device="cpu", dtype=dtype, threads=1)
    texts = [f"{prompt} {'and on ' * n}" for n in range(3) for prompt in PROMPTS]
    requests = [
        request(text, *range(n, n + 3), like=WARM, max_new_tokens=3 + 6 * (n % 4))
        for n, text in enumerate(texts)
    ]
    alone = [lm.generate([one])[0] for one in requests]
    for width in (1, 5, 40):
        assert collect(lm.stream(requests, width=width)) == alone
    assert collect(lm.stream(requests[::-1], width=7)) == alone[::-1]


def test_a_finished_completion_makes_room_at_once(lm: TorchLM) -> None:
    taken: list[int] = []

    def requests() -> Iterator[GenerationRequest]:
        for n in range(30):
            taken.append(n)
            long = n == 0
            yield request(PROMPTS[0], n, like=GREEDY, max_new_tokens=200 if long else 2)

    finished = [generated.index for generated in lm.stream(requests(), width=4)]
    assert sorted(finished) == list(range(30))
    assert finished[-1] == 0  # all others went past the long one
    assert len(taken) == 30


def test_requests_are_taken_as_there_is_room(lm: TorchLM) -> None:
    taken = 0

    def endless() -> Iterator[GenerationRequest]:
        nonlocal taken
        while True:
            taken += 1
            yield request(PROMPTS[0], taken, 2, like=GREEDY, max_new_tokens=3)

    stream = lm.stream(endless(), width=4)
    for got in range(1, 40):
        next(stream)
        assert taken <= got + 4 + 8  # in flight, and looked at ahead
    stream.close()  # type: ignore[attr-defined]
    assert write(lm, PROMPTS[0], 1)


def test_time_is_shared_out_among_the_requests(lm: TorchLM) -> None:
    requests = [request(p, 1, 2, like=WARM) for p in PROMPTS]
    began = time.perf_counter()
    shares = [generated.seconds for generated in lm.stream(requests)]
    wall = time.perf_counter() - began
    assert all(share > 0 for share in shares)
    assert 0.5 * wall < sum(shares) <= wall


def test_the_loss_of_each_line_is_the_mean_over_the_tokens_that_begin_in_it(lm: TorchLM) -> None:
    batch = ContinuousBatch(
        lm.tokenizer, lm.generating, width=1, context_length=CONTEXT, end_tokens=frozenset()
    )
    lines = ["one two", "three", "", "four"]
    ids = [ids_of(lm, line) for line in lines]
    newline = ids_of(lm, "\n")
    assert len(newline) == 1
    tokens = [token for line in ids for token in [*line, *newline]][:-1]
    logprobs = [-float(n) for n in range(len(tokens))]
    losses = batch._line_losses("\n".join(lines), tokens, logprobs)
    at = 0
    for line, loss in zip(ids, losses, strict=True):
        own = range(at, min(at + len(line) + 1, len(tokens)))  # its newline is its last token
        assert loss == pytest.approx(sum(own) / len(own), abs=1e-4)
        at += len(line) + 1
    assert batch._line_losses("one two", tokens, logprobs) == losses[:1]  # cut at a stop text


def test_losses_are_those_of_the_model(lm: TorchLM, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[list[int], list[float]]] = []

    def record(self: object, text: str, tokens: list[int], logprobs: list[float]) -> tuple[()]:
        seen.append((tokens, list(logprobs)))
        return ()

    monkeypatch.setattr(ContinuousBatch, "_line_losses", record)
    write(lm, PROMPTS[0], 1, 2, temperature=1.4, top_p=0.9)
    prompt = ids_of(lm, PROMPTS[0])
    for tokens, logprobs in seen:
        with torch.inference_mode():
            logits = lm.model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
        wanted = logits.log_softmax(-1).gather(1, torch.tensor(tokens)[:, None])[:, 0]
        assert logprobs == pytest.approx(wanted.tolist(), abs=1e-3)
    assert len(seen) == 2


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nan_weights_are_an_error_and_no_text(lm: TorchLM, temperature: float) -> None:
    with torch.no_grad():
        lm.model.get_decoder().norm.weight.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="not finite"):
        write(lm, PROMPTS[0], 1, temperature=temperature)


def test_nothing_asked_is_nothing_written(lm: TorchLM) -> None:
    assert lm.generate([]) == []
    assert lm.generate([request(PROMPTS[0], like=WARM)]) == [[]]


@pytest.mark.model
def test_the_bundled_model_writes_the_same_text_whatever_is_beside_it(models_folder: Path) -> None:
    """What resuming rests on; it holds on the CPUs that were tried (SEAL_GENERATION.md)."""
    lm = load_model(Config.model_validate({"model": {"cache_dir": models_folder}}))
    strategy = get_strategy("implications")
    passages = read_passages(EXAMPLES, on_reject=lambda reject: None)
    like = SamplingParams(max_new_tokens=40)
    requests = [
        request(strategy.prompt_text(lm, passage), *range(n, n + 3), like=like)
        for n, passage in enumerate(islice(passages, 5))
    ]
    whole = collect(lm.stream(requests, width=15))
    assert collect(lm.stream(requests[::-1], width=4)) == whole[::-1]
    assert lm.generate(requests[2:3]) == whole[2:3]
