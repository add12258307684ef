"""What the routes share: the assistant, the settings, and how a request becomes texts.

Takes a checked request; gives the calls that begin its texts, and waits for them. A client that
leaves while its texts wait or are written has them cancelled.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
import anyio.to_thread
from starlette.requests import Request

from aios.core.config.serving_schemas import ServeConfig
from aios.core.seeds import derive
from aios.core.types import SamplingParams
from aios.web.answers import Answers, Begin
from aios.web.errors import ApiError, ClientGoneError
from aios.web.metrics import Metrics
from aios.web.openai_schemas import MOST_TEXTS

if TYPE_CHECKING:
    from collections.abc import Callable

    from aios.app.chat.answering import Answering
    from aios.app.chat.assistant import Assistant
    from aios.web.openai_schemas import ChatRequest, CompletionRequest

SESSION_HEADER = "X-AIOS-Session"
SHORT_CALLS = 8  # at once: lists of models, feedback
_T = TypeVar("_T")


@dataclass(eq=False)
class Service:
    """The collaborators of all routes.

    Attributes:
        assistant: Who answers.
        settings: The section ``serve``.
        answers: The texts that are being written.
        metrics: What is counted.
    """

    assistant: Assistant
    settings: ServeConfig
    answers: Answers
    metrics: Metrics

    @cached_property
    def _short_calls(self) -> anyio.CapacityLimiter:
        return anyio.CapacityLimiter(SHORT_CALLS)

    async def call(self, function: Callable[[], _T]) -> _T:
        """Does something short that blocks, off the event loop."""
        return await anyio.to_thread.run_sync(function, limiter=self._short_calls)

    def calls(
        self,
        begin: Callable[..., Answering],
        inputs: Sequence[object],
        body: ChatRequest | CompletionRequest,
        request: Request,
        *,
        sampling: SamplingParams,
        top_logprobs: int | None,
    ) -> list[Begin]:
        """What begins the texts of a request: ``n`` for each input, in order.

        Args:
            begin: `Assistant.chat` or `Assistant.complete`.
            inputs: The conversation, or the prompts.
            body: The request.
            request: Its headers may name the session.
            sampling: How the tokens are drawn.
            top_logprobs: How many likeliest tokens are wanted at each place; None: none at all.

        Raises:
            ApiError: Too many texts are wanted, or the session cannot be.
        """
        seeds = seeds_of(body)
        texts = len(inputs) * len(seeds)
        require_few(texts)
        session = session_of(body, request, texts)
        return [
            partial(
                begin,
                each,
                model=body.model,
                session=session,
                sampling=sampling,
                seed=seed,
                top_logprobs=top_logprobs,
                timeout_seconds=self.settings.timeout_seconds,
                tta=body.tta,
            )
            for each in inputs
            for seed in seeds
        ]

    def sampling(
        self, body: ChatRequest | CompletionRequest, wanted: int | None, default: int
    ) -> SamplingParams:
        """How the tokens of a request are drawn.

        Args:
            body: The request.
            wanted: How many tokens it asks for at most.
            default: How many where it does not say.

        Raises:
            ApiError: It asks for more tokens than it may.
        """
        most = self.settings.max_new_tokens
        if wanted is not None and wanted > most:
            message = (
                f"max_tokens: an answer may have {most:,} tokens at most (serve.max_new_tokens)"
            )
            raise ApiError(400, message, param="max_tokens")
        usual = self.assistant.default_sampling
        return SamplingParams(
            temperature=usual.temperature if body.temperature is None else body.temperature,
            top_p=usual.top_p if body.top_p is None else body.top_p,
            max_new_tokens=min(default, most) if wanted is None else wanted,
            stop=tuple(body.stop),
        )


def session_of(body: ChatRequest | CompletionRequest, request: Request, texts: int) -> str:
    """The session of a request, by its field or its header; empty where it has none.

    Raises:
        ApiError: The two differ, the header's is no id, or several texts are wanted in it.
    """
    named = request.headers.get(SESSION_HEADER, "")
    if named and (len(named) > 128 or not all("!" <= character <= "~" for character in named)):
        raise ApiError(400, f"{SESSION_HEADER} must be 1 to 128 printable characters, no spaces")
    if named and body.session_id and named != body.session_id:
        message = f"session_id and the header {SESSION_HEADER} name different sessions"
        raise ApiError(400, message, param="session_id")
    session = body.session_id or named
    if session and texts > 1:
        message = "a session takes one text at a time: leave out n, and send one prompt"
        raise ApiError(400, message, param="session_id")
    return session


def seeds_of(body: ChatRequest | CompletionRequest) -> list[int | None]:
    """The seeds of the n texts of each prompt; None: drawn anew. The first is the request's."""
    wanted = body.n or 1
    if body.seed is None:
        return [None] * wanted
    first = body.seed % 2**63
    return [first, *(derive(first, "choice", index) for index in range(1, wanted))]


def require_few(texts: int) -> None:
    """Refuses a request for too many texts.

    Raises:
        ApiError: It is one.
    """
    if texts > MOST_TEXTS:
        message = f"{texts} texts are wanted; a request may ask for {MOST_TEXTS} (prompts times n)"
        raise ApiError(400, message, param="n")


def check_stream_options(body: ChatRequest | CompletionRequest) -> bool:
    """Whether usage is wanted at the end of a stream.

    Raises:
        ApiError: Options of a stream are given where none is wanted.
    """
    if body.stream_options is None:
        return False
    if not body.stream:
        raise ApiError(400, "stream_options needs stream to be true", param="stream_options")
    return bool(body.stream_options.include_usage)


async def while_connected(request: Request, work: Coroutine[Any, Any, _T]) -> _T:
    """Does something for a client for as long as it is there; the body was read before.

    Raises:
        ClientGoneError: It has left; the work is cancelled.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(until_gone(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGoneError
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def until_gone(request: Request) -> None:
    """Waits until the client has closed its connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def answered_by_header(answer: Answering) -> str:
    """Who writes a text, in one header."""
    experts = answer.answered_by.experts or (("base", 1.0),)
    text = ", ".join(f"{expert};weight={weight:.3g}" for expert, weight in experts)
    return "".join(character if " " <= character <= "~" else "?" for character in text)
