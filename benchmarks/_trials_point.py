"""A point of the cost curve: some trainings at a time, on texts of one length."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

from _trials_memory import peak_memory, start_watch

from aios.backends.models import ModelSource
from aios.backends.torch_lm import TorchLM
from aios.backends.trials.bench import TorchTrialBench
from aios.core.seeds import derive
from aios.core.trials import TrialJob
from aios.core.types import LoraRecipe, TrainExample

_WORDS = 200  # to draw texts from
_WORD = re.compile(r" [a-z]+")


class Point:
    """Trains as many adapters at a time as it is told to.

    Args:
        source: The model.
        device: A device name.
        dtype: Of the base weights.
        groups: Trainings at a time.
        length: Tokens of each text; a step has one text.
        threads: Of the CPU; None is torch's choice.
    """

    def __init__(
        self,
        source: ModelSource,
        device: str,
        dtype: str,
        groups: int,
        length: int,
        threads: int | None = None,
    ) -> None:
        self._model = TorchLM.load(source, device=device, dtype=dtype, threads=threads)
        self._used = start_watch(self._model.device)
        self._bench = TorchTrialBench(self._model, groups=groups)
        self._groups, self._length = groups, length
        self._words = one_token_words(self._model.tokenizer)

    def turn(self, steps: int, seed: int) -> tuple[int, float]:
        """So many steps of all trainings; the tokens trained on, and seconds.

        Raises:
            RuntimeError: A trial has failed, or has trained on other tokens than it should.
        """
        tokens, seconds = 0, 0.0
        for outcome in self._bench.run([self._job(n, steps, seed) for n in range(self._groups)]):
            if outcome.metrics is None:
                raise RuntimeError(f"a trial has failed: {outcome.failure}")
            tokens += outcome.metrics.tokens
            seconds += outcome.metrics.seconds
        if tokens != self._groups * steps * self._length:
            raise RuntimeError(f"trained on {tokens} tokens")
        return tokens, seconds

    def memory(self) -> dict[str, int]:
        """Bytes: at most in use, of that above the loaded model, and as the engine had planned."""
        bench = self._bench._bench
        assert bench is not None
        plan = bench.plan
        peak = peak_memory(self._model.device)
        planned = plan.groups * plan.training_bytes + plan.pass_bytes
        return {"peak": peak, "above the model": peak - self._used, "planned": planned}

    def _job(self, number: int, steps: int, seed: int) -> TrialJob:
        texts = [
            text_of(self._words, self._length, derive(seed, number, step)) for step in range(steps)
        ]
        recipe = LoraRecipe(rank=32, alpha=64, epochs=1, batch_size=1)
        examples = tuple(TrainExample.whole(text) for text in texts)
        return TrialJob(f"{number}", examples, recipe, derive(seed, number))


def one_token_words(tokenizer: Any) -> list[str]:
    """Words, each with the space before it, that are one token wherever they stand."""
    words: list[str] = []
    for token in range(len(tokenizer)):
        text = tokenizer.decode([token])
        if _WORD.fullmatch(text) and tokenizer(text)["input_ids"] == [token]:
            words.append(text)
            if len(words) == _WORDS:
                break
    return words


def text_of(words: list[str], tokens: int, seed: int) -> str:
    """A text of so many words, each a token."""
    return "".join(random.Random(seed).choices(words, k=tokens))


def tiny_source(folder: Path) -> ModelSource:
    """A random Llama of two layers, written to a folder; the model that the tests use."""
    from transformers.utils import logging

    from tests.tiny_model import build_tiny_model

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    build_tiny_model(folder, max_position_embeddings=1024)
    return ModelSource("tiny", "folder", folder, "d" * 64, 1024, 0, 0)
