"""A deterministic fake language model, for tests and documentation.

Takes the same calls as a real model and gives texts from a script, or, without one, list items,
rewrites or questions made from the passage in the prompt. Tokens are words between white space.
Scores come from a hash of each word: lower loss for words that it `knows`, that stand in the
prompt, or that a `ScriptedTrainer` adapter has seen. It fails, hangs or scores NaN on demand.
Nothing it says about learning is real; it is there so that all other code can be tested in
milliseconds and without weights.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

from aios.core.errors import BackendError, NonFiniteError
from aios.core.seeds import derive
from aios.core.streaming import Generated, collect
from aios.core.types import Completion, FinishReason, GenerationRequest, Score, ScoreRequest

if TYPE_CHECKING:
    from aios.core.protocols import TrialBench

SCRIPTED_NAME = "scripted"
Script = Mapping["str | re.Pattern[str]", Sequence[str]]

_HEADING = re.compile(r"\n\s*[A-Z][\w ]{0,40}:\s*$")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
_KNOWN_FACTOR = 0.1
_IN_PROMPT_FACTOR = 0.5
_LEARNT_FLOOR = 0.25
_LEARNT_RATE = 0.6
_GREEDY_BELOW = 1.0  # nats
_KEPT_REQUESTS = 1000
_KEPT_TEXTS = 4096  # what follows from a text alone: a job asks for the same few again and again


@dataclass(frozen=True)
class Faults:
    """What goes wrong, and when.

    Attributes:
        fail_times: How many requests fail, and end their stream, before one succeeds.
        fail_on: Only requests with a prompt that holds this text fail; empty: any.
        retryable: Whether these failures say that trying again may help.
        hang_seconds: How long each completion takes.
        nan_scores: Every call of `score` meets a NaN.
    """

    fail_times: int = 0
    fail_on: str = ""
    retryable: bool = True
    hang_seconds: float = 0.0
    nan_scores: bool = False


@dataclass(frozen=True)
class Memory:
    """What a scripted adapter has learnt: training texts and how often each was seen."""

    times: Mapping[str, int] = field(default_factory=dict)

    def exposures(self, phrase: str) -> int:
        """How often texts with this phrase were seen, whatever its capitals and spaces."""
        wanted = _fold(phrase)
        return sum(n for text, n in self.times.items() if wanted and wanted in _fold(text))

    def answer(self, question: str) -> str:
        """The answer that stands after this question in a training text, or empty."""
        wanted = _fold(question)
        for text in sorted(self.times):
            if wanted and wanted in _fold(text) and "answer:" in text.lower():
                return re.split(r"answer:", text, flags=re.IGNORECASE)[-1].strip()
        return ""


class ScriptedModel:
    """A `LanguageModel` without weights.

    Args:
        script: Completions by a text or pattern that the prompt holds, the first match wins; the
            seed chooses among them, and temperature 0 takes the first.
        name: Its name.
        knows: Words that it scores as known.
        faults: What goes wrong.
        context_length: Most words of prompt and completion together.
        memory: What the active adapter has learnt.
        adapter_digest: That adapter's digest; empty without one.
        sleep: Called to hang.

    Attributes:
        requests: The generation requests it was given, in order; of a long run the last 1000.
        scored: How many score requests it was given.
    """

    def __init__(
        self,
        script: Script | None = None,
        *,
        name: str = SCRIPTED_NAME,
        knows: Collection[str] = (),
        faults: Faults | None = None,
        context_length: int = 2048,
        memory: Memory | None = None,
        adapter_digest: str = "",
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.script: Script = dict(script or {})
        self.knows = frozenset(_fold(word) for word in knows)
        self.faults = faults or Faults()
        self.memory = memory or Memory()
        self.requests: list[GenerationRequest] = []
        self.scored = 0
        self._name = name
        self._context_length = context_length
        self._adapter_digest = adapter_digest
        self._sleep = sleep
        self._failures_left = self.faults.fail_times
        self._bench: TrialBench | None = None

    @property
    def name(self) -> str:
        """Its name, ``scripted`` unless another was given."""
        return self._name

    @property
    def digest(self) -> str:
        """Hash of everything that its texts and scores depend on, but the adapter."""
        script = [
            (key if isinstance(key, str) else ["pattern", key.pattern, key.flags], list(texts))
            for key, texts in self.script.items()
        ]
        parts = [self._name, script, sorted(self.knows), self._context_length]
        return hashlib.sha256(json.dumps(parts, ensure_ascii=True).encode()).hexdigest()

    @property
    def adapter_digest(self) -> str:
        """Digest of the adapter that it was attached with; empty without one."""
        return self._adapter_digest

    @property
    def context_length(self) -> int:
        """Most words of prompt and completion together."""
        return self._context_length

    def with_memory(self, memory: Memory, adapter_digest: str) -> ScriptedModel:
        """The same model with an adapter on it."""
        return ScriptedModel(
            self.script,
            name=self._name,
            knows=self.knows,
            faults=self.faults,
            context_length=self._context_length,
            memory=memory,
            adapter_digest=adapter_digest,
            sleep=self._sleep,
        )

    def count_tokens(self, text: str) -> int:
        """Number of words between white space."""
        return len(text.split())

    def format_chat(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The contents, joined by blank lines."""
        return "\n\n".join(message["content"] for message in messages)

    @property
    def end_of_turn(self) -> str:
        """Empty: it has no token for that, and always stops."""
        return ""

    def trial_bench(self) -> TrialBench:
        """Where temporary adapters over this model are trained; the same at every call."""
        from aios.backends.scripted_trials import ScriptedTrialBench  # which needs this module

        if self._bench is None:
            self._bench = ScriptedTrialBench(self)
        return self._bench

    def stream(
        self, requests: Iterable[GenerationRequest], *, width: int | None = None
    ) -> Iterator[Generated]:
        """Writes the completions of one request after the other.

        Raises:
            BackendError: A fault was asked for.
        """
        for index, request in enumerate(requests):
            self.requests.append(request)
            del self.requests[:-_KEPT_REQUESTS]
            if self._failures_left > 0 and self.faults.fail_on in request.prompt:
                self._failures_left -= 1
                raise BackendError("the script says to fail", retryable=self.faults.retryable)
            used = self.count_tokens(request.prompt)
            if used >= self._context_length:
                error = BackendError(
                    f"a prompt of {used} tokens leaves no room in the context of"
                    f" {self._context_length}: {request.prompt[:60]!r}",
                    "split the passage (data.max_passage_tokens)",
                )
                yield Generated(index, error=error)
                continue
            began = time.perf_counter()
            written = tuple(self._complete(request, seed) for seed in request.seeds)
            yield Generated(index, written, seconds=time.perf_counter() - began)

    def generate(self, requests: Sequence[GenerationRequest]) -> list[list[Completion]]:
        """Writes one completion a seed for each request.

        Raises:
            BackendError: A fault was asked for, or a prompt leaves no room in the context.
        """
        return collect(self.stream(requests))

    def score(self, requests: Sequence[ScoreRequest]) -> list[Score]:
        """Log-probabilities from hashes of the words.

        Raises:
            NonFiniteError: The fault `nan_scores` was asked for.
            BackendError: A continuation is empty or does not fit the context.
        """
        self.scored += len(requests)
        if self.faults.nan_scores and requests:
            raise NonFiniteError("the script says to score NaN")
        return [self._score(request) for request in requests]

    def _complete(self, request: GenerationRequest, seed: int) -> Completion:
        sampling = request.sampling
        greedy = sampling.temperature == 0
        text = self._text(request.prompt, None if greedy else seed)
        for stop in sampling.stop:
            text = text.split(stop, 1)[0] if stop else text
        room = self._context_length - self.count_tokens(request.prompt)
        limit = min(sampling.max_new_tokens, room)
        reason: FinishReason = "stop"
        if self.count_tokens(text) > limit:
            reason = "length"
        allowed, late = self._wait(request.deadline_seconds, self.count_tokens(text))
        if late:
            limit, reason = min(limit, allowed), "deadline"
        text = _first_words(text, limit)
        return Completion(text, self.count_tokens(text), reason, seed)

    def _wait(self, deadline: float | None, words: int) -> tuple[int, bool]:
        """Hangs as asked; how many of the words are written then, and whether it was too late."""
        takes = self.faults.hang_seconds
        if takes <= 0:
            return words, False
        if deadline is None or deadline >= takes:
            self._sleep(takes)
            return words, False
        self._sleep(max(deadline, 0.0))
        return int(words * max(deadline, 0.0) / takes), True

    def _text(self, prompt: str, seed: int | None) -> str:
        for key, texts in self.script.items():
            found = key in prompt if isinstance(key, str) else key.search(prompt) is not None
            if found and texts:
                index = 0 if seed is None else derive(seed, "scripted") % len(texts)
                return texts[index]
        return self._text_from_passage(prompt, seed)

    def _text_from_passage(self, prompt: str, seed: int | None) -> str:
        """The default rule: items, rewrites or questions, as the prompt asks for."""
        opening, marker, passage = prompt.rpartition("Passage:")
        if not marker:
            question = re.findall(r"question:\s*(.+?)\s*(?:\n|$)", prompt, re.IGNORECASE)
            return self.memory.answer(question[-1] if question else prompt) or "unknown"
        sentences = _sentences(_HEADING.sub("", passage.rstrip()))
        if seed is not None:
            random.Random(seed).shuffle(sentences)
        if "question" in opening.lower():
            return "\n".join(_ask(i, s) for i, s in enumerate(sentences, start=1))
        if "rewrit" in opening.lower():
            return " ".join(sentences) + "\n" + " ".join(reversed(sentences))
        return "\n".join(f"{i}. {sentence}" for i, sentence in enumerate(sentences, start=1))

    def _score(self, request: ScoreRequest) -> Score:
        words = request.continuation.split()
        if not words:
            raise BackendError(f"nothing to score: the continuation is {request.continuation!r}")
        length = self.count_tokens(request.prompt) + len(words)
        if length > self._context_length:
            raise BackendError(f"{length} tokens do not fit the context of {self._context_length}")
        prompt = {_fold(word) for word in request.prompt.split()}
        seen = self.memory.exposures(request.continuation)
        learnt = _LEARNT_FLOOR + (1 - _LEARNT_FLOOR) * _LEARNT_RATE**seen
        losses = [self._word_loss(_fold(word), prompt) * learnt for word in words]
        return Score(-math.fsum(losses), len(words), all(x < _GREEDY_BELOW for x in losses))

    def _word_loss(self, word: str, prompt: Collection[str]) -> float:
        loss = _plain_loss(self._name, word)
        if word in self.knows:
            loss *= _KNOWN_FACTOR
        if word in prompt:
            loss *= _IN_PROMPT_FACTOR
        return loss


@lru_cache(_KEPT_TEXTS)
def _plain_loss(model: str, word: str) -> float:
    """The loss of a word that the model was not told anything about, in nats."""
    return 2.0 + 3.0 * derive(0, model, "loss", word) / 2**63


@lru_cache(_KEPT_TEXTS)
def _fold(text: str) -> str:
    """Lower case, one space between words, no punctuation at the ends of words."""
    return " ".join(word.strip(".,;:!?\"'()[]") for word in text.lower().split()).strip()


def _sentences(passage: str) -> list[str]:
    """Sentences of a passage; lines without a full stop (a title) are left out."""
    lines = [line.strip() for line in passage.strip().splitlines() if line.strip()]
    ended = [line for line in lines if line[-1] in ".!?"]
    return [s for line in ended or lines for s in _SENTENCE_END.split(line) if s]


def _ask(number: int, sentence: str) -> str:
    """A question whose answer is the sentence's longest name or number, or its last word."""
    words = [word.strip(".,;:!?\"'()") for word in sentence.split()]
    marked = [w for w in words[1:] if w[:1].isupper() or w[:1].isdigit()]
    answer = max(marked, key=len) if marked else words[-1]
    gap = re.sub(rf"\b{re.escape(answer)}\b", "____", sentence)
    return f"Question {number}: What completes this: {gap}\nAnswer {number}: {answer}"


def _first_words(text: str, count: int) -> str:
    """The text up to and with its `count`-th word, its white space as it was."""
    ends = [match.end() for match in re.finditer(r"\S+", text)]
    return text if len(ends) <= count else text[: ends[count - 1]] if count > 0 else ""
