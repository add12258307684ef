"""What is sent to an OpenAI-compatible API and what comes back, as plain data; no network here.

Chats are rendered as text with a marker line before each message, since a prompt of ours is one
text (and part of cache keys); `parse_chat` gives the messages back exactly. Answers are read as the
API is really spoken: whole or in pieces, with log-probabilities in the old form or the new one,
with or without a count of tokens.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from aios.core.errors import BackendError, NonFiniteError
from aios.core.types import FinishReason, SamplingParams, Score

_MARKER = re.compile(r"^<\|aios:(\w+)\|>\n", re.MULTILINE)
_SEEDS = 2**31 - 1  # what every server takes; -1 and 2³²-1 mean "any seed" to llama.cpp
_FINISHED: Mapping[str, FinishReason] = {
    "length": "length",
    "max_tokens": "length",
    "model_length": "length",
}
_BROKEN_OFF = ("abort", "error", "cancelled")
_FILTERED = ("content_filter", "tool_calls", "function_call")
_GREEDY_MARGIN = 1e-6  # nats
# Servers that apply settings of their own unless told otherwise; with these the distribution is
# temperature and top-p alone, as asked for.
_NEUTRAL: Mapping[str, Mapping[str, Any]] = {
    "llamacpp": {"top_k": -1, "min_p": 0.0, "repeat_penalty": 1.0},
    "vllm": {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0},
}
OWN_LOGPROBS = tuple(_NEUTRAL)  # servers whose log-probabilities are those before top-p


class MalformedAnswer(ValueError):
    """An answer without what it must hold."""


class AnswerRefusedError(ValueError):
    """The service wrote no answer on purpose (a content filter, say)."""


def render_chat(messages: Sequence[Mapping[str, str]]) -> str:
    """One text that holds the messages; `parse_chat` is its inverse."""
    return "".join(
        f"<|aios:{message['role']}|>\n{message['content'].replace('<|aios', '<|aios-')}\n"
        for message in messages
    )


def parse_chat(prompt: str) -> list[dict[str, str]]:
    """The messages of a text from `render_chat`; none, where it is another text."""
    if not _MARKER.match(prompt):
        return []
    _, *parts = _MARKER.split(prompt)
    return [
        {"role": role, "content": content.removesuffix("\n").replace("<|aios-", "<|aios")}
        for role, content in zip(parts[::2], parts[1::2], strict=True)
    ]


def join_contents(messages: Sequence[Mapping[str, str]]) -> str:
    """The contents, joined by blank lines: what a model without a chat template gets."""
    return "\n\n".join(message["content"] for message in messages)


def estimate_tokens(text: str) -> int:
    """Tokens of a text, for a model whose tokenizer is not known.

    Four ASCII characters a token and one token for any other character, but at least one a word.
    English comes out within about a quarter of the truth.
    """
    ascii_characters = sum(map(str.isascii, text))
    characters = math.ceil(ascii_characters / 4) + len(text) - ascii_characters
    return max(len(text.split()), characters) if text.strip() else 0


def generation_body(
    model: str,
    prompt: str | list[dict[str, str]],
    sampling: SamplingParams,
    seed: int,
    *,
    server: str,
    logprobs: bool,
    extra: Mapping[str, Any],
) -> dict[str, Any]:
    """The request for one completion, to be answered in pieces.

    Args:
        model: The model's id.
        prompt: A text for the completions API, or messages for the chat API.
        sampling: How tokens are drawn.
        seed: The completion's seed; sent modulo 2³¹ − 1.
        server: The kind of server, where known; some need more fields to sample as asked.
        logprobs: Whether to ask for log-probabilities.
        extra: Fields that are added or replaced; None takes one out.
    """
    chat = not isinstance(prompt, str)
    body: dict[str, Any] = {
        "model": model,
        "messages" if chat else "prompt": prompt,
        "max_tokens": sampling.max_new_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "seed": seed % _SEEDS,
        "stream": True,
        "stream_options": {"include_usage": True},
        **_NEUTRAL.get(server, {}),
    }
    if sampling.stop:
        body["stop"] = list(sampling.stop)
    if logprobs:
        body |= {"logprobs": True, "top_logprobs": 1} if chat else {"logprobs": 1}
    return {name: value for name, value in (body | dict(extra)).items() if value is not None}


@dataclass
class Draft:
    """A completion as far as it has come in.

    Attributes:
        pieces: The pieces of its text so far.
        finish: Why it ended, in the server's word; empty before the end.
        tokens: Tokens generated, where the server says so.
        losses: The bytes and the loss of each token, where the server gives them.
    """

    pieces: list[str] = field(default_factory=list)
    finish: str = ""
    tokens: int | None = None
    losses: list[tuple[bytes, float]] = field(default_factory=list)

    def add(self, record: object, *, whole: bool = False) -> None:
        """Adds an answer, or a piece of one.

        Raises:
            MalformedAnswer: It lacks a choice with text, or a finish reason if it is `whole`.
        """
        choices = record.get("choices") if isinstance(record, dict) else None
        if not isinstance(record, dict) or not isinstance(choices, list):
            raise MalformedAnswer("an answer without choices")
        usage = record.get("usage")
        if isinstance(usage, dict) and type(usage.get("completion_tokens")) is int:
            self.tokens = max(0, usage["completion_tokens"])
        if not choices and not whole:
            return
        choice = choices[0] if choices else None
        if not isinstance(choice, dict):
            raise MalformedAnswer("an answer without a choice")
        text = _text_of(choice)
        reason = choice.get("finish_reason")
        if reason is not None and not isinstance(reason, str):
            raise MalformedAnswer("a finish reason that is no text")
        self.pieces += [text] if text else []
        self.finish = reason or self.finish
        self.losses += _token_losses(choice.get("logprobs"))
        if whole and not self.finish:
            raise MalformedAnswer("an answer without a finish reason")

    def check_end(self) -> None:
        """Raises where the answer did not come to its own end.

        Raises:
            MalformedAnswer: It was cut off.
            AnswerRefusedError: It was filtered, or is no text.
        """
        if self.finish in _FILTERED:
            raise AnswerRefusedError(f"no text was written (finish reason {self.finish})")
        if not self.finish or self.finish in _BROKEN_OFF:
            raise MalformedAnswer("an answer that was cut off")

    def cut(self, stops: Sequence[str]) -> tuple[str, FinishReason]:
        """The text before the first stop text, and why it ended."""
        text = whole = "".join(self.pieces)
        for stop in filter(None, stops):
            text = text.split(stop, 1)[0]
        if len(text) < len(whole):
            return text, "stop"
        return text, _FINISHED.get(self.finish, "stop") if self.finish else "deadline"


def _text_of(choice: Mapping[str, Any]) -> str:
    """The text of a choice: of a completion, a chat message, or a piece of one."""
    holder: object = choice
    name = "text"
    if "text" not in choice:
        holder, name = choice.get("delta", choice.get("message")), "content"
    if not isinstance(holder, dict):
        raise MalformedAnswer("a choice without text")
    text = holder.get(name)
    if text is None and name == "content":  # the role alone, or thoughts that are not shown
        return ""
    if not isinstance(text, str):
        raise MalformedAnswer("a choice without text")
    return text


def _token_losses(logprobs: object) -> list[tuple[bytes, float]]:
    """Bytes and loss of tokens in either form of log-probabilities; none if they are not whole."""
    if not isinstance(logprobs, dict):
        return []
    found: list[tuple[bytes, float]] = []
    content = logprobs.get("content")
    pairs: list[tuple[bytes, Any]]
    if isinstance(content, list):
        entries = [entry for entry in content if isinstance(entry, dict)]
        pairs = [(_bytes_of(entry), entry.get("logprob")) for entry in entries]
    else:
        tokens, values = logprobs.get("tokens"), logprobs.get("token_logprobs")
        if not isinstance(tokens, list) or not isinstance(values, list):
            return []
        pairs = [(str(token).encode(), value) for token, value in zip(tokens, values, strict=False)]
    for piece, value in pairs:
        if type(value) not in (int, float) or not math.isfinite(value):
            return []
        found.append((piece, -float(value)))
    return found


def _bytes_of(entry: Mapping[str, Any]) -> bytes:
    listed = entry.get("bytes")
    if isinstance(listed, list) and all(type(b) is int and 0 <= b < 256 for b in listed):
        return bytes(listed)
    return str(entry.get("token", "")).encode("utf-8", "surrogatepass")


def line_losses(text: str, losses: Sequence[tuple[bytes, float]]) -> tuple[float, ...]:
    """Mean loss of each line of a text.

    A token belongs to the line of its first character that is no line break; a line without tokens
    has loss 0.

    Args:
        text: The text, which may be shorter than the tokens.
        losses: Bytes and loss of each token, from the beginning.

    Returns:
        One number a line; nothing where the tokens do not spell the text.
    """
    written = text.encode("utf-8", "surrogatepass")
    if not losses or not b"".join(piece for piece, _ in losses).startswith(written):
        return ()
    lines: list[list[float]] = [[] for _ in range(text.count("\n") + 1)]
    line = offset = 0
    for piece, loss in losses:
        if offset >= len(written):
            break
        breaks = len(piece) - len(piece.lstrip(b"\n"))
        own = 0 if breaks == len(piece) else breaks
        lines[min(line + own, len(lines) - 1)].append(loss)
        line += piece.count(b"\n")
        offset += len(piece)
    return tuple(math.fsum(values) / len(values) if values else 0.0 for values in lines)


def read_score(record: object, before: str, continuation: str) -> Score | None:
    """The score of a continuation, from an echo of the whole text with log-probabilities.

    Args:
        record: The server's answer.
        before: What stood before the continuation; not empty.
        continuation: What is scored.

    Returns:
        None where the answer does not hold the log-probabilities of the text that was sent.

    Raises:
        NonFiniteError: A log-probability is not a finite number.
        BackendError: The continuation has no token of its own.
    """
    try:
        choice = record["choices"][0]  # type: ignore[index]  # whatever it is
        logprobs = choice["logprobs"]
        tokens, values = logprobs["tokens"], logprobs["token_logprobs"]
        tops = logprobs.get("top_logprobs") or [None] * len(tokens)
        if not all(isinstance(token, str) for token in tokens):
            return None
        echoed = "".join(tokens)
        rows = list(zip(tokens, values, tops, strict=True))
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        return None
    skipped = echoed.find(before + continuation)  # a token for the beginning of the text, maybe
    if skipped < 0:
        return None
    start = skipped + len(before)
    ends = accumulate(len(token) for token in tokens)
    total, count, greedy = 0.0, 0, True
    for (token, value, top), end in zip(rows, ends, strict=True):
        if end <= start or end - len(token) >= start + len(continuation):
            continue
        if value is None and end == len(token):  # nothing stood before it
            continue
        if type(value) not in (int, float) or not math.isfinite(value):
            raise NonFiniteError(f"the endpoint scored the token {token!r} as {value!r}")
        others = top.values() if isinstance(top, dict) else ()
        best = max((v for v in others if type(v) in (int, float)), default=value)
        greedy = greedy and value >= best - _GREEDY_MARGIN
        total += value
        count += 1
    if not count:
        raise BackendError(f"nothing to score: the continuation is {continuation!r}")
    return Score(min(total, 0.0), count, greedy)
