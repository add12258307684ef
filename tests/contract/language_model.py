"""What every `LanguageModel` must do. Each check takes a model and raises where it does not.

Use: ``@pytest.mark.parametrize("check", CHECKS, ids=lambda c: c.__name__)`` with a fixture that
gives the model.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace

import pytest

from aios.core.errors import BackendError
from aios.core.protocols import LanguageModel
from aios.core.types import GenerationRequest, SamplingParams, ScoreRequest

PASSAGE = "Passage:\nThe mill at Orvane was built in 1871. Its wheel turns twelve stones."
SHORT = SamplingParams(temperature=1.0, max_new_tokens=8)
GREEDY = SamplingParams(temperature=0.0, max_new_tokens=8)


def satisfies_the_protocol(model: LanguageModel) -> None:
    assert isinstance(model, LanguageModel)
    assert model.name
    assert model.context_length > 0


def digest_is_hex_and_stays(model: LanguageModel) -> None:
    before = model.digest
    assert re.fullmatch(r"[0-9a-f]{16,}", before)
    model.generate([GenerationRequest("One two", (1,), SHORT)])
    model.score([ScoreRequest("One", " two")])
    assert model.digest == before


def base_model_has_no_adapter_digest(model: LanguageModel) -> None:
    assert model.adapter_digest == ""


def counts_no_tokens_in_an_empty_text(model: LanguageModel) -> None:
    assert model.count_tokens("") == 0


def counts_more_tokens_in_a_longer_text(model: LanguageModel) -> None:
    assert 0 < model.count_tokens("one two") < model.count_tokens("one two three four five six")


def chat_holds_all_contents_in_order(model: LanguageModel) -> None:
    messages = [
        {"role": "system", "content": "Be exact."},
        {"role": "user", "content": "What is the mill?"},
    ]
    prompt = model.format_chat(messages)
    assert prompt.index("Be exact.") < prompt.index("What is the mill?")
    assert model.format_chat(messages) == prompt


def writes_nothing_for_no_requests(model: LanguageModel) -> None:
    assert model.generate([]) == []
    assert model.score([]) == []


def writes_one_completion_a_seed_in_order(model: LanguageModel) -> None:
    requests = [
        GenerationRequest(PASSAGE, (5, 3, 9), SHORT),
        GenerationRequest("The wheel", (), SHORT),
        GenerationRequest("The wheel turns", (7,), SHORT),
    ]
    written = model.generate(requests)
    assert [[c.seed for c in completions] for completions in written] == [[5, 3, 9], [], [7]]


def same_call_gives_the_same_texts(model: LanguageModel) -> None:
    requests = [GenerationRequest(PASSAGE, (1, 2, 3), SHORT)]
    assert model.generate(requests) == model.generate(requests)


def greedy_does_not_depend_on_the_seed(model: LanguageModel) -> None:
    first, second = model.generate([GenerationRequest(PASSAGE, (1, 2), GREEDY)])[0]
    assert first.text == second.text


def keeps_to_the_token_limit(model: LanguageModel) -> None:
    for limit in (1, 5):
        sampling = replace(SHORT, max_new_tokens=limit)
        (completion,) = model.generate([GenerationRequest(PASSAGE, (1,), sampling)])[0]
        assert completion.tokens <= limit
        if completion.finish_reason == "stop":
            continue
        assert (completion.finish_reason, completion.tokens) == ("length", limit)


def completion_does_not_repeat_the_prompt(model: LanguageModel) -> None:
    (completion,) = model.generate([GenerationRequest(PASSAGE, (1,), SHORT)])[0]
    assert not completion.text.startswith(PASSAGE)


def cuts_at_a_stop_text(model: LanguageModel) -> None:
    (whole,) = model.generate([GenerationRequest(PASSAGE, (1,), GREEDY)])[0]
    stop = whole.text.strip()[2:4]
    assert stop
    sampling = replace(GREEDY, stop=(stop,))
    (cut,) = model.generate([GenerationRequest(PASSAGE, (1,), sampling)])[0]
    assert stop not in cut.text
    assert whole.text.startswith(cut.text)
    assert cut.finish_reason == "stop"


def deadline_keeps_one_completion_a_seed(model: LanguageModel) -> None:
    request = GenerationRequest(PASSAGE, (1, 2), SHORT, deadline_seconds=0.0)
    completions = model.generate([request])[0]
    assert [c.seed for c in completions] == [1, 2]
    assert all(c.finish_reason in ("stop", "length", "deadline") for c in completions)


def refuses_a_prompt_that_fills_the_context(model: LanguageModel) -> None:
    prompt = "word " * (model.context_length + 1)
    with pytest.raises(BackendError):
        model.generate([GenerationRequest(prompt, (1,), SHORT)])


def scores_are_finite_log_probabilities(model: LanguageModel) -> None:
    score, empty_prompt = model.score(
        [ScoreRequest("The mill was built in", " 1871"), ScoreRequest("", "The mill")]
    )
    for s in (score, empty_prompt):
        assert math.isfinite(s.logprob)
        assert s.logprob <= 0
        assert s.tokens >= 1
        assert s.loss == pytest.approx(-s.logprob / s.tokens)


def scores_do_not_depend_on_the_batch(model: LanguageModel) -> None:
    requests = [
        ScoreRequest("The mill was built in", " 1871"),
        ScoreRequest("", "Stones"),
        ScoreRequest(PASSAGE, " The mill at Orvane has twelve stones and one wheel."),
    ]
    together = model.score(requests)
    alone = [model.score([request])[0] for request in requests]
    reversed_order = model.score(requests[::-1])[::-1]
    for a, b, c in zip(together, alone, reversed_order, strict=True):
        assert a.tokens == b.tokens == c.tokens
        assert a.logprob == pytest.approx(b.logprob, rel=1e-3, abs=1e-2)
        assert a.logprob == pytest.approx(c.logprob, rel=1e-3, abs=1e-2)


def score_depends_on_the_continuation(model: LanguageModel) -> None:
    first, second = model.score(
        [
            ScoreRequest("The mill was built in", " 1871"),
            ScoreRequest("The mill was built in", " qq"),
        ]
    )
    assert first.logprob != second.logprob


def refuses_to_score_nothing(model: LanguageModel) -> None:
    with pytest.raises(BackendError):
        model.score([ScoreRequest("The mill", "")])


CHECKS: tuple[Callable[[LanguageModel], None], ...] = (
    satisfies_the_protocol,
    digest_is_hex_and_stays,
    base_model_has_no_adapter_digest,
    counts_no_tokens_in_an_empty_text,
    counts_more_tokens_in_a_longer_text,
    chat_holds_all_contents_in_order,
    writes_nothing_for_no_requests,
    writes_one_completion_a_seed_in_order,
    same_call_gives_the_same_texts,
    greedy_does_not_depend_on_the_seed,
    keeps_to_the_token_limit,
    completion_does_not_repeat_the_prompt,
    cuts_at_a_stop_text,
    deadline_keeps_one_completion_a_seed,
    refuses_a_prompt_that_fills_the_context,
    scores_are_finite_log_probabilities,
    scores_do_not_depend_on_the_batch,
    score_depends_on_the_continuation,
    refuses_to_score_nothing,
)
