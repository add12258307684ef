"""The official client drives the server: chats, completions, streams, models, and their errors."""

from __future__ import annotations

from dataclasses import asdict
from types import SimpleNamespace
from typing import Any

import openai
import pytest

from aios.app.chat.adaptation_counts import AdaptationCounts
from tests.openai_server import LOOPBACK
from tests.test_web.running import RunningServer, ask, wait_until

pytestmark = LOOPBACK


def user(text: str) -> Any:
    return [{"role": "user", "content": text}]


def test_models_are_the_base_each_expert_and_auto(client: openai.OpenAI) -> None:
    found = {model.id: model for model in client.models.list()}
    assert set(found) == {"auto", "base", "art", "physics"}
    assert client.models.retrieve("art").id == "art"
    assert found["physics"].model_extra == {
        "aios": {"kind": "expert", "description": "knows physics"}
    }


def test_a_chat_is_answered_with_its_usage(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="base", messages=user("count"))
    choice = answer.choices[0]
    assert choice.message.content == "one two three four five six seven eight nine ten"
    assert (choice.message.role, choice.finish_reason, choice.logprobs) == (
        "assistant",
        "stop",
        None,
    )
    assert answer.usage is not None
    assert answer.usage.prompt_tokens > 0
    assert answer.usage.completion_tokens == 10
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 10
    assert answer.model == "base"


def test_an_expert_answers_where_it_is_named(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="physics", messages=user("dice"), seed=1)
    assert (answer.choices[0].message.content or "").startswith("[physics] ")
    assert answer.model_extra is not None
    assert answer.model_extra["aios"]["answered_by"] == [{"expert": "physics", "weight": 1.0}]


def test_auto_chooses_experts_and_says_which(client: openai.OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model="auto", messages=user("dice on art and physics")
    )
    assert raw.headers["x-aios-answered-by"] == "art;weight=0.5, physics;weight=0.5"
    extra = raw.parse().model_extra
    assert extra is not None
    assert extra["aios"]["reason"] == "named: 2"


def test_a_stream_has_the_same_text_a_role_and_an_end(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="art", messages=user("umlaut"))
    with client.chat.completions.create(
        model="art", messages=user("umlaut"), stream=True, stream_options={"include_usage": True}
    ) as stream:
        chunks = list(stream)
    first, *_, last, usage = chunks
    assert first.choices[0].delta.role == "assistant"
    pieces = [choice.delta.content or "" for chunk in chunks for choice in chunk.choices]
    assert "".join(pieces) == whole.choices[0].message.content
    assert len([piece for piece in pieces if piece]) > 3
    assert last.choices[0].finish_reason == "stop"
    assert usage.choices == []
    assert usage.usage == whole.usage
    assert len({chunk.id for chunk in chunks}) == 1
    assert first.model_extra is not None
    assert first.model_extra["aios"]["answered_by"][0]["expert"] == "art"


def test_a_stream_without_usage_has_none(client: openai.OpenAI) -> None:
    with client.chat.completions.create(model="base", messages=user("count"), stream=True) as s:
        assert all(chunk.usage is None and chunk.choices for chunk in s)


def test_the_same_seed_gives_the_same_text(client: openai.OpenAI) -> None:
    def drawn(seed: int | None) -> list[Any]:
        answer = client.chat.completions.create(
            model="base", messages=user("dice"), seed=seed, n=8, temperature=1.0
        )
        return [choice.message.content for choice in answer.choices]

    assert drawn(3) == drawn(3)
    assert len(set(drawn(3))) > 1
    assert len({tuple(drawn(None)) for _ in range(3)}) > 1


def test_the_seed_of_an_answer_repeats_it(client: openai.OpenAI) -> None:
    first = client.chat.completions.create(model="base", messages=user("dice"), temperature=1.0)
    assert first.model_extra is not None
    seed = first.model_extra["aios"]["texts"][0]["seed"]
    again = client.chat.completions.create(
        model="base", messages=user("dice"), temperature=1.0, seed=seed
    )
    assert again.choices[0].message.content == first.choices[0].message.content


@pytest.mark.parametrize("stop", ["five", ["nine", "five"]])
def test_a_text_ends_at_a_stop_text(client: openai.OpenAI, stop: Any) -> None:
    answer = client.chat.completions.create(model="base", messages=user("count"), stop=stop)
    assert (answer.choices[0].message.content or "").strip() == "one two three four"
    assert answer.choices[0].finish_reason == "stop"


def test_a_text_ends_at_its_length(client: openai.OpenAI) -> None:
    for name in ("max_tokens", "max_completion_tokens"):
        answer = client.chat.completions.create(
            model="base", messages=user("count"), extra_body={name: 3}
        )
        assert answer.choices[0].message.content == "one two three"
        assert answer.choices[0].finish_reason == "length"


def test_logprobs_of_a_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="base", messages=user("umlaut"), logprobs=True, top_logprobs=2
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert "".join(token.token for token in logprobs.content) == answer.choices[0].message.content
    first = logprobs.content[0]
    assert bytes(first.bytes or []) == "Größe".encode()
    assert first.logprob < 0
    assert [top.token for top in first.top_logprobs] == ["Größe", "Größe-1"]


def test_logprobs_of_a_stream(client: openai.OpenAI) -> None:
    with client.chat.completions.create(
        model="base", messages=user("count"), logprobs=True, stream=True
    ) as stream:
        tokens = [
            token.token
            for chunk in stream
            for choice in chunk.choices
            if choice.logprobs and choice.logprobs.content
            for token in choice.logprobs.content
        ]
    assert "".join(tokens) == "one two three four five six seven eight nine ten"


def test_a_completion_goes_on_with_each_prompt(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model="base", prompt=["count", "umlaut"], n=2, seed=1, max_tokens=3, logprobs=1
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert [choice.text for choice in answer.choices[:2]] == ["one two three"] * 2
    assert answer.choices[2].text.startswith("Größe")
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 2
    assert answer.usage.completion_tokens == 12
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens == ["one", " two", " three"]
    assert logprobs.text_offset == [0, 3, 7]
    assert logprobs.top_logprobs is not None
    assert list(logprobs.top_logprobs[0]) == ["one"]


def test_a_stream_of_completions_keeps_its_texts_apart(client: openai.OpenAI) -> None:
    texts = ["", ""]
    offsets: list[int] = []
    with client.completions.create(
        model="base", prompt=["count", "umlaut"], max_tokens=100, logprobs=0, stream=True
    ) as stream:
        for chunk in stream:
            for choice in chunk.choices:
                texts[choice.index] += choice.text
                if choice.index == 0 and choice.logprobs:
                    offsets += choice.logprobs.text_offset or []
    assert texts == ["one two three four five six seven eight nine ten", "Größe — 漢字 🙂 end"]
    assert offsets[:3] == [0, 3, 7]


def test_a_completion_has_16_tokens_unless_more_are_asked_for(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="base", prompt="long")
    assert len(answer.choices[0].text.split()) == 16
    assert answer.choices[0].finish_reason == "length"


def test_messages_may_have_parts_and_a_developer(
    server: RunningServer, client: openai.OpenAI
) -> None:
    client.chat.completions.create(
        model="base",
        messages=[
            {"role": "developer", "content": "Be short."},
            {
                "role": "user",
                "content": [{"type": "text", "text": "co"}, {"type": "text", "text": "unt"}],
            },
        ],
    )
    prompt = server.writer.requests[-1].prompt
    assert "Be short." in prompt
    assert "count" in prompt


def test_an_unknown_model_is_not_found(client: openai.OpenAI) -> None:
    for model in ("nobody", "../../etc/passwd", "..", "a\0b", "x" * 256):
        with pytest.raises(openai.NotFoundError) as caught:
            client.chat.completions.create(model=model, messages=user("hello"))
        assert caught.value.code == "model_not_found"
        assert caught.value.param == "model"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nobody")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tools", [{"type": "function", "function": {"name": "f"}}]),
        ("functions", [{"name": "f"}]),
        ("tool_choice", "required"),
        ("response_format", {"type": "json_object"}),
        ("frequency_penalty", 0.5),
        ("presence_penalty", -1),
        ("logit_bias", {"1": 5}),
        ("modalities", ["text", "audio"]),
        ("top_k", 5),
    ],
)
def test_what_is_not_supported_is_refused(client: openai.OpenAI, field: str, value: Any) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(
            model="base", messages=user("hello"), extra_body={field: value}
        )
    assert caught.value.param == field
    assert caught.value.code == "unsupported_parameter"


def test_what_asks_for_nothing_special_is_accepted(client: openai.OpenAI) -> None:
    client.chat.completions.create(
        model="base",
        messages=user("hello"),
        frequency_penalty=0,
        logit_bias={},
        response_format={"type": "text"},
        user="somebody",
        extra_body={"tools": None, "top_k": -1, "store": True, "unheard_of": [1]},
    )


@pytest.mark.parametrize("field", ["echo", "best_of", "suffix"])
def test_what_completions_do_not_support_is_refused(client: openai.OpenAI, field: str) -> None:
    values: dict[str, Any] = {"echo": True, "best_of": 3, "suffix": "end"}
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="base", prompt="hello", extra_body={field: values[field]})
    assert caught.value.param == field


def test_an_image_is_refused(client: openai.OpenAI) -> None:
    image: Any = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
    with pytest.raises(openai.BadRequestError, match="image_url"):
        client.chat.completions.create(
            model="base", messages=[{"role": "user", "content": [image]}]
        )


def test_too_many_tokens_or_texts_are_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="1,024"):
        client.chat.completions.create(model="base", messages=user("hello"), max_tokens=1025)
    with pytest.raises(openai.BadRequestError, match="16"):
        client.completions.create(model="base", prompt=["a"] * 5, n=4)


def test_a_prompt_that_does_not_fit_is_the_clients_fault(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError):
        client.completions.create(model="base", prompt="word " * 3000)
    with pytest.raises(openai.BadRequestError, match="empty"):
        client.completions.create(model="base", prompt="")


def test_feedback_is_stored_for_answers_that_are_known(
    server: RunningServer, client: openai.OpenAI
) -> None:
    answer = client.chat.completions.create(model="art", messages=user("dice"))
    stored = server.post("/v1/feedback", {"id": answer.id, "rating": -1, "correction": "seven"})
    assert (stored.status, stored.json) == (
        200,
        {"id": answer.id, "object": "feedback", "stored": True},
    )
    for body in ({"id": "nobody", "rating": 1}, {"id": answer.id}, {"id": answer.id, "rating": 2}):
        assert server.post("/v1/feedback", body).status == 400
        assert server.post("/v1/feedback", body).error


def test_a_session_is_named_by_field_or_header(
    server: RunningServer, client: openai.OpenAI
) -> None:
    client.chat.completions.create(
        model="base", messages=user("hello"), extra_headers={"X-AIOS-Session": "s-1"}
    )
    both = ask("hello", session_id="s-2")
    assert server.post("/v1/chat/completions", both).status == 200
    differing = server.post("/v1/chat/completions", both, {"X-AIOS-Session": "s-3"})
    assert (differing.status, differing.error["param"]) == (400, "session_id")
    for bad in ("", "a b", "a\nb", "x" * 129, 5):
        assert server.post("/v1/chat/completions", ask("hi", session_id=bad)).status == 400
    assert server.post("/v1/chat/completions", ask("hi", session_id="s", n=2)).status == 400


def test_a_failure_in_the_middle_is_told_in_both_forms(
    server: RunningServer, client: openai.OpenAI
) -> None:
    server.writer.batch.fail_after, server.writer.batch.fail_on = 2, "count"
    try:
        with pytest.raises(openai.InternalServerError) as caught:
            client.chat.completions.create(model="base", messages=user("count"))
        assert caught.value.status_code == 503  # retryable, says the script
        with (
            client.chat.completions.create(
                model="base", messages=user("count"), stream=True
            ) as stream,
            pytest.raises(openai.APIError, match="script"),
        ):
            list(stream)
    finally:
        server.writer.batch.fail_after = None


def test_tokens_and_answers_are_counted(server: RunningServer, client: openai.OpenAI) -> None:
    before = server.metric('aios_tokens_total{kind="completion"}')
    client.chat.completions.create(model="art", messages=user("count"))
    wait_until(lambda: server.metric('aios_tokens_total{kind="completion"}') == before + 11)
    assert server.metric('aios_answers_total{ended="stop",expert="art"}') >= 1
    assert server.metric("aios_first_token_seconds_count") >= 1
    name = 'aios_requests_total{method="POST",route="/v1/chat/completions",status="200"}'
    assert server.metric(name) >= 1
    assert server.metric("aios_writing") == 0
    assert server.metric("aios_waiting") == 0


def test_adaptations_are_counted_by_what_became_of_them(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = server.request("GET", "/metrics").text
    for ended in ("kept", "dropped", "undone", "failed"):
        assert f'aios_adaptations_total{{ended="{ended}"}} 0.0' in shown
    counts = AdaptationCounts(kept=5, dropped=2, undone=1, failed=3)
    monkeypatch.setattr(server.assistant, "_adapters", SimpleNamespace(counts=lambda: counts))
    for ended, count in asdict(counts).items():
        assert server.metric(f'aios_adaptations_total{{ended="{ended}"}}') == count
