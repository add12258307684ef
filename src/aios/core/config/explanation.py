"""Says what a config key is: its meaning, what it takes, its value and where that comes from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from aios.core.config import keys
from aios.core.config.defaults import read_defaults
from aios.core.config.loader import DEFAULT, LoadedConfig
from aios.core.config.recipes import resolve_recipe
from aios.core.config.schemas import Config
from aios.core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Explanation:
    """What is known about a key.

    Attributes:
        key: The key, dotted.
        value: Its value now, as plain data; for a section, those of all its keys.
        source: Where that value came from; empty for a section.
        default: Its default; None for a section.
        allowed: Its type, range or choices.
        description: What it is.
        default_source: Where the default comes from (the comment in ``config/default.yaml``).
        children: For a section, its keys.
    """

    key: str
    value: Any
    source: str
    default: Any
    allowed: str
    description: str
    default_source: str
    children: tuple[Explanation, ...] = ()


def explain(loaded: LoadedConfig, dotted: str) -> Explanation:
    """Says what a key is, what it takes, its value and where value and default come from.

    Raises:
        ConfigError: No such key; the message names close ones.
    """
    return _explain(loaded, loaded.config.model_dump(mode="json"), dotted)


def explain_all(loaded: LoadedConfig) -> tuple[Explanation, ...]:
    """All keys with a value, in the order of the models, those of every recipe included."""
    plain = loaded.config.model_dump(mode="json")
    return tuple(leaf for name in plain for leaf in _leaves(_explain(loaded, plain, name)))


def recipe_values(config: Config) -> dict[str, tuple[object, str]]:
    """Key → (value in force, its recipe), for the keys that leave it to the model's recipe.

    Raises:
        UsageError: The recipe and the settings do not go together.
    """
    recipe = resolve_recipe(config, config.model.name)
    values: dict[str, tuple[object, str]] = {}
    for key, source in recipe.sources.items():
        if source == "user":
            continue
        name = key.rpartition(".")[2]
        holder = recipe if hasattr(recipe, name) else recipe.lora
        values[key] = (getattr(holder, name), source)
    return values


def _explain(loaded: LoadedConfig, plain: Mapping[str, Any], dotted: str) -> Explanation:
    path = keys.split(dotted)
    key = keys.find(path)
    value: Any = plain
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    if key is None or (value is None and key.path[0] == "recipes"):
        recipes = f"recipes has: {', '.join(loaded.config.recipes)}"
        advice = keys.advice(path) if key is None else recipes
        raise ConfigError(f"config: {dotted}: no such key; {advice}")
    defaults = read_defaults()
    default: Any = defaults.value
    for name in path:
        default = default.get(name) if isinstance(default, dict) else None
    return Explanation(
        key=dotted,
        value=value,
        source="" if key.section else loaded.sources.get(dotted, DEFAULT),
        default=None if key.section else default,
        allowed=key.allowed,
        description=key.description,
        default_source=defaults.comments.get(path, ""),
        children=tuple(_explain(loaded, plain, f"{dotted}.{name}") for name in value)
        if key.section
        else (),
    )


def _leaves(found: Explanation) -> Iterator[Explanation]:
    if not found.children:
        yield found
    for child in found.children:
        yield from _leaves(child)
