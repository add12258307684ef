"""What this machine can do at most, what the model needs, and where our loop's time goes.

Limits: the best rate of large bfloat16 matrix products, the best rate at which memory is read or
copied, and the time of the model's own matrix products at the width of a step (which is what a
step would take if it did nothing else). Needs: arithmetic and bytes of a token and of a step.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AttentionInterface

from aios.backends import decoding_attention
from aios.backends.decoding import Decoder
from aios.backends.sampling import Sampler

BANDWIDTH_BYTES = 256 * 2**20
PRODUCT_SIZES = (1024, 2048, 4096)
_REPEATS = 5


def best_seconds(work: Callable[[], object], repeats: int = _REPEATS) -> float:
    """Least time of a few runs, after one to warm up."""
    work()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)


def product_rate(dtype: torch.dtype = torch.bfloat16) -> float:
    """Floating-point operations per second of the best of some square matrix products."""
    rates = []
    for size in PRODUCT_SIZES:
        a = torch.randn(size, size).to(dtype)
        b = torch.randn(size, size).to(dtype)
        rates.append(2 * size**3 / best_seconds(functools.partial(torch.mm, a, b)))
    return max(rates)


def memory_rates(size: int = BANDWIDTH_BYTES) -> dict[str, float]:
    """Bytes per second of reading, copying and adding (STREAM's triad) arrays of `size` bytes.

    As STREAM counts: what is read and what is written, not what the processor fetches besides.
    """
    a = torch.ones(size // 4)
    b, c = torch.ones_like(a), torch.ones_like(a)
    return {
        "read": size / best_seconds(a.sum),
        "copy": 2 * size / best_seconds(lambda: b.copy_(a)),
        "triad": 3 * size / best_seconds(lambda: torch.add(a, b, alpha=3.0, out=c)),
    }


def linear_seconds(model: Any, width: int) -> float:
    """Time of all matrix products of one step at `width` rows: the layers' in order, and the head.

    The weights are the model's own, so they come from memory as they do in a step.
    """
    weights = [m.weight for m in model.modules() if isinstance(m, torch.nn.Linear)]
    inputs = {
        size: torch.randn(width, size).to(weights[0].dtype)
        for size in {int(weight.shape[1]) for weight in weights}
    }

    def work() -> None:
        for weight in weights:
            functional.linear(inputs[int(weight.shape[1])], weight)

    with torch.inference_mode():
        return best_seconds(work)


@dataclass(frozen=True, slots=True)
class Needs:
    """Arithmetic and memory traffic that the model's mathematics ask for.

    Attributes:
        weights: Numbers in the matrices that a token is multiplied with, the head included.
        head: Those of the head.
        weight_bytes: Their bytes, read once a step.
        attention_flops: Operations of attention for each token of context.
        cache_bytes: Bytes of keys and values for each token of context.
    """

    weights: int
    head: int
    weight_bytes: int
    attention_flops: int
    cache_bytes: int

    @classmethod
    def of(cls, model: Any) -> Needs:
        config = model.config
        linear = [m.weight for m in model.modules() if isinstance(m, torch.nn.Linear)]
        size = linear[0].element_size()
        heads, kept = config.num_attention_heads, config.num_key_value_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // heads
        weights = sum(weight.numel() for weight in linear)
        return cls(
            weights=weights,
            head=model.get_output_embeddings().weight.numel(),
            weight_bytes=weights * size,
            attention_flops=2 * 2 * config.num_hidden_layers * heads * width,
            cache_bytes=2 * config.num_hidden_layers * kept * width * size,
        )

    def written(self, contexts: int, tokens: int) -> int:
        """Operations of written tokens whose contexts have so many tokens in all."""
        return 2 * self.weights * tokens + self.attention_flops * contexts

    def read(self, length: int) -> int:
        """Operations of reading a prompt; only its last token goes through the head."""
        body = 2 * (self.weights - self.head) * length + 2 * self.head
        return body + self.attention_flops * length * (length + 1) // 2


@dataclass(slots=True)
class Observed:
    """What was seen of a run of our loop.

    Attributes:
        seconds: Exclusive time by part.
        steps: Decoding steps.
        rows: Rows of all steps.
        contexts: Tokens before the rows of all steps, the row's own token included.
        cache_tokens: Tokens whose keys and values had to be fetched: prompts once a step.
        prompts: Tokens of each prompt.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    steps: int = 0
    rows: int = 0
    contexts: int = 0
    cache_tokens: int = 0
    prompts: list[int] = field(default_factory=list)


class _Clock:
    """Exclusive times: while an inner part runs, the outer ones stand still."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self._seconds = seconds
        self._stack: list[str] = []
        self._since = time.perf_counter()

    def enter(self, part: str) -> None:
        self._tick()
        self._stack.append(part)

    def leave(self) -> None:
        self._tick()
        self._stack.pop()

    @property
    def reading(self) -> bool:
        return READING in self._stack

    def _tick(self) -> None:
        now = time.perf_counter()
        if self._stack:
            part = self._stack[-1]
            self._seconds[part] = self._seconds.get(part, 0.0) + now - self._since
        self._since = now


READING = "reading prompts"
PROJECTIONS = "attention projections"
MLP = "MLP products"
HEAD = "head"
ATTENTION = "attention and cache"
SAMPLING = "sampling"
MODEL_REST = "rest of the model (norms, rotary, activations, Python)"
LOOP_REST = "rest of the loop (rows, text, line losses)"


@contextmanager
def observed(model: Any) -> Iterator[Observed]:
    """Takes the times of our loop's parts while the block runs, from outside.

    Wraps the decoder, the sampler, the attention function and torch's linear product for that
    time; the clock's own cost is below a microsecond a call.
    """
    seen = Observed()
    clock = _Clock(seen.seconds)
    hidden, vocabulary = model.config.hidden_size, model.config.vocab_size
    linear, step, read = functional.linear, Decoder.step, Decoder.read
    draw, attention = Sampler.draw, decoding_attention.attention

    def part_of(weight: Tensor) -> str:
        if weight.shape[0] == vocabulary:
            return HEAD
        is_mlp = model.config.intermediate_size in weight.shape and hidden in weight.shape
        return MLP if is_mlp else PROJECTIONS

    def timed(part: str, function: Callable[..., Any], *given: Any, **named: Any) -> Any:
        if clock.reading:  # a prompt is one part
            return function(*given, **named)
        clock.enter(part)
        try:
            return function(*given, **named)
        finally:
            clock.leave()

    def our_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        result: Tensor = timed(part_of(weight), linear, x, weight, bias)
        return result

    def our_step(decoder: Decoder, *given: Any, **named: Any) -> Any:
        prompts = {id(s.prompt): len(s.prompt.tokens) for s in decoder.slots}
        own = sum(s.written + 1 for s in decoder.slots)
        seen.steps += 1
        seen.rows += len(decoder.slots)
        seen.contexts += own + sum(len(s.prompt.tokens) for s in decoder.slots)
        seen.cache_tokens += own + sum(prompts.values())
        return timed(MODEL_REST, step, decoder, *given, **named)

    def our_read(decoder: Decoder, tokens: Any, **named: Any) -> Any:
        seen.prompts.append(len(tokens))
        return timed(READING, read, decoder, tokens, **named)

    def our_draw(sampler: Sampler, *given: Any, **named: Any) -> Any:
        return timed(SAMPLING, draw, sampler, *given, **named)

    AttentionInterface.register(
        decoding_attention.NAME, functools.partial(timed, ATTENTION, attention)
    )
    functional.linear = our_linear  # type: ignore[assignment]
    Decoder.step, Decoder.read = our_step, our_read  # type: ignore[method-assign, assignment]
    Sampler.draw = our_draw  # type: ignore[method-assign, assignment]
    clock.enter(LOOP_REST)
    try:
        yield seen
    finally:
        clock.leave()
        AttentionInterface.register(decoding_attention.NAME, attention)
        functional.linear = linear
        Decoder.step, Decoder.read, Sampler.draw = step, read, draw  # type: ignore[method-assign]
