"""What an endpoint is asked, with limits and retries: completions, scores, token counts, facts.

Each call waits for its turn, is tried again where that may help, and falls back from the chat API
to the completions API (or the other way) where the endpoint has only one of them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

from aios.backends.endpoint import answers
from aios.backends.endpoint.answers import Draft
from aios.backends.endpoint.facts import Facts, read_facts
from aios.backends.endpoint.http import CallError, EndpointHTTP
from aios.backends.endpoint.pacing import Clock, Pacing
from aios.core.config.endpoint_schema import EndpointConfig
from aios.core.errors import BackendError
from aios.core.types import Completion, GenerationRequest, Score, ScoreRequest, content_hash

_T = TypeVar("_T")
Route = Literal["chat", "completions"]

LONGEST_WAIT_SECONDS = 120.0
DEFAULT_CONTEXT = 4096
_PATHS: Mapping[Route, str] = {"chat": "/chat/completions", "completions": "/completions"}
_OTHER: Mapping[Route, Route] = {"chat": "completions", "completions": "chat"}
_NO_ROUTE = frozenset({404, 405, 501})
_WORDS_OF_NO_ROUTE = ("chat template", "chat_template", "chat model")  # with status 400
_TEMPLATE_TOKENS = 16  # for each message, about


@dataclass
class Tally:
    """What became of a request's calls so far.

    Attributes:
        retries: New tries.
        asked: Completions that were asked for and came, in whole or in part.
        silent: How many of them are empty, since their deadline passed before any text came.
    """

    retries: int = 0
    asked: int = 0
    silent: int = 0


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request that is ready to be sent.

    Attributes:
        request: The request, with no more tokens to write than there is room for.
        messages: Its prompt as messages; none where it is a plain text.
        prompt_tokens: Tokens of the prompt, about.
    """

    request: GenerationRequest
    messages: list[dict[str, str]]
    prompt_tokens: int


@dataclass
class Caller:
    """Asks an endpoint; used on one event loop.

    Attributes:
        model: The model's id.
        settings: The config section.
        http: The HTTP side.
        pacing: Limits and backoff.
        facts: What the endpoint says of the model.
        missing: The APIs that it was found not to have.
        proven: Whether a completion ever came.
    """

    model: str
    settings: EndpointConfig
    http: EndpointHTTP
    pacing: Pacing
    facts: Facts = field(default_factory=Facts)
    missing: set[Route] = field(default_factory=set)
    proven: bool = False

    @classmethod
    def make(cls, model: str, settings: EndpointConfig, key: str, clock: Clock) -> Caller:
        """A caller with the limits of the settings."""
        http = EndpointHTTP(
            settings.url,
            key=key,
            key_env=settings.api_key_env,
            timeout=settings.timeout_seconds,
            connections=settings.concurrency + 1,  # one for counts and scores meanwhile
        )
        pacing = Pacing(settings.requests_per_minute, settings.tokens_per_minute, clock)
        return cls(model, settings, http, pacing)

    @property
    def context_length(self) -> int:
        """Most tokens of prompt and completion together."""
        return self.settings.context_length or self.facts.context_length or DEFAULT_CONTEXT

    async def learn(self) -> None:
        """Asks what the endpoint says of the model, and whether it counts tokens.

        Raises:
            CallError: It does not answer, or refuses the key.
        """

        async def ask() -> Any:
            return await self.http.fetch("GET", self.settings.url + "/models")

        try:
            listed = await self._retried(ask, Tally(), connect=False)
        except CallError as error:
            if error.status not in _NO_ROUTE:
                raise
            listed = {}
        tokenizes = self.settings.token_counts == "auto" and await self._tokenizes()
        self.facts = read_facts(self.model, listed, tokenizes)

    async def prepare(self, request: GenerationRequest) -> Prepared:
        """Finds the room that a prompt leaves; tokens are counted exactly only where it matters.

        Raises:
            BackendError: It leaves no room for one token, or counting failed.
        """
        messages = answers.parse_chat(request.prompt)
        text = answers.join_contents(messages) if messages else request.prompt
        wanted, context = request.sampling.max_new_tokens, self.context_length
        about = answers.estimate_tokens(text)
        used = len(text.split())  # a token is hardly ever longer than a word
        if self.facts.tokenizes and 2 * about + wanted > context:
            used = await self.count(text) + _TEMPLATE_TOKENS * len(messages)
        if used >= context:
            raise BackendError(
                f"a prompt of {used} tokens leaves no room in the context of {context}:"
                f" {text[:60]!r}",
                "split the passage (data.max_passage_tokens), or set endpoint.context_length",
            )
        sampling = replace(request.sampling, max_new_tokens=min(wanted, context - used))
        return Prepared(replace(request, sampling=sampling), messages, about)

    async def complete(self, prepared: Prepared, seed: int, tally: Tally) -> Completion:
        """Writes one completion.

        A completion whose deadline passes is kept as far as it has come in, and marked. Each try
        has the whole of the deadline.

        Raises:
            CallError: The call failed for good.
        """
        request = prepared.request
        if request.deadline_seconds is not None and request.deadline_seconds <= 0:
            return Completion("", 0, "deadline", seed)

        async def ask() -> Draft:
            return await self._write(prepared, seed)

        expected = prepared.prompt_tokens + request.sampling.max_new_tokens
        draft = await self._retried(ask, tally, cost=expected)
        text, reason = draft.cut(request.sampling.stop)
        tally.asked += 1
        tally.silent += reason == "deadline" and not text
        self.proven = self.proven or reason != "deadline"
        tokens = draft.tokens
        if tokens is None:
            tokens = len(draft.losses) or len(draft.pieces)
        self.pacing.used(expected, prepared.prompt_tokens + tokens)
        return Completion(text, tokens, reason, seed, answers.line_losses(text, draft.losses))

    async def score(self, request: ScoreRequest) -> Score:
        """Scores a continuation by having the whole text echoed with log-probabilities.

        Without a prompt, a line break stands before the continuation.

        Raises:
            BackendError: The endpoint cannot score, or the call failed.
            NonFiniteError: A score is not a finite number.
        """
        if not request.continuation:
            raise BackendError("nothing to score: the continuation is empty")
        before = request.prompt or "\n"
        body = {
            "model": self.model,
            "prompt": before + request.continuation,
            "max_tokens": 0,
            "temperature": 0,
            "echo": True,
            "logprobs": 1,
        }

        async def ask() -> Any:
            return await self.http.fetch("POST", self.settings.url + "/completions", body)

        try:
            record = await self._retried(ask, Tally())
        except CallError as error:
            if error.status not in (400, 422, *_NO_ROUTE):
                raise
            raise self._cannot_score(error.message) from None
        score = answers.read_score(record, before, request.continuation)
        if score is None:
            raise self._cannot_score("its answer does not hold those of the text that was sent")
        return score

    async def count(self, text: str) -> int:
        """Counts tokens by the server's ``/tokenize``.

        Raises:
            CallError: It does not answer.
        """

        async def ask() -> int:
            counted = await self._tokenize(text)
            if counted is None:
                raise CallError(
                    f"{self.http.url} no longer counts tokens",
                    "look at the server, or set endpoint.token_counts=estimate",
                    retryable=True,
                )
            return counted

        return await self._retried(ask, Tally())

    def digest(self) -> str:
        """Hex digest of everything here that the texts depend on."""
        s = self.settings
        parts = [s.url, self.model, s.api, s.extra_fields, s.logprobs, self.facts.identity]
        return content_hash("endpoint", *parts)

    async def _write(self, prepared: Prepared, seed: int) -> Draft:
        """One try; on an API that turns out not to be there, a try on the other."""
        first = self._route(bool(prepared.messages))
        other = _OTHER[first]
        try:
            return await self._write_to(first, prepared, seed)
        except CallError as error:
            fixed = self.settings.api != "auto" or other in self.missing
            if fixed or not _is_no_route(error):
                raise
        draft = await self._write_to(other, prepared, seed)
        self.missing.add(first)
        return draft

    async def _write_to(self, route: Route, prepared: Prepared, seed: int) -> Draft:
        request, messages = prepared.request, prepared.messages
        prompt: str | list[dict[str, str]] = request.prompt
        if route == "chat":
            prompt = messages or [{"role": "user", "content": request.prompt}]
        elif messages:
            prompt = answers.join_contents(messages)
        body = answers.generation_body(
            self.model,
            prompt,
            request.sampling,
            seed,
            server=self.facts.server,
            logprobs=self._wants_logprobs,
            extra=self.settings.extra_fields,
        )
        draft = Draft()
        url = self.settings.url + _PATHS[route]
        await self.http.write(url, body, draft, request.deadline_seconds)
        return draft

    def _route(self, chat: bool) -> Route:
        if self.settings.api != "auto":
            return self.settings.api
        wanted: Route = "chat" if chat else "completions"
        return _OTHER[wanted] if wanted in self.missing else wanted

    @property
    def _wants_logprobs(self) -> bool:
        if self.settings.logprobs == "auto":
            return self.facts.server in answers.OWN_LOGPROBS
        return self.settings.logprobs == "always"

    async def _retried(
        self,
        ask: Callable[[], Awaitable[_T]],
        tally: Tally,
        *,
        cost: int = 0,
        connect: bool = True,
    ) -> _T:
        """The answer to a call that is tried again where that may help.

        Args:
            ask: Makes the call once.
            tally: Counts the new tries.
            cost: Tokens that it may use.
            connect: Whether to try again where there was no connection.

        Raises:
            CallError: It failed for good; the message says after how many tries.
        """
        for tries in range(self.settings.max_retries + 1):
            await self.pacing.turn(cost)
            try:
                return await ask()
            except CallError as error:
                wait = error.wait or 0.0
                last = tries == self.settings.max_retries or wait > LONGEST_WAIT_SECONDS
                if last or not error.retryable or (error.connect and not connect):
                    raise _after(error, tries + 1) from None
                self.pacing.hold(wait)
            tally.retries += 1
            await self.pacing.back_off(tries)
        raise AssertionError("the last try returns or raises")

    async def _tokenizes(self) -> bool:
        try:
            return bool(await self._tokenize("One two three."))
        except CallError:  # whatever is wrong with it: tokens are estimated
            return False

    async def _tokenize(self, text: str) -> int | None:
        """Tokens by the server's ``/tokenize``, in the forms of vLLM and llama.cpp."""
        body = {
            "model": self.model,
            "prompt": text,
            "content": text,
            "add_special_tokens": False,
            "add_special": False,
        }
        root = self.settings.url.removesuffix("/v1")
        record = await self.http.fetch("POST", root + "/tokenize", body)
        tokens = record.get("tokens") if isinstance(record, dict) else None
        return len(tokens) if isinstance(tokens, list) else None

    def _cannot_score(self, why: str) -> BackendError:
        return BackendError(
            f"the endpoint cannot score texts: it gives no log-probabilities of a prompt ({why})",
            "use a strategy that does not score, vLLM (which can), or a model that is loaded here",
        )


def _is_no_route(error: CallError) -> bool:
    said = error.message.lower()
    return error.status in _NO_ROUTE or (
        error.status == 400 and any(words in said for words in _WORDS_OF_NO_ROUTE)
    )


def _after(error: CallError, tries: int) -> CallError:
    """The error, with the number of tries and a wait that is too long in its message."""
    notes = [f"{tries} tries"] if tries > 1 else []
    if error.wait is not None and error.wait > LONGEST_WAIT_SECONDS:
        notes.append(f"it asks to wait {error.wait:.0f} s")
    return CallError(
        error.message + (f" ({', '.join(notes)})" if notes else ""),
        error.remedy,
        retryable=error.retryable,
        status=error.status,
        connect=error.connect,
        wait=error.wait,
    )
