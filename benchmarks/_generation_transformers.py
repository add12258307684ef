"""transformers' own ``generate`` as a contestant, and the search for its best batch.

Prompts are sorted by length, padded on the left and written in batches of nearly equal size.
``generate`` repeats a prompt for each of its completions before it reads it, so asking for
``num_return_sequences`` or repeating the prompts is the same work; the prompts are repeated, so
that a batch can have any number of rows. As an extra, `shared_prompts` reads each prompt once
and hands ``generate`` the expanded cache, which is not what ``generate`` does by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from _generation_job import Job, Tally, even_batches, measure, warm_up_job
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

BATCH_ROWS = (16, 32, 64)


class TransformersGenerate:
    """Batches of prompts through ``model.generate``.

    Args:
        folder: The model's folder.
        dtype: Of weights and arithmetic, e.g. ``bfloat16``.
        rows: Most rows of a batch.
        shared_prompts: Read each prompt once a batch, by hand.
    """

    def __init__(
        self, folder: Path, dtype: str, rows: int, *, shared_prompts: bool = False
    ) -> None:
        self.rows, self.shared_prompts, self._dtype = rows, shared_prompts, dtype
        self._tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, padding_side="left"
        )
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        self._model: Any = AutoModelForCausalLM.from_pretrained(
            folder, local_files_only=True, dtype=getattr(torch, dtype)
        )
        self._model.eval()
        end = self._model.generation_config.eos_token_id
        self._end = torch.tensor(end if isinstance(end, list) else [end])

    @property
    def name(self) -> str:
        extra = ", prompts read once by hand" if self.shared_prompts else ""
        return f"transformers generate{extra}"

    @property
    def settings(self) -> dict[str, Any]:
        return {"dtype": self._dtype, "rows": self.rows, "shared_prompts": self.shared_prompts}

    def prepare(self) -> None:
        """Nothing is kept from job to job."""

    def write(self, job: Job) -> list[int]:
        torch.manual_seed(job.seed)
        prompts = sorted(job.prompts, key=lambda prompt: len(self._tokenizer(prompt)["input_ids"]))
        rows = [prompt for prompt in prompts for _ in range(job.candidates)]
        lengths: list[int] = []
        with torch.inference_mode():
            for batch in even_batches(len(rows), self.rows):
                lengths += self._batch([rows[i] for i in batch], job)
        return lengths

    def close(self) -> None:
        self._model = None

    def _batch(self, prompts: Sequence[str], job: Job) -> list[int]:
        extra: dict[str, Any] = {}
        if self.shared_prompts:
            given, extra["past_key_values"] = self._read_once(prompts)
        else:
            given = self._tokenizer(list(prompts), return_tensors="pt", padding=True)
        out = self._model.generate(
            input_ids=given["input_ids"],
            attention_mask=given["attention_mask"],
            do_sample=True,
            temperature=job.sampling.temperature,
            top_p=job.sampling.top_p,
            top_k=0,
            max_new_tokens=job.sampling.max_new_tokens,
            pad_token_id=self._tokenizer.pad_token_id,
            **extra,
        )
        return self._lengths(out[:, given["input_ids"].shape[1] :])

    def _read_once(self, prompts: Sequence[str]) -> tuple[dict[str, Tensor], Any]:
        """The padded rows, and the cache of all their tokens but the last."""
        once = list(dict.fromkeys(prompts))
        given = self._tokenizer(once, return_tensors="pt", padding=True)
        mask = given["attention_mask"][:, :-1]
        cache = self._model(
            input_ids=given["input_ids"][:, :-1],
            attention_mask=mask,
            position_ids=(mask.cumsum(1) - 1).clamp(min=0),
            use_cache=True,
            logits_to_keep=1,
        ).past_key_values
        places = torch.tensor([once.index(prompt) for prompt in prompts])
        cache.batch_select_indices(places)
        return {key: given[key][places] for key in ("input_ids", "attention_mask")}, cache

    def _lengths(self, written: Tensor) -> list[int]:
        """Tokens of each row up to its end token, that included."""
        ended = torch.isin(written, self._end)
        first = ended.int().argmax(dim=1) + 1
        return torch.where(ended.any(dim=1), first, written.shape[1]).tolist()


def search(
    folder: Path, job: Job, *, sizes: Sequence[int] = BATCH_ROWS
) -> tuple[int, str, dict[str, Tally]]:
    """Finds the best number of rows and dtype on a small job.

    All sizes are tried in bfloat16, float32 with the best of them on one batch alone: it is
    several times slower where the processor multiplies bfloat16.

    Returns:
        Rows, dtype, and every attempt by its name.
    """
    tried: dict[str, Tally] = {}
    half = TransformersGenerate(folder, "bfloat16", sizes[0])
    half.write(warm_up_job(job))
    for rows in sizes:
        half.rows = rows
        tried[f"bfloat16, {rows} rows"] = measure(half, job)
    half_best = max(tried, key=lambda what: tried[what].tokens_per_second)
    rows = sizes[list(tried).index(half_best)]
    half.rows, half.shared_prompts = rows, True
    tried[f"bfloat16, {rows} rows, prompts read once by hand"] = measure(half, job)
    half.rows, half.shared_prompts = 1, False
    alone = replace(job.part(4, 10**6), candidates=1)
    tried["bfloat16, one at a time"] = measure(half, alone)
    half.close()
    full = TransformersGenerate(folder, "float32", rows)
    full.write(warm_up_job(job))
    full_best = f"float32, {rows} rows"
    tried[full_best] = measure(full, job.part(max(1, rows // job.candidates), 10**6))
    full.close()
    better = tried[full_best].tokens_per_second > tried[half_best].tokens_per_second
    return rows, "float32" if better else "bfloat16", tried
