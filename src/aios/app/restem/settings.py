"""From the config to the parts of ReST-EM: arms, reward, settings."""

from __future__ import annotations

from dataclasses import replace

from aios.app.composition import build_prompts
from aios.core.config.recipes import ResolvedRecipe, resolve_recipe
from aios.core.config.restem_schema import RewardKind
from aios.core.config.schemas import Config
from aios.core.errors import UsageError
from aios.core.seal.candidate_trials import TrialSettings
from aios.core.seal.restem_rules import ReSTEMSettings
from aios.core.seal.reward import (
    AccuracyReward,
    PerplexityReward,
    RewardFunction,
    ValidationLossReward,
)
from aios.core.seal.strategies import get_strategy
from aios.core.seeds import derive
from aios.core.types import LoraRecipe

_REWARDS: dict[RewardKind, type[RewardFunction]] = {
    "loss": ValidationLossReward,
    "perplexity": PerplexityReward,
    "accuracy": AccuracyReward,
}


def arms_of(config: Config, recipe: ResolvedRecipe) -> tuple[str, ...]:
    """The strategies that candidates are divided among; ``auto`` is the recipe's.

    Raises:
        UsageError: A strategy is not known, or nothing can be learned under any of them.
    """
    arms = recipe.generator.arms
    prompts = build_prompts(config)
    if not any(get_strategy(name, prompts).learnable for name in arms):
        raise UsageError(
            f"nothing can be learned under restem.arms ({', '.join(arms)}): the model writes "
            "nothing there",
            "name strategies that the model writes (aios seal strategies)",
        )
    return arms


def one_of_each(recipe: ResolvedRecipe, arms: tuple[str, ...]) -> ResolvedRecipe:
    """The recipe with the arms as its mix; how many each writes is dealt later, by passage."""
    mix = ",".join(f"{arm}:1" for arm in arms)
    return replace(recipe, strategy=mix, num_edits_per_passage=len(arms))


def reward_function(config: Config) -> RewardFunction:
    """What trials are judged by."""
    answers = config.evaluation.max_answer_tokens
    return _REWARDS[config.restem.reward](max_answer_tokens=answers)


def sft_recipe(config: Config, recipe: ResolvedRecipe) -> LoraRecipe:
    """How a generator is trained."""
    generator = recipe.generator
    return LoraRecipe(
        rank=generator.rank,
        alpha=generator.alpha,
        learning_rate=generator.learning_rate,
        epochs=generator.epochs,
        batch_size=generator.batch_size,
        max_seq_len=config.restem.sft_max_seq_len,
    )


def settings_of(config: Config, recipe: ResolvedRecipe | None = None) -> ReSTEMSettings:
    """How rounds are run.

    Args:
        config: The resolved config.
        recipe: The recipe in force; by default that of the model that the config names.
    """
    restem = config.restem
    recipe = recipe or resolve_recipe(config, config.model.name)
    return ReSTEMSettings(
        trials=TrialSettings(
            baseline=restem.baseline,
            racing=restem.racing,
            repeats=restem.repeats,
            trial_tokens=restem.trial_tokens,
            batch=restem.trial_batch,
            question_template=config.evaluation.question_template,
            max_answer_tokens=config.evaluation.max_answer_tokens,
            max_failed_share=restem.max_failed_share,
            seed=derive(config.seed, "restem"),
        ),
        threshold=restem.threshold,
        keep=restem.keep,
        kept_per_passage=restem.kept_per_passage,
        learn_format=restem.learn_format,
        floor=restem.floor,
        init=restem.init,
        recipe=sft_recipe(config, recipe),
        held_out_candidates=restem.held_out_candidates,
        patience=restem.patience,
        seed=derive(config.seed, "restem"),
    )
