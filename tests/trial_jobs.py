"""Trial jobs over the tiny model, for tests."""

from __future__ import annotations

import json
import random
from typing import Any

from aios.backends.torch_lm import TorchLM
from aios.core.data.probes import Probe, make_probes
from aios.core.trials import TrialJob
from aios.core.types import LoraRecipe, Question, TrainExample
from tests.tiny_model import PASSAGES, build_llama, build_tokenizer

RECIPE = LoraRecipe(rank=4, alpha=8, learning_rate=1e-2, epochs=2, batch_size=2)


def tiny_lm(dtype: Any, **settings: Any) -> TorchLM:
    """The tiny model in a dtype."""
    return TorchLM(build_llama(**settings).to(dtype), build_tokenizer(), name="tiny")


def sentences(count: int, seed: int = 0) -> list[str]:
    """Sentences of the example passages, of all lengths."""
    lines = PASSAGES.read_text(encoding="utf-8").splitlines()
    found = [s for line in lines for s in json.loads(line)["text"].split(". ")]
    return random.Random(seed).sample(found, count)


def questions(count: int = 3) -> tuple[Probe, ...]:
    """Questions of the first example passage."""
    record = json.loads(PASSAGES.read_text(encoding="utf-8").splitlines()[0])
    asked = []
    for q in record["questions"][:count]:
        answers = q["answers"] if "answers" in q else [q["answer"]]
        asked.append(Question(q["question"], tuple(answers)))
    return make_probes({"first": asked})


def trial(number: int, *, examples: int = 4, recipe: LoraRecipe = RECIPE, **more: Any) -> TrialJob:
    """A job whose data and seed follow from its number."""
    texts = sentences(examples, number)
    return TrialJob(
        id=f"trial-{number}",
        examples=tuple(TrainExample.whole(text) for text in texts),
        recipe=recipe,
        seed=number,
        **{"questions": questions(), **more},
    )
