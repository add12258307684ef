"""What strategies there are here: built in, of the user's prompts file, of other packages.

Takes the config; gives one record a strategy, with what it makes, where it comes from, which
recipes use it, and, for one that is there and cannot be used, why. Plug-ins are imported for this.
"""

from __future__ import annotations

import importlib.metadata
import re
from dataclasses import dataclass

from aios.app.composition import build_prompts
from aios.core.config.recipes import recipe_name
from aios.core.config.schemas import Config
from aios.core.errors import UsageError
from aios.core.seal import strategies
from aios.core.seal.prompt_templates import AUTO
from aios.core.seal.prompts import PromptBuilder, PromptFormat
from aios.core.seal.strategies import ENTRY_POINT_GROUP, get_strategy, known_strategies
from aios.core.seal.strategy_mix import parse_mix

BUILT_IN = "built in"

# Names of one class differ in their prompts, which the class cannot tell.
_VARIANTS = {
    "implications-long": "A long list of implications that covers every fact.",
    "implications-very-long": "A very long list, then what the facts mean together.",
    "implications-cot": "Reasoning first, then implications; the reasoning is never trained on.",
}
_READ_AS: dict[PromptFormat, str] = {
    "lines": "a list, one training text each",
    "rewrites": "rewrites",
    "qa": "question-answer pairs",
}
_NAMES_IN_BRACKETS = re.compile(r" \(``[^()]*\)")


@dataclass(frozen=True, slots=True)
class StrategyInfo:
    """One strategy, as far as it is known without using it.

    Attributes:
        name: What it is asked for by.
        source: ``built in``, ``prompts file PATH`` or ``package NAME VERSION``.
        description: What it makes, in one line; empty where nobody has said.
        recipes: Names of the recipes that use it.
        problem: Why it cannot be used; empty where it can.
    """

    name: str
    source: str
    description: str
    recipes: tuple[str, ...] = ()
    problem: str = ""


@dataclass(frozen=True, slots=True)
class AutoChoice:
    """What ``auto`` means for the model in use.

    Attributes:
        model: The model's name.
        strategy: The strategy, or the mix.
        recipe: Name of the recipe that says so.
        measured: Where that recipe was measured, in words.
    """

    model: str
    strategy: str
    recipe: str
    measured: str


def auto_choice(config: Config) -> AutoChoice:
    """What ``auto`` means for the config's model."""
    name = recipe_name(config.recipes, config.model.name)
    recipe = config.recipes[name]
    return AutoChoice(config.model.name, recipe.strategy, name, recipe.source)


def strategies_in_use(config: Config) -> tuple[tuple[str, int | None], ...]:
    """The strategies in force, each with its number of self-edits where it is part of a mix.

    Raises:
        UsageError: The setting is no strategy and no mix.
    """
    chosen = config.seal.strategy
    return parse_mix(auto_choice(config).strategy if chosen == AUTO else chosen)


def list_strategies(config: Config) -> list[StrategyInfo]:
    """Every strategy that can be asked for, and those of packages that cannot, with the reason.

    Raises:
        ConfigError: The prompts file cannot be read.
    """
    prompts = build_prompts(config)
    offers = _offers()
    found = []
    for name in known_strategies(prompts):
        description, problem = _look_at(name, prompts)
        source = _source(config, name, prompts, offers)
        found.append(StrategyInfo(name, source, description, _recipes_with(config, name), problem))
    return found + _unused(found, offers)


def package_of(entry_point: importlib.metadata.EntryPoint) -> str:
    """Name and version of the package that an entry point belongs to."""
    dist = entry_point.dist
    return f"{dist.name} {dist.version}" if dist is not None else entry_point.value


def _offers() -> list[importlib.metadata.EntryPoint]:
    """Strategies that installed packages offer; of one name, the first is in use."""
    return list(importlib.metadata.entry_points(group=ENTRY_POINT_GROUP))


def _source(
    config: Config,
    name: str,
    prompts: PromptBuilder,
    offers: list[importlib.metadata.EntryPoint],
) -> str:
    if name in prompts.custom_strategies:
        return f"prompts file {config.seal.prompts_file}"
    if name in strategies.registered_strategies():
        return BUILT_IN
    return f"package {package_of(next(offer for offer in offers if offer.name == name))}"


def _look_at(name: str, prompts: PromptBuilder) -> tuple[str, str]:
    """What a strategy makes, and why it cannot be used, one of them empty."""
    try:
        strategy = get_strategy(name, prompts)
    except UsageError as error:
        return "", error.message
    if name in prompts.custom_strategies:
        return f"Your prompt, read as {_READ_AS[prompts.template(name).format]}.", ""
    if name in _VARIANTS:
        return _VARIANTS[name], ""
    lines = (type(strategy).__doc__ or "").strip().splitlines()
    first = _NAMES_IN_BRACKETS.sub("", lines[0]) if lines else ""
    return first.replace("``", ""), ""


def _recipes_with(config: Config, name: str) -> tuple[str, ...]:
    return tuple(
        recipe
        for recipe, values in config.recipes.items()
        if name in dict(parse_mix(values.strategy))
    )


def _unused(
    found: list[StrategyInfo], offers: list[importlib.metadata.EntryPoint]
) -> list[StrategyInfo]:
    """Offers of packages that something else of the same name hides."""
    in_use = {info.name: info.source for info in found}
    hidden = []
    seen: set[str] = set()
    for offer in offers:
        source = f"package {package_of(offer)}"
        if offer.name in seen or in_use[offer.name] != source:
            problem = f"not used: {in_use[offer.name]} has this name already"
            hidden.append(StrategyInfo(offer.name, source, "", problem=problem))
        seen.add(offer.name)
    return hidden
