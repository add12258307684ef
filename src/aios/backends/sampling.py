"""Batched sampling: prompts are read once, their caches expanded to all completions.

Rows are left-padded to the longest prompt of the call; a row that has ended leaves the batch.
Each row draws from its own generator, seeded by its own seed, so which texts come out depends on
the call (its prompts, seeds and settings) alone. Which rows share a batch still changes the
rounding of matrix products, so equality holds for equal calls, not for a row on its own.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from aios.backends.encoding import encode_prompt
from aios.core.errors import BackendError, ModelError, NonFiniteError
from aios.core.types import Completion, FinishReason, GenerationRequest, SamplingParams

_NUCLEUS_FIRST = 512  # most nuclei fit in so many tokens; a full sort of the vocabulary is slow


@dataclass(slots=True)
class _Sequence:
    """One completion being written."""

    request: int
    seed: int
    sampling: SamplingParams
    limit: int
    deadline: float | None
    generator: torch.Generator
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    reason: FinishReason | None = None


def sample(
    model: Any,
    tokenizer: Any,
    requests: Sequence[GenerationRequest],
    *,
    context_length: int,
    end_tokens: frozenset[int],
    device: torch.device,
) -> list[list[Completion]]:
    """Writes the completions of all requests in one batch.

    Args:
        model: A transformers causal language model.
        tokenizer: Its tokenizer.
        requests: Prompts with their seeds; a deadline is the time that each completion may take
            on average: the rows of a call end when `deadline_seconds` × rows have passed.
        context_length: Most tokens of prompt and completion together.
        end_tokens: Tokens that end a completion.
        device: Where the model is.

    Returns:
        A list of completions for each request.

    Raises:
        BackendError: A prompt is empty, or leaves no room in the context.
        ModelError: The model is of a kind that cannot write here.
        NonFiniteError: The model gave NaN.
    """
    prompts = [encode_prompt(tokenizer, r.prompt) for r in requests]
    sequences = _sequences(requests, prompts, context_length)
    if sequences:
        with torch.inference_mode():
            _decode(model, tokenizer, prompts, sequences, end_tokens, device)
    results: list[list[Completion]] = [[] for _ in requests]
    for s in sequences:
        results[s.request].append(Completion(s.text, len(s.tokens), s.reason or "length", s.seed))
    return results


def _sequences(
    requests: Sequence[GenerationRequest], prompts: Sequence[list[int]], context_length: int
) -> list[_Sequence]:
    started = time.monotonic()
    rows = sum(len(r.seeds) for r in requests)
    sequences = []
    for index, (request, prompt) in enumerate(zip(requests, prompts, strict=True)):
        if not prompt:
            raise BackendError(f"prompt {index} is empty", "give the model a text to go on with")
        room = context_length - len(prompt)
        if room < 1:
            raise BackendError(
                f"prompt {index} has {len(prompt)} tokens; the context holds {context_length}",
                "split the passage (data.max_passage_tokens) or use a model with a longer context",
            )
        deadline = None
        if request.deadline_seconds is not None:
            deadline = started + request.deadline_seconds * rows
        for seed in request.seeds:
            sequences.append(
                _Sequence(
                    request=index,
                    seed=seed,
                    sampling=request.sampling,
                    limit=min(room, request.sampling.max_new_tokens),
                    deadline=deadline,
                    generator=torch.Generator().manual_seed(seed),
                )
            )
    return sequences


def _decode(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[list[int]],
    sequences: list[_Sequence],
    end_tokens: frozenset[int],
    device: torch.device,
) -> None:
    """Reads the prompts, then writes all sequences to their ends (in place)."""
    used = sorted({s.request for s in sequences})
    longest = max(len(prompts[i]) for i in used)
    pad = [longest - len(prompts[i]) for i in used]
    ids = torch.tensor([[0] * p + prompts[i] for i, p in zip(used, pad, strict=True)])
    mask = (torch.arange(longest)[None] >= torch.tensor(pad)[:, None]).long()
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    out = model(
        input_ids=ids.to(device),
        attention_mask=mask.to(device),
        position_ids=positions.to(device),
        use_cache=True,
        logits_to_keep=1,
    )
    cache = _expandable_cache(model, out)
    row_of = torch.tensor([used.index(s.request) for s in sequences])
    cache.batch_select_indices(row_of.to(device))
    logits, mask, positions = out.logits[row_of.to(device), -1], mask[row_of], positions[row_of, -1]
    alive = list(sequences)
    while True:
        tokens = _draw(logits.float().cpu(), alive)
        now = time.monotonic()
        for s, token in zip(alive, tokens, strict=True):
            _extend(s, token, tokenizer, end_tokens, now)
        keep = torch.tensor([i for i, s in enumerate(alive) if s.reason is None], dtype=torch.long)
        if not len(keep):
            return
        if len(keep) < len(alive):
            cache.batch_select_indices(keep.to(device))
            alive = [alive[i] for i in keep.tolist()]
            mask, positions = mask[keep], positions[keep]
        mask = torch.cat([mask, torch.ones(len(alive), 1, dtype=mask.dtype)], dim=1)
        positions = positions + 1
        out = model(
            input_ids=torch.tensor([[s.tokens[-1]] for s in alive], device=device),
            attention_mask=mask.to(device),
            position_ids=positions[:, None].to(device),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits = out.logits[:, -1]


def _expandable_cache(model: Any, out: Any) -> Any:
    """The prompts' cache, of which a row can be copied and removed.

    Raises:
        ModelError: The model keeps another state than that of attention.
    """
    cache = getattr(out, "past_key_values", None)
    layers = getattr(cache, "layers", None)
    if not layers or not all(hasattr(layer, "batch_select_indices") for layer in layers):
        raise ModelError(
            f"models of type {model.config.model_type!r} cannot write here: they keep another "
            "state than that of attention",
            "use a model of another type, such as Llama, Qwen, Mistral or SmolLM",
        )
    return cache


def _draw(logits: Tensor, alive: Sequence[_Sequence]) -> list[int]:
    """One token a row: ``logits`` is ``[rows, V]`` float32 on the CPU."""
    if not bool(torch.isfinite(logits.amax(dim=-1)).all()):
        raise NonFiniteError("the model's logits are not finite", "try model.dtype: float32")
    return [
        int(row.argmax()) if s.sampling.temperature == 0 else _draw_one(row, s)
        for row, s in zip(logits, alive, strict=True)
    ]


def _draw_one(logits: Tensor, s: _Sequence) -> int:
    """Nucleus sampling (Holtzman et al. 2020, arXiv 1904.09751) by inverting the cumulative sum."""
    probabilities = torch.softmax(logits / s.sampling.temperature, dim=-1)
    top, order = probabilities.topk(min(_NUCLEUS_FIRST, len(probabilities)))
    if float(top.sum()) < s.sampling.top_p:
        top, order = probabilities.sort(descending=True)
    mass = top.cumsum(0)
    size = int(torch.searchsorted(mass, torch.tensor(s.sampling.top_p))) + 1
    mass = mass[: min(size, len(mass))]
    point = torch.rand((), generator=s.generator) * mass[-1]
    return int(order[min(int(torch.searchsorted(mass, point)), len(mass) - 1)])


def _extend(
    s: _Sequence, token: int, tokenizer: Any, end_tokens: frozenset[int], now: float
) -> None:
    """Adds a token to a sequence and marks it finished where it is."""
    s.tokens.append(token)
    written = s.tokens[:-1] if token in end_tokens else s.tokens
    if token in end_tokens:
        s.reason = "stop"
    elif len(s.tokens) >= s.limit:
        s.reason = "length"
    elif s.deadline is not None and now > s.deadline:
        s.reason = "deadline"
    if s.sampling.stop or s.reason is not None:
        s.text = tokenizer.decode(
            written, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        cuts = [at for stop in s.sampling.stop if stop and (at := s.text.find(stop)) >= 0]
        if cuts:
            s.text, s.reason = s.text[: min(cuts)], "stop"
