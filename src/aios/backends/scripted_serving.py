"""A deterministic fake of the serving engine, for tests of what talks to it.

`ScriptedWriter` is a `core.serving.Writer` over a `ScriptedModel`: its texts are the scripted
model's, word by word, with the queue, places, endings and thread of the real engine
(`serving.loop`). A text under adapters begins with their names in brackets, so that a test sees
who wrote it: ``[physics] ``, ``[art*0.5 physics*0.5] ``, ``[physics+session] ``. What adapters
have learnt is known as the scripted trainer and bench wrote it. It is slow, fails or is full on
demand.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from aios.backends.scripted import Memory, ScriptedModel
from aios.backends.scripted_adapter import checked_memory
from aios.backends.scripted_trials import ScriptedExpert
from aios.backends.serving.loop import ServingLoop, Text
from aios.core.errors import AdapterMismatchError, BackendError, QueueFullError
from aios.core.protocols import LanguageModel
from aios.core.serving import (
    EndReason,
    Part,
    Piece,
    TokenLogprob,
    WriteRequest,
    WriterLoad,
    Writing,
    WrittenToken,
)
from aios.core.types import AdapterRef, GenerationRequest

_WORD = re.compile(r"\s*\S+(?:\s+\Z)?")
_HALF = 0.6931471805599453  # nats; each likeliest token has half of the probability before it


@dataclass(eq=False, slots=True)
class _Job:
    """A text: its words, once it has a place, and how many of them are written."""

    memory: Memory
    label: str
    words: list[str] = field(default_factory=list)
    reason: EndReason = "stop"
    done: int = 0


class ScriptedWriter:
    """A `Writer` without weights.

    Args:
        model: What writes the texts.
        max_concurrent: Texts written at once.
        max_waiting: Texts that may wait.
        seconds_per_token: How long a step, one word of each text, takes.
        fail_after: Words after which a text fails; None: none does.
        fail_on: Only texts whose prompt holds this fail.
        full: Whether all requests are refused, as if too many waited.
        read_adapters: Whether adapter folders are read and checked; without, they are only names.
        label: Whether texts begin with the names of their adapters.
        sleep: Called to be slow.

    Attributes:
        requests: What was submitted and taken, in order.
    """

    def __init__(
        self,
        model: ScriptedModel | None = None,
        *,
        max_concurrent: int = 32,
        max_waiting: int = 64,
        seconds_per_token: float = 0.0,
        fail_after: int | None = None,
        fail_on: str = "",
        full: bool = False,
        read_adapters: bool = True,
        label: bool = True,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._model = model or ScriptedModel()
        self.full = full
        self.requests: list[WriteRequest] = []
        self.batch = _ScriptedBatch(self._model, sleep)
        self.batch.seconds_per_token = seconds_per_token
        self.batch.fail_after, self.batch.fail_on = fail_after, fail_on
        self.batch.read_adapters, self.batch.label = read_adapters, label
        self._recording = threading.Lock()
        self._loop = ServingLoop(
            self.batch, max_concurrent=max_concurrent, max_waiting=max_waiting, name="scripted"
        )

    @property
    def model(self) -> LanguageModel:
        """The scripted model."""
        return self._model

    def submit(self, request: WriteRequest) -> Writing:
        """Begins a text; see `core.serving.Writer.submit`."""
        if self.full:
            raise QueueFullError("the script says that too many texts wait", "try again")
        with self._recording:  # the order of the record is the order of the queue
            text = self._loop.submit(request)
            self.requests.append(request)
        return text

    @contextmanager
    def between(self) -> Iterator[LanguageModel]:
        """The model, while nothing is written; see `core.serving.Writer.between`."""
        with self._loop.between():
            yield self._model

    def load(self) -> WriterLoad:
        """What it has to do now."""
        return self._loop.load()

    def close(self) -> None:
        """Ends all texts."""
        self._loop.close()


class _ScriptedBatch:
    """Writes one word of each text at a step; its settings may be changed at any time."""

    def __init__(self, model: ScriptedModel, sleep: Callable[[float], None]) -> None:
        self._model, self._sleep = model, sleep
        self._texts: list[Text[_Job]] = []
        self.seconds_per_token = 0.0
        self.fail_after: int | None = None
        self.fail_on = ""
        self.read_adapters = self.label = True

    def prepare(self, request: WriteRequest) -> tuple[_Job, int]:
        used = self._model.count_tokens(request.prompt)
        if used == 0:
            raise BackendError("the prompt is empty", "give the model a text to go on with")
        if used >= self._model.context_length:
            raise BackendError(
                f"the prompt has {used} tokens; the context holds {self._model.context_length}",
                "shorten it",
            )
        times = dict(self._model.memory.times)
        for part in request.parts:
            for text, count in self._memory(part).times.items():
                times[text] = max(count, times.get(text, 0))
        return _Job(Memory(times), _label(request.parts) if self.label else ""), used

    def dismiss(self, job: _Job) -> None:
        """Nothing was taken."""

    def add(self, text: Text[_Job]) -> None:
        job, request = text.job, text.request
        model = self._model
        if request.parts:
            model = model.with_memory(job.memory, job.label or "parts")
        wanted = GenerationRequest(request.prompt, (request.seed,), request.sampling)
        completion = model.generate([wanted])[0][0]
        words = _WORD.findall(completion.text)
        if job.label:
            words.insert(0, f"[{job.label}] ")
        most = min(request.sampling.max_new_tokens, model.context_length - text.prompt_tokens)
        job.reason = "length" if completion.finish_reason == "length" else "stop"
        if len(words) > most:
            words, job.reason = words[:most], "length"
        job.words = words
        self._texts.append(text)

    def step(self) -> None:
        if self.seconds_per_token > 0:
            self._sleep(self.seconds_per_token)
        for text in list(self._texts):
            self._advance(text)
            if text.over:
                self._texts.remove(text)

    def remove(self, text: Text[_Job], *, finished: bool) -> None:
        self._texts.remove(text)

    def close(self) -> None:
        self._texts.clear()

    def _advance(self, text: Text[_Job]) -> None:
        job = text.job
        failing = self.fail_after is not None and self.fail_on in text.request.prompt
        if failing and job.done >= (self.fail_after or 0):
            text.fail(BackendError("the script says to fail", retryable=True))
            return
        if job.done < len(job.words):
            word = job.words[job.done]
            job.done += 1
            text.wrote()
            count = text.request.top_logprobs
            text.put(Piece(word, () if count is None else (_written(word, count),)))
        if job.done >= len(job.words) and not (failing and job.done >= (self.fail_after or 0)):
            text.end(job.reason)

    def _memory(self, part: Part) -> Memory:
        """What an adapter has learnt.

        Raises:
            AdapterMismatchError: It is of another base model.
            StorageError: It cannot be read.
            BackendError: It was released.
        """
        adapter = part.adapter
        if isinstance(adapter, AdapterRef) and self.read_adapters:
            return checked_memory(adapter, self._model)
        base_digest = adapter.base_digest if isinstance(adapter, AdapterRef) else adapter.digest
        if base_digest != self._model.digest:
            raise AdapterMismatchError(
                f"an adapter was trained on another base model than {self._model.name}",
                "use the base model that it was trained on",
            )
        if isinstance(adapter, ScriptedExpert):
            adapter.score([])  # a released one says so
            return adapter.memory
        return Memory()


def _label(parts: tuple[Part, ...]) -> str:
    """The names of adapters, and their weights where they are not 1."""
    names = []
    for part in parts:
        adapter = part.adapter
        name = adapter.path.name if isinstance(adapter, AdapterRef) else "session"
        names.append(name if part.weight == 1.0 else f"{name}*{part.weight:g}")
    temporary = [name for name in names if name.startswith("session")]
    experts = [name for name in names if not name.startswith("session")]
    return "+".join([" ".join(sorted(experts)), *temporary]).strip("+")


def _written(word: str, count: int) -> WrittenToken:
    """A word as a token that was the likeliest, followed by so many that are not words."""
    likeliest = [word, *(f"{word}-{i}" for i in range(1, count))][:count]
    tokens = [TokenLogprob(t, -_HALF * (i + 1), t.encode()) for i, t in enumerate(likeliest)]
    return WrittenToken(TokenLogprob(word, -_HALF, word.encode()), tuple(tokens))
