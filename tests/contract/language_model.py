"""What every `LanguageModel` must do. Each check takes a model and raises where it does not.

Use: ``@pytest.mark.parametrize("check", CHECKS, ids=lambda c: c.__name__)`` with a fixture that
gives the model.
"""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count, islice

import pytest

from aios.core.errors import BackendError
from aios.core.protocols import LanguageModel
from aios.core.streaming import Generated, collect
from aios.core.types import GenerationRequest, SamplingParams, ScoreRequest

PASSAGE = "Passage:\nThe mill at Orvane was built in 1871. Its wheel turns twelve stones."
SHORT = SamplingParams(temperature=1.0, max_new_tokens=8)
GREEDY = SamplingParams(temperature=0.0, max_new_tokens=8)
LOOK_AHEAD = 64  # requests that a backend may take before it can begin them
PROMPTS = ("The mill", "The wheel turns twelve", PASSAGE, "Orvane was built in", "Stones")


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


def end_of_turn_is_one_token_or_nothing(model: LanguageModel) -> None:
    end = model.end_of_turn
    assert end == end.strip()
    whole = model.count_tokens("The wheel turns twelve stones." + end)
    assert whole == model.count_tokens("The wheel turns twelve stones.") + bool(end)


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


def _requests(*seeds: int) -> list[GenerationRequest]:
    return [GenerationRequest(prompt, seeds, SHORT) for prompt in PROMPTS]


def _by_index(stream: Iterator[Generated]) -> list[Generated]:
    return sorted(stream, key=lambda generated: generated.index)


def streams_one_outcome_a_request(model: LanguageModel) -> None:
    outcomes = _by_index(model.stream(_requests(4, 2)))
    assert [outcome.index for outcome in outcomes] == list(range(len(PROMPTS)))
    for outcome in outcomes:
        assert outcome.error is None
        assert [completion.seed for completion in outcome.completions] == [4, 2]
        assert outcome.seconds >= 0
        assert outcome.retries == 0


def streams_nothing_for_no_requests(model: LanguageModel) -> None:
    assert list(model.stream([])) == []
    assert list(model.stream(iter(()), width=3)) == []


def streams_an_outcome_for_a_request_without_seeds(model: LanguageModel) -> None:
    requests = [
        GenerationRequest("The mill", (), SHORT),
        GenerationRequest("The mill", (3,), SHORT),
        GenerationRequest("The wheel", (), SHORT),
    ]
    outcomes = _by_index(model.stream(requests, width=1))
    assert [[c.seed for c in outcome.completions] for outcome in outcomes] == [[], [3], []]
    assert [outcome.error for outcome in outcomes] == [None] * 3
    empty = model.stream([GenerationRequest("The mill", (), SHORT)] * 2)
    assert sorted(outcome.index for outcome in empty) == [0, 1]


def a_stream_is_what_generate_gives(model: LanguageModel) -> None:
    requests = [*_requests(1, 2), GenerationRequest("The wheel", (), SHORT), *_requests(3)]
    assert collect(model.stream(iter(requests))) == model.generate(requests)


def a_stream_of_any_width_writes_everything(model: LanguageModel) -> None:
    for width in (1, 2, 3, 100):
        requests = [*_requests(1, 2, 3), *_requests(4)]  # some with more seeds than the width
        written = collect(model.stream(iter(requests), width=width))
        assert [[c.seed for c in completions] for completions in written] == [
            list(request.seeds) for request in requests
        ]
        assert all(c.tokens <= SHORT.max_new_tokens for each in written for c in each)


def a_stream_takes_requests_as_it_has_room_for_them(model: LanguageModel) -> None:
    taken = 0
    threads = set()

    def endless() -> Iterator[GenerationRequest]:
        nonlocal taken
        for taken in count(1):
            threads.add(threading.get_ident())
            yield GenerationRequest(f"Stone {taken} of the mill", (taken,), SHORT)

    seen = 0
    for seen, _ in enumerate(islice(model.stream(endless(), width=2), 5), start=1):
        assert taken <= seen + 2 + LOOK_AHEAD
    assert seen == 5
    assert threads == {threading.get_ident()}


def a_prompt_that_is_too_long_is_its_own_requests_error(model: LanguageModel) -> None:
    long = GenerationRequest("word " * (model.context_length + 1), (1, 2), SHORT)
    requests = [*_requests(1), long, *_requests(2), long]
    outcomes = _by_index(model.stream(requests, width=2))
    assert len(outcomes) == len(requests)
    for outcome, request in zip(outcomes, requests, strict=True):
        if request is long:
            assert isinstance(outcome.error, BackendError)
            assert not outcome.error.retryable
            assert outcome.error.message
            assert outcome.completions == ()
        else:
            assert outcome.error is None
            assert [completion.seed for completion in outcome.completions] == list(request.seeds)
    with pytest.raises(BackendError):
        model.generate(requests)


def an_error_of_the_requests_iterator_is_raised(model: LanguageModel) -> None:
    class Fault(Exception):
        pass

    def faulty(good: int) -> Iterator[GenerationRequest]:
        yield from _requests(1)[:good]
        raise Fault

    before = model.generate(_requests(1))
    for good in (0, 3):
        with pytest.raises(Fault):
            list(model.stream(faulty(good)))
        assert model.generate(_requests(1)) == before


def a_stream_may_be_left_early(model: LanguageModel) -> None:
    before = model.generate(_requests(1, 2))
    stream = model.stream((request for _ in count() for request in _requests(5)), width=3)
    next(stream)
    close = getattr(stream, "close", None)
    if close is not None:
        close()
    del stream
    assert model.generate(_requests(1, 2)) == before
    model.stream(_requests(1))  # one that is not begun costs nothing
    assert model.generate(_requests(1, 2)) == before


def scores_between_two_outcomes_change_neither(model: LanguageModel) -> None:
    requests = [*_requests(1, 2), *_requests(3)]
    asked = [ScoreRequest("The mill was built in", " 1871"), ScoreRequest(PASSAGE, " Stones.")]
    before, written = model.score(asked), collect(model.stream(requests, width=4))
    outcomes = []
    for outcome in model.stream(iter(requests), width=4):
        outcomes.append(outcome)
        for found, expected in zip(model.score(asked), before, strict=True):
            assert found.logprob == pytest.approx(expected.logprob, rel=1e-4, abs=1e-3)
    assert collect(outcomes) == written


CHECKS: tuple[Callable[[LanguageModel], None], ...] = (
    satisfies_the_protocol,
    digest_is_hex_and_stays,
    base_model_has_no_adapter_digest,
    counts_no_tokens_in_an_empty_text,
    counts_more_tokens_in_a_longer_text,
    chat_holds_all_contents_in_order,
    end_of_turn_is_one_token_or_nothing,
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
    streams_one_outcome_a_request,
    streams_nothing_for_no_requests,
    streams_an_outcome_for_a_request_without_seeds,
    a_stream_is_what_generate_gives,
    a_stream_of_any_width_writes_everything,
    a_stream_takes_requests_as_it_has_room_for_them,
    a_prompt_that_is_too_long_is_its_own_requests_error,
    an_error_of_the_requests_iterator_is_raised,
    a_stream_may_be_left_early,
    scores_between_two_outcomes_change_neither,
)
