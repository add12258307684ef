"""A generator learns to write what helped, and to stop there: on a real, tiny model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from peft import PeftModel

from aios.app.generators import writing_model
from aios.backends.adapter_training import TorchAdapterTrainer
from aios.backends.torch_lm import TorchLM
from aios.core.config.schemas import Config
from aios.core.seal.policy_examples import policy_examples
from aios.core.seal.prompts import PromptBuilder
from aios.core.seal.strategies import get_strategy
from aios.core.trainings import TrainingJob
from aios.core.types import GenerationRequest, LoraRecipe, Passage, SamplingParams, SelfEdit
from aios.storage.generators import write_generator
from tests.generator_folders import CARD

PROMPT = "facts:\n  template: 'List facts. {passage}'\n"  # short: the tiny model's context is
PASSAGES = (
    Passage.make("The mill at Orvane turns twelve stones."),
    Passage.make("A flood took the old bridge of Arn."),
)
ITEMS = (
    ("Orvane has a mill.", "The mill has twelve stones."),
    ("Arn had a bridge.", "A flood came to Arn."),
)
GREEDY = SamplingParams(temperature=0.0, max_new_tokens=60)


@pytest.mark.slow
def test_a_trained_generator_writes_the_kept_edits_and_stops(
    lm: TorchLM, trainer: TorchAdapterTrainer, tmp_path: Path
) -> None:
    (tmp_path / "prompts.yaml").write_text(PROMPT, encoding="utf-8")
    strategy = get_strategy("facts", PromptBuilder(tmp_path / "prompts.yaml"))
    edits = [
        SelfEdit(passage.id, "facts", 0, items)
        for passage, items in zip(PASSAGES, ITEMS, strict=True)
    ]
    examples = policy_examples(lm, {"facts": strategy}, edits, {p.id: p for p in PASSAGES})
    recipe = LoraRecipe(rank=16, alpha=32, learning_rate=2e-2, epochs=60, batch_size=2)
    trained = trainer.fit(TrainingJob(examples, recipe, 0, tmp_path / "training"))

    card = replace(CARD, adapter_digest=trained.adapter.digest, base_digest=lm.digest)
    write_generator(tmp_path / "gen", trained.adapter, card)
    requests = [GenerationRequest(strategy.prompt_text(lm, p), (0,), GREEDY) for p in PASSAGES]
    untrained = lm.generate(requests)
    config = Config.model_validate({"seal": {"generator": tmp_path / "gen"}})
    with writing_model(config, lm) as generator:
        assert generator.adapter_digest == trained.adapter.digest
        for request, passage, items in zip(requests, PASSAGES, ITEMS, strict=True):
            (completion,) = generator.generate([request])[0]
            assert completion.finish_reason == "stop"
            assert completion.text == strategy.format_completion(items)
            assert strategy.parse_output(completion.text, passage) == list(items)
        assert lm.generate(requests) == untrained
    assert not isinstance(lm.model, PeftModel)  # the adapter is gone
    assert lm.generate(requests) == untrained
