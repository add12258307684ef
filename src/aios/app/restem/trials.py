"""From the config to what trials of self-edits are run with: trainer, executor, `CandidateTrials`.

All jobs of ReST-EM try self-edits with what is built here, so that their numbers can be compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace

from aios.app.restem.settings import reward_function
from aios.app.trials import open_executor
from aios.core.config.recipes import ResolvedRecipe
from aios.core.config.schemas import Config
from aios.core.protocols import Executor, LanguageModel
from aios.core.seal.candidate_trials import CandidateTrials, TrialSettings
from aios.core.seal.test_time_training import TTTTrainer, own_bench
from aios.core.types import LoraRecipe

_BANK = 8  # trials that a worker is handed at a time: a batch of passages keeps several busy


def trial_recipe(recipe: ResolvedRecipe) -> LoraRecipe:
    """How the adapter of a trial is trained: as an expert's, without dropout."""
    return replace(recipe.lora, dropout=0.0)


def trial_trainer(config: Config, recipe: ResolvedRecipe) -> TTTTrainer:
    """Says what a trial is trained on, and how."""
    return TTTTrainer(
        recipe=trial_recipe(recipe),
        passage_copies=recipe.passage_copies,
        loss_on=recipe.loss_on,
        seed=config.seed,
    )


def candidate_trials(
    config: Config,
    model: LanguageModel,
    recipe: ResolvedRecipe,
    executor: Executor,
    settings: TrialSettings,
) -> CandidateTrials:
    """Tries self-edits outside the rounds of a run, in the same way as in them."""
    return CandidateTrials(
        executor,
        trial_trainer(config, recipe),
        reward_function(config),
        model.count_tokens,
        settings,
    )


@contextmanager
def executor_of(config: Config, model: LanguageModel) -> Iterator[Executor]:
    """The executor that the config asks for, for the time of a block.

    In this process trials run over the model that is loaded already; its bench stays with it.
    """
    restem = config.restem
    if restem.executor == "serial":
        yield own_bench(model)
        return
    with closing(
        open_executor(config, restem.executor, workers=restem.workers, bank=_BANK)
    ) as executor:
        yield executor
