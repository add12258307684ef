"""The serving engine: texts for many at once, under different adapters, in one batch.

`TorchWriter` is a `core.serving.Writer` on a `TorchLM`. One thread owns the model
(`loop`). A step reads on in the prompt that is next and then writes one token of every
text, whatever its adapters: the base weights are multiplied once for all rows, and each linear
layer adds to a row what that row's adapters ask for (`layers`). So texts join and leave at
every token (Orca's iteration-level scheduling, Yu et al. 2022), prompts are read in blocks between
the tokens of others (Sarathi's chunked prefill, Agrawal et al. 2023, arXiv 2308.16369), and blocks
that are known from earlier prompts under the same adapters are not read again
(`prefixes`).

A text depends on its request alone: it draws from its own seed, its prompt is read in the same
blocks whatever is known of them, and its sums are those of `decoding` and `layers`, which
the others do not change (where that holds is said there).
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from aios.backends.decoding import ROWS, Decoder
from aios.backends.decoding_cache import Prompt
from aios.backends.devices import release_memory
from aios.backends.encoding import encode_with_room
from aios.backends.sampling import Dice, Draw, Sampler
from aios.backends.serving.adapters import AdapterShelf, Mix
from aios.backends.serving.layers import Stacks, adapted, one_mix
from aios.backends.serving.loop import ServingLoop, Text
from aios.backends.serving.prefixes import BLOCK, PrefixCache
from aios.backends.serving.text import TextStream, TokenBytes
from aios.backends.torch_lm import TorchLM
from aios.core.errors import AIOSError, BackendError, NonFiniteError, OutOfMemoryError
from aios.core.protocols import LanguageModel
from aios.core.serving import (
    EndReason,
    Piece,
    TokenLogprob,
    WriteRequest,
    WriterLoad,
    Writing,
    WrittenToken,
)

_ADAPTER_BYTES = 1 << 30
_PREFIX_BYTES = 256 << 20
_PLACES_A_BLOCK = 8  # for each so many free places a block of prompts is read in a step


class TorchWriter:
    """A `Writer` on a transformers model.

    Args:
        model: The base model; never changed for longer than a step.
        max_concurrent: Most texts written at once.
        max_waiting: Most texts that wait for a place.
        max_adapters_bytes: Most memory for adapters; those of texts in the making may take more.
        max_prefix_bytes: Most memory for beginnings of prompts.

    Raises:
        ModelError: The model is of a kind that cannot write here.
    """

    def __init__(
        self,
        model: TorchLM,
        *,
        max_concurrent: int = 32,
        max_waiting: int = 64,
        max_adapters_bytes: int = _ADAPTER_BYTES,
        max_prefix_bytes: int = _PREFIX_BYTES,
    ) -> None:
        self._model = model.view(None)
        self._model.require_decodable()
        batch = TorchBatch(
            self._model,
            places=max_concurrent,
            max_adapters_bytes=max_adapters_bytes,
            max_prefix_bytes=max_prefix_bytes,
        )
        self._loop = ServingLoop(
            batch, max_concurrent=max_concurrent, max_waiting=max_waiting, name="serving"
        )

    @property
    def model(self) -> LanguageModel:
        """The base model; see `core.serving.Writer.model`."""
        return self._model

    def submit(self, request: WriteRequest) -> Writing:
        """Begins a text, or lets it wait; see `core.serving.Writer.submit`.

        Raises:
            ModelError: An adapter is damaged, or of a kind that cannot be served.
        """
        return self._loop.submit(request)

    @contextmanager
    def between(self) -> Iterator[LanguageModel]:
        """The model, while nothing is written; see `core.serving.Writer.between`."""
        with self._loop.between():
            yield self._model

    def load(self) -> WriterLoad:
        """What it has to do now."""
        return self._loop.load()

    def close(self) -> None:
        """Ends all texts and the thread, and frees caches and adapters."""
        self._loop.close()


@dataclass(eq=False, slots=True)
class _Job:
    """What the batch knows of a text.

    Attributes:
        tokens: Its prompt.
        mix: What writes it.
        dice: Its randomness.
        limit: Most tokens.
        stream: Its text.
        prompt: Where its prompt is, once it is being read.
        blocks: The names of its prompt's whole blocks.
        last: The token written last.
        given: Characters that have been given.
        held: Tokens that have not been given, each with the characters before it.
    """

    tokens: list[int]
    mix: Mix
    dice: Dice
    limit: int
    stream: TextStream
    prompt: Prompt | None = None
    blocks: list[str] = field(default_factory=list)
    last: int = 0
    given: int = 0
    held: list[tuple[int, WrittenToken]] = field(default_factory=list)


class TorchBatch:
    """What the loop writes with; see `serving_loop.Batch`.

    Args:
        model: The base model.
        places: Texts expected at a time.
        max_adapters_bytes: Most memory for adapters.
        max_prefix_bytes: Most memory for beginnings of prompts.
    """

    def __init__(
        self, model: TorchLM, *, places: int, max_adapters_bytes: int, max_prefix_bytes: int
    ) -> None:
        self._model, self._places = model, places
        self._context_length = model.context_length
        self._end_tokens = model.end_tokens()
        self._encoding = threading.Lock()  # tokenizers are not made for several threads
        self._shelf = AdapterShelf(model, max_adapters_bytes)
        self._stacks = Stacks()
        self._prefixes = PrefixCache(max_prefix_bytes)
        self._sampler = Sampler()
        self._bytes = TokenBytes(model.tokenizer)
        self._decoder: Decoder | None = None
        self._reading: deque[Text[_Job]] = deque()
        self._rows: list[Text[_Job]] = []  # in the order of the decoder's slots

    # ------------------------------------------------------------ texts come and go

    def prepare(self, request: WriteRequest) -> tuple[_Job, int]:
        """Tokens and adapters of a request."""
        if request.top_logprobs is not None and request.top_logprobs < 0:
            raise BackendError(f"top_logprobs is {request.top_logprobs}", "give 0 or more")
        with self._encoding:
            tokens = encode_with_room(self._model.tokenizer, request.prompt, self._context_length)
        sampling = request.sampling
        if sampling.max_new_tokens < 1:
            raise BackendError(
                f"max_new_tokens is {sampling.max_new_tokens}", "ask for one token or more"
            )
        job = _Job(
            tokens=tokens,
            mix=self._shelf.take(request.parts),
            dice=Dice.of(request.seed, sampling),
            limit=min(self._context_length - len(tokens), sampling.max_new_tokens),
            stream=TextStream(self._model.tokenizer, sampling.stop),
        )
        return job, len(tokens)

    def dismiss(self, job: _Job) -> None:
        """Its adapters are no longer needed."""
        self._shelf.put_back(job.mix)

    def add(self, text: Text[_Job]) -> None:
        """Its prompt is the last to be read."""
        job = text.job
        self._shelf.complete(job.mix)
        job.blocks = self._prefixes.names(job.mix.key, job.tokens)
        self._reading.append(text)

    @torch.inference_mode()
    def remove(self, text: Text[_Job], *, finished: bool) -> None:
        """Forgets a text that has not ended."""
        if finished:
            self._give(text, text.job.stream.finish(), last=True)
        self._forget(text)

    def close(self) -> None:
        """Frees what is kept."""
        self._decoder = None
        self._stacks.clear()
        self._prefixes.clear()
        release_memory(self._model.device)

    def _forget(self, text: Text[_Job], *, wipe: bool = False) -> None:
        """Gives up a text's place; `wipe` where its numbers are not finite."""
        decoder, prompt = self._decoder, text.job.prompt
        if text in self._reading:
            self._reading.remove(text)
            if decoder is not None and prompt is not None:
                decoder.release(prompt, wipe=wipe)
        elif text in self._rows:
            place = self._rows.index(text)
            if decoder is not None:
                decoder.close(place, wipe=wipe)
            self._rows[place] = self._rows[-1]  # the last one takes its place
            self._rows.pop()

    # ------------------------------------------------------------ a step

    @torch.inference_mode()
    def step(self) -> None:
        """Reads a block or a few of the prompts that are next, then writes a token of each text."""
        free = self._places - len(self._rows)
        for _ in range(max(1, free // _PLACES_A_BLOCK)):
            if not self._reading:
                break
            text = self._reading[0]
            try:
                self._read(text)
            except AIOSError as error:
                self._fail([text], error)
        if self._rows:
            try:
                self._write()
            except OutOfMemoryError as error:  # the youngest half makes room for the others
                self._fail(self._rows[len(self._rows) // 2 :], error)

    def _read(self, text: Text[_Job]) -> None:
        """Reads the next block of a prompt; after the last, draws the first token."""
        job = text.job
        with self._model.generating() as model:
            if self._decoder is None:
                self._decoder = Decoder(model, self._places)
            decoder = self._decoder
            if job.prompt is None:
                job.prompt = prompt = decoder.begin(job.tokens, rows=1)
                for block in self._prefixes.find(job.blocks):
                    decoder.copy_in(prompt, block)
            prompt, number = job.prompt, job.prompt.read // BLOCK
            end = min((number + 1) * BLOCK, len(job.tokens))
            with adapted(self._shelf.sites.values(), one_mix(job.mix)):
                logits = decoder.read_on(prompt, end)
            if number < len(job.blocks):
                start = number * BLOCK
                self._prefixes.keep(job.blocks[number], decoder.copy_out(prompt, start, end))
            if end < len(job.tokens):
                return
            alike = logits.expand(ROWS, -1)  # as many rows as in a step
            drawn = self._sampler.draw(alike, [job.dice])[0]
            if self._extend(text, drawn, logits):
                self._forget(text)
                return
            self._reading.remove(text)
            decoder.open(prompt)
            self._rows.append(text)

    def _write(self) -> None:
        """Writes one token of every text."""
        decoder = self._decoder
        assert decoder is not None
        rows = list(self._rows)
        with self._model.generating():
            update = self._stacks.for_rows([text.job.mix for text in rows], self._model.device)
            with adapted(self._shelf.sites.values(), update):
                logits = decoder.step([text.job.last for text in rows])
            draws = self._draw(logits, rows)
        for row, (text, drawn) in enumerate(zip(rows, draws, strict=True)):
            if not text.over and self._extend(text, drawn, logits[row]):
                self._forget(text)

    def _draw(self, logits: Tensor, rows: Sequence[Text[_Job]]) -> list[Draw]:
        """The next tokens; texts whose logits are not finite fail, and their draws say nothing."""
        dice = [text.job.dice for text in rows]
        try:
            return self._sampler.draw(logits, dice)
        except NonFiniteError as error:
            finite = torch.isfinite(logits[: len(rows)].amax(dim=-1)).tolist()
            for row, text in enumerate(rows):
                if not finite[row]:
                    logits[row] = 0
                    self._fail([text], error)
            return self._sampler.draw(logits, dice)

    def _fail(self, texts: Sequence[Text[_Job]], error: AIOSError) -> None:
        """Ends texts with an error; the others go on."""
        if isinstance(error, OutOfMemoryError):
            remedy = "lower serve.max_concurrent, or ask for shorter texts"
            told = OutOfMemoryError(error.message, remedy, retryable=True)
            told.__cause__, error = error, told
        for text in texts:
            self._forget(text, wipe=isinstance(error, NonFiniteError))
            text.fail(error)
        if isinstance(error, OutOfMemoryError):
            self._stacks.clear()
            self._prefixes.clear()
            if not (self._rows or self._reading):
                self._decoder = None
            release_memory(self._model.device)

    # ------------------------------------------------------------ a token

    def _extend(self, text: Text[_Job], drawn: Draw, logits: Tensor) -> bool:
        """Adds a token to a text; whether it has ended with it.

        Args:
            text: The text.
            drawn: The token.
            logits: What it was drawn from, ``[V]``.
        """
        job = text.job
        text.wrote()
        reason: EndReason | None = None
        new = ""
        if drawn.token in self._end_tokens:
            reason = "stop"
        else:
            job.last = drawn.token
            if text.request.top_logprobs is not None:
                written = self._written(drawn, logits, text.request.top_logprobs)
                job.held.append((job.stream.known, written))
            new = job.stream.add(drawn.token)
            if job.stream.stopped:
                reason = "stop"
            elif text.tokens >= job.limit:
                reason = "length"
        if reason is None:
            self._give(text, new)
            return False
        self._give(text, new + job.stream.finish(), last=True)
        text.end("stop" if job.stream.stopped else reason)
        return True

    def _give(self, text: Text[_Job], new: str, *, last: bool = False) -> None:
        """Gives new text, with the tokens that it holds the beginnings of."""
        job = text.job
        job.given += len(new)
        due = [t for at, t in job.held if at < job.given or (last and not job.stream.stopped)]
        job.held = job.held[len(due) :]
        text.put(Piece(new, tuple(due)))

    def _written(self, drawn: Draw, logits: Tensor, count: int) -> WrittenToken:
        """A token and the likeliest at its place, with log-probabilities at temperature 1."""
        token = self._named(drawn.token, drawn.logprob)
        if count == 0:
            return WrittenToken(token)
        total = float(logits[drawn.token]) - drawn.logprob
        values, ids = logits.float().topk(min(count, len(logits)))
        pairs = zip(ids.tolist(), values.tolist(), strict=True)
        return WrittenToken(token, tuple(self._named(i, value - total) for i, value in pairs))

    def _named(self, token: int, logprob: float) -> TokenLogprob:
        data = self._bytes(token)
        return TokenLogprob(data.decode(errors="replace"), logprob, data)
