"""Which recipe is in force: the user's values over those measured for the model in use.

Takes the config and the name of the model; gives every setting that a recipe governs, each with
where it comes from, so that commands can name it in their output.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from aios.core.config.recipe_schemas import (
    DEFAULT_RECIPE,
    GeneratorRecipe,
    LossOn,
    Recipe,
    TrainingRecipe,
)
from aios.core.config.schemas import Config
from aios.core.errors import UsageError
from aios.core.seal.prompt_templates import AUTO
from aios.core.seal.strategy_mix import format_mix, mix_edits, parse_mix
from aios.core.types import LoraRecipe

_USER = "user"
GENERATOR_SETTINGS = ("rank", "alpha", "learning_rate", "epochs", "batch_size")
_MIX = "the mix"


@dataclass(frozen=True, slots=True)
class ResolvedRecipe:
    """The settings in force for one model.

    Attributes:
        name: The recipe used, e.g. ``recipes.default``.
        measured: Where that recipe was measured, in words.
        strategy: How self-edits are made: a strategy's name, or a mix; never ``auto``.
        num_edits_per_passage: Self-edits of each passage; those of a mix added up.
        generator: How ReST-EM trains a generator, the user's values over the recipe's.
        lora: How the adapter is trained.
        evaluations_per_epoch: Validations in each pass.
        patience: Validations without progress after which training stops; 0 for never.
        loss_on: Which part of question-answer items carries loss.
        passage_copies: Times each passage stands in one pass over the augmented data.
        max_tokens: Token budget of training, or None.
        sources: For each config key, ``user``, ``recipe <name>``, ``the mix`` or
            ``generator <folder>``.
    """

    name: str
    measured: str
    strategy: str
    num_edits_per_passage: int
    generator: GeneratorRecipe
    lora: LoraRecipe
    evaluations_per_epoch: int
    patience: int
    loss_on: LossOn
    passage_copies: int
    max_tokens: int | None
    sources: Mapping[str, str]


def resolve_recipe(config: Config, model_name: str) -> ResolvedRecipe:
    """Finds the recipe of a model and puts the user's values over it.

    A recipe's number of edits belongs to its strategy: where the user chose another strategy but
    no number, the number is that of ``recipes.default``. A mix has numbers of its own.

    Args:
        config: The resolved config.
        model_name: The base model's name, hub id or folder.

    Raises:
        UsageError: The recipe's strategy is a mix, and the user wants another number of edits.
    """
    key = recipe_name(config.recipes, model_name)
    recipe = config.recipes[key]
    name = f"recipes.{key}"
    sources: dict[str, str] = {}

    strategy = recipe.strategy if config.seal.strategy == AUTO else config.seal.strategy
    sources["seal.strategy"] = f"recipe {key}" if config.seal.strategy == AUTO else _USER
    num_edits, sources["seal.num_edits_per_passage"] = _num_edits(config, key, strategy)

    values: dict[str, Any] = {}
    for field in TrainingRecipe.model_fields:
        chosen = getattr(config.training, field)
        sources[f"training.{field}"] = f"recipe {key}" if chosen is None else _USER
        values[field] = getattr(recipe.training, field) if chosen is None else chosen
    return ResolvedRecipe(
        name=name,
        measured=recipe.source,
        strategy=format_mix(parse_mix(strategy)),
        num_edits_per_passage=num_edits,
        generator=_generator(config, recipe.generator),
        lora=LoraRecipe(**{field.name: values[field.name] for field in fields(LoraRecipe)}),
        evaluations_per_epoch=values["evaluations_per_epoch"],
        patience=values["patience"],
        loss_on=values["loss_on"],
        passage_copies=values["passage_copies"],
        max_tokens=values["max_tokens"] or None,
        sources=sources,
    )


def _generator(config: Config, recipe: GeneratorRecipe) -> GeneratorRecipe:
    """The generator's recipe with what the user has set in ``restem``."""
    chosen = {name: getattr(config.restem, f"sft_{name}") for name in GENERATOR_SETTINGS}
    update = {name: value for name, value in chosen.items() if value is not None}
    if config.restem.arms != (AUTO,):
        update["arms"] = config.restem.arms
    return recipe.model_copy(update=update)


def _num_edits(config: Config, key: str, strategy: str) -> tuple[int, str]:
    """Self-edits of each passage, and where that number comes from."""
    chosen = config.seal.num_edits_per_passage
    mixed = mix_edits(strategy)
    if mixed is not None and chosen not in (None, mixed):
        raise UsageError(
            f"recipes.{key} makes {mixed} self-edits of each passage with the mix {strategy}, and "
            f"seal.num_edits_per_passage is {chosen}",
            "leave out seal.num_edits_per_passage (--num-edits), or choose a strategy",
        )
    if chosen is not None:
        return chosen, _USER
    if mixed is not None:
        return mixed, _MIX
    counting = key if strategy == config.recipes[key].strategy else DEFAULT_RECIPE
    return config.recipes[counting].num_edits_per_passage, f"recipe {counting}"


def recipe_name(recipes: Mapping[str, Recipe], model_name: str) -> str:
    """The name of a model's recipe: its own, that of the last part of its path, or ``default``.

    ``HuggingFaceTB/SmolLM2-135M-Instruct`` and a folder of that name are the listed
    ``smollm2-135m-instruct``; capitals do not matter.
    """
    folded = {name.casefold(): name for name in recipes}
    last_part = re.split(r"[/\\]", model_name.rstrip("/\\"))[-1]
    for candidate in (model_name, last_part):
        if candidate.casefold() in folded:
            return folded[candidate.casefold()]
    return DEFAULT_RECIPE
