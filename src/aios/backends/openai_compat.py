"""A `LanguageModel` behind an OpenAI-compatible HTTP API: vLLM, llama.cpp, Ollama, hosted services.

Takes the model's id and the config section ``endpoint``; gives completions, and scores where the
server can echo a prompt with log-probabilities. `stream` keeps several calls in flight, one a seed,
within the limits of the section; failures are sorted and retried in `endpoint.http` and
`endpoint.calls`, and never hang.

What differs from a model that is loaded here: the weights cannot be checked, so `digest` stands for
the address, the model's id and what the server says of it; a server computes in batches, so a seed
gives the same text again only as far as the server keeps to that; and tokens are estimated where
the server does not count them.
"""

from __future__ import annotations

import asyncio
import functools
import os
import re
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence

import httpx2 as httpx

from aios.backends.endpoint.answers import estimate_tokens, join_contents, render_chat
from aios.backends.endpoint.calls import Caller
from aios.backends.endpoint.http import CallError, is_loopback
from aios.backends.endpoint.loop import LoopThread, all_of
from aios.backends.endpoint.pacing import Clock
from aios.backends.endpoint.stream import EndpointStream
from aios.backends.models import ENDPOINT_PREFIX
from aios.core.config.endpoint_schema import EndpointConfig
from aios.core.errors import ModelError
from aios.core.events import Notice
from aios.core.protocols import Emit, ignore
from aios.core.streaming import Generated, collect
from aios.core.types import Completion, GenerationRequest, Score, ScoreRequest

_SHOWN_MODELS = 8
_COUNTS_KEPT = 1024


class EndpointModel:
    """A model that is asked over HTTP.

    `connect` makes one. Close it when it is no longer used; the end of the program does, too.

    Args:
        caller: Makes the calls; its facts are known.
        loop: Where the calls run.
    """

    def __init__(self, caller: Caller, loop: LoopThread) -> None:
        self._caller = caller
        self._loop = loop
        self._count = functools.lru_cache(maxsize=_COUNTS_KEPT)(
            lambda text: loop.run(caller.count(text))
        )
        weakref.finalize(self, loop.close)

    @classmethod
    def connect(
        cls,
        name: str,
        settings: EndpointConfig,
        *,
        offline: bool = False,
        environ: Mapping[str, str] | None = None,
        emit: Emit = ignore,
        clock: Clock | None = None,
    ) -> EndpointModel:
        """Asks the endpoint what it says of a model, and gives the model.

        Args:
            name: ``endpoint:`` and the model's id, or the id alone.
            settings: The config section.
            offline: Only addresses of this machine are allowed.
            environ: Where the key is looked up; the process's environment by default.
            emit: Gets notices.
            clock: Time, sleep and chance.

        Raises:
            ModelError: The endpoint cannot be used: it does not answer, refuses the key, is not
                allowed under `offline`, or no model is named.
        """
        url = settings.url
        try:
            httpx.URL(url)
        except httpx.InvalidURL as error:
            raise ModelError(f"endpoint.url {url} is no address: {error}") from None
        if offline and not is_loopback(url):
            raise ModelError(
                f"the endpoint {url} is not on this machine, and --offline forbids the network",
                "set endpoint.url to a loopback address, or leave --offline out",
            )
        key = read_key(settings.api_key_env, os.environ if environ is None else environ)
        if key and url.startswith("http://") and not is_loopback(url):
            emit(Notice(f"the key in {settings.api_key_env} goes to {url} unencrypted", "warning"))
        caller = Caller.make(name.removeprefix(ENDPOINT_PREFIX), settings, key, clock or Clock())
        loop = LoopThread("aios-endpoint", caller.http.close)
        try:
            loop.run(caller.learn())
            _check_id(caller)
        except CallError as error:
            loop.close()
            raise ModelError(error.message, error.remedy) from None
        except BaseException:
            loop.close()
            raise
        emit(Notice(f"model {caller.model} at {url}"))
        return cls(caller, loop)

    @property
    def name(self) -> str:
        """``endpoint:`` and the model's id."""
        return ENDPOINT_PREFIX + self._caller.model

    @property
    def digest(self) -> str:
        """Hash of address, model id, settings that change texts, and what the endpoint says.

        What it says of the model is asked for once, on connecting; the weights themselves cannot be
        checked, so a server that loads others under the same name is not noticed.
        """
        return self._caller.digest()

    @property
    def adapter_digest(self) -> str:
        """Empty: what adapters an endpoint has on is part of the model's id."""
        return ""

    @property
    def context_length(self) -> int:
        """``endpoint.context_length``, or what the endpoint says, or 4096."""
        return self._caller.context_length

    @property
    def counts_exactly(self) -> bool:
        """Whether `count_tokens` asks the model's own tokenizer."""
        return self._caller.facts.tokenizes

    def count_tokens(self, text: str) -> int:
        """Tokens of a text, by the server's ``/tokenize`` or else estimated.

        Raises:
            BackendError: The server, which counted before, no longer does.
        """
        if not text:
            return 0
        return self._count(text) if self.counts_exactly else estimate_tokens(text)

    def format_chat(self, messages: Sequence[Mapping[str, str]]) -> str:
        """A text that holds the messages, each behind a marker line with its role.

        The chat API gets the messages back from it, and the server applies the model's own
        template. With ``endpoint.api: completions``, the contents joined by blank lines.
        """
        if self._caller.settings.api == "completions":
            return join_contents(messages)
        return render_chat(messages)

    @property
    def end_of_turn(self) -> str:
        """Empty: an endpoint's tokens are not known, and nothing is trained on it."""
        return ""

    def stream(
        self, requests: Iterable[GenerationRequest], *, width: int | None = None
    ) -> Iterator[Generated]:
        """Writes completions, several requests at a time, each outcome as it is ready.

        A completion that reaches its deadline is kept as far as it came and marked ``deadline``;
        the deadline counts for each call by itself, from when it is sent. Closing the iterator
        cancels what is in flight.

        Args:
            requests: Taken in this thread, when there is room.
            width: Most calls at a time, at most ``endpoint.concurrency``, which is the default.

        Raises:
            BackendError: The endpoint is down, refuses the key, or has refused every request.
        """
        most = self._caller.settings.concurrency
        width = most if width is None else max(1, min(width, most))
        return EndpointStream(self._caller, self._loop, width).run(requests)

    def generate(self, requests: Sequence[GenerationRequest]) -> list[list[Completion]]:
        """Writes the completions of all requests, in order.

        Raises:
            BackendError: A request failed.
        """
        return collect(self.stream(requests))

    def score(self, requests: Sequence[ScoreRequest]) -> list[Score]:
        """Log-probabilities of continuations, in order, where the endpoint echoes prompts.

        Raises:
            BackendError: The endpoint cannot score (llama.cpp, Ollama and most hosted services), or
                a call failed; `NonFiniteError` where a score is not a finite number.
        """
        return self._loop.run(_score_all(self._caller, list(requests))) if requests else []

    def close(self) -> None:
        """Cancels what is in flight and closes all connections; a later call opens new ones."""
        self._loop.close()

    def __repr__(self) -> str:
        return f"EndpointModel({self._caller.model!r}, {self._caller.settings.url!r})"


def read_key(variable: str, environ: Mapping[str, str]) -> str:
    """The key in an environment variable; empty where it is not set.

    Raises:
        ModelError: What it holds cannot be sent in a header.
    """
    key = environ.get(variable, "").strip()
    if not re.fullmatch(r"[\x21-\x7e]*", key):
        raise ModelError(
            f"the environment variable {variable} holds no key: it has spaces, line breaks or"
            " characters that are not ASCII",
            f"set {variable} to the key alone",
        )
    return key


async def _score_all(caller: Caller, requests: Sequence[ScoreRequest]) -> list[Score]:
    """Scores at most ``endpoint.concurrency`` texts at a time; the first failure ends it."""
    room = asyncio.Semaphore(caller.settings.concurrency)

    async def score(request: ScoreRequest) -> Score:
        async with room:
            return await caller.score(request)

    return await all_of(score(request) for request in requests)


def _check_id(caller: Caller) -> None:
    """Refuses an empty id; the message lists the models that there are."""
    if caller.model:
        return
    known = ", ".join(caller.http.clean(name) for name in caller.facts.known[:_SHOWN_MODELS])
    raise ModelError(
        f"no model of the endpoint {caller.settings.url} is named",
        f"give --model {ENDPOINT_PREFIX}ID" + (f"; it has: {known}" if known else ""),
    )
