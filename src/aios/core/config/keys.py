"""The tree of config keys: what a key takes, what it means, and which key was meant.

Built from the models in ``schemas``. A key is a path of names; as a text they are joined by dots.
Names below ``recipes`` are model names and may hold dots themselves.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic import BaseModel

from aios.core.config.feature_flags import FLAGS
from aios.core.config.recipe_schemas import DEFAULT_RECIPE, Recipe
from aios.core.config.schemas import Config

KeyPath = tuple[str, ...]

LENGTHS = (
    "seal.max_length is the longest edit that the filter keeps; "
    "the longest generation is seal.max_new_tokens"
)
# What people write for the plan's second `max_length`, the generation's.
_GENERATION_LENGTH = {
    "generation max tokens",
    "generation_max_tokens",
    "generation_max_length",
    "max_generation_length",
    "max_generation_tokens",
    "max_tokens",
}
_SHORT_NAMES = {"lr": "learning_rate", "r": "rank"}


@dataclass(frozen=True, slots=True)
class Key:
    """One key of the config.

    Attributes:
        path: Its names from the root.
        section: Whether it holds keys rather than a value.
        description: What it is.
        allowed: Its type, range or choices in words.
        text: Whether its value is a text or a path.
        nullable: Whether it may be null.
        type: ``boolean``, ``integer``, ``number``, ``string`` or ``array``, as JSON schema says;
            empty where it takes values of several types.
        choices: What it, or each item of it, may be; empty where that cannot be listed.
    """

    path: KeyPath
    section: bool
    description: str
    allowed: str
    text: bool = False
    nullable: bool = False
    type: str = ""
    choices: tuple[str, ...] = ()

    @property
    def dotted(self) -> str:
        """The key as it is written after ``--set``."""
        return ".".join(self.path)


def find(path: KeyPath) -> Key | None:
    """The key at a path, or None where there is none. The root is a section."""
    if path[:1] == ("recipes",) and len(path) >= 2:
        return _find_in(Recipe, path, depth=2)
    if path[:1] == ("features",) and len(path) >= 2:
        for flag in FLAGS:
            if path[1:] == (flag.name,):
                return Key(path, False, flag.description, "true or false", type="boolean")
        return None
    return _find_in(Config, path, depth=0)


def _find_in(model: type[BaseModel], path: KeyPath, depth: int) -> Key | None:
    """Follows `path` from its `depth`-th name down the models."""
    for index, name in enumerate(path[depth:], start=depth):
        if name not in model.model_fields:
            return None
        inner = _section(model, name)
        if inner is None:
            return _leaf(model, path) if index == len(path) - 1 else None
        model = inner
    words = (model.__doc__ or "").strip().splitlines()
    return Key(path, True, words[0], "a section: keys below it")


def _section(model: type[BaseModel], name: str) -> type[BaseModel] | None:
    """The model of the section below a key; None where the key holds a value."""
    inner = model.model_fields[name].annotation
    return inner if isinstance(inner, type) and issubclass(inner, BaseModel) else None


def _leaf(model: type[BaseModel], path: KeyPath) -> Key:
    schema = _properties(model)[path[-1]]
    choices = schema.get("anyOf", [schema])
    kinds = [choice.get("type") for choice in choices]
    description = schema.get("description") or choices[0].get("description", "")
    if path in (("recipes",), ("features",)):
        return Key(path, True, description, "a section: keys below it")
    taken = [choice for choice in choices if choice.get("type") != "null"]
    return Key(
        path,
        False,
        description,
        schema.get("x-allowed") or _in_words(schema),
        text=set(kinds) <= {"string", "null"},
        nullable="null" in kinds,
        type=str(taken[0].get("type", "")) if len(taken) == 1 else "",
        choices=_listed(taken[0]) if len(taken) == 1 else (),
    )


def _listed(schema: Mapping[str, Any]) -> tuple[str, ...]:
    """The values that a schema, or that of its items, lists."""
    listed = schema.get("items", schema).get("enum", ())
    return tuple(map(str, listed))


@cache
def _properties(model: type[BaseModel]) -> dict[str, dict[str, Any]]:
    properties: dict[str, dict[str, Any]] = model.model_json_schema()["properties"]
    return properties


def _in_words(schema: Mapping[str, Any]) -> str:
    """A JSON schema of one value in words, e.g. ``number from 0.1 to 2``."""
    if "anyOf" in schema:
        return " or ".join(_in_words(choice) for choice in schema["anyOf"])
    if "enum" in schema:
        return "one of " + ", ".join(str(choice) for choice in schema["enum"])
    kind = schema.get("type")
    if kind == "array":
        return "list of " + _in_words(schema["items"]).removeprefix("one of ")
    if kind in ("integer", "number"):
        low, above = schema.get("minimum"), schema.get("exclusiveMinimum")
        high, below = schema.get("maximum"), schema.get("exclusiveMaximum")
        start = f"above {above} up" if above is not None else f"from {low}"
        end = f"below {below}" if below is not None else str(high)
        return f"{kind} {start} to {end}"
    if schema.get("format") == "path":
        return "path"
    if schema.get("minLength"):
        return "text, not empty"
    return {"boolean": "true or false", "string": "text"}.get(str(kind), str(kind))


def split(dotted: str) -> KeyPath:
    """The path of a key written with dots; a model name below ``recipes`` may hold dots."""
    parts = tuple(dotted.split("."))
    if parts[0] != "recipes" or len(parts) < 3:
        return parts
    fields = list(Recipe.model_fields)
    for cutoff in (1.0, 0.75):  # a slip in the name below the model's is still found, and refused
        for index in range(2, len(parts)):
            if difflib.get_close_matches(parts[index], fields, n=1, cutoff=cutoff):
                return ("recipes", ".".join(parts[1:index]), *parts[index:])
    return ("recipes", ".".join(parts[1:]))


def children(path: KeyPath) -> Iterator[Key]:
    """The keys right below a section; below ``recipes`` only the recipe that always is there."""
    if path == ("features",):
        names: list[str] = [flag.name for flag in FLAGS]
    elif path == ("recipes",):
        names = [DEFAULT_RECIPE]
    else:
        in_recipe = path[:1] == ("recipes",)
        model: type[BaseModel] = Recipe if in_recipe else Config
        for name in path[2:] if in_recipe else path:
            model = _section(model, name) or model
        names = list(model.model_fields)
    for name in names:
        if key := find((*path, name)):
            yield key


@cache
def every_key() -> tuple[Key, ...]:
    """All keys but those of the recipes other than ``default``, sections before their keys."""
    found: list[Key] = []
    waiting: list[KeyPath] = [()]
    while waiting:
        for key in children(waiting.pop(0)):
            found.append(key)
            if key.section:
                waiting.append(key.path)
    return tuple(found)


def advice(path: KeyPath) -> str:
    """What to write instead of a key that does not exist, as a sentence."""
    name = path[-1]
    if path[0] == "seal" and name.lower() in _GENERATION_LENGTH:
        return LENGTHS
    known = path[:-1]
    while known and not ((section := find(known)) and section.section):
        known = known[:-1]
    siblings = [key.path[-1] for key in children(known)]
    wanted, rest = path[len(known)], path[len(known) + 1 :]
    slips = [
        (*known, sibling, *rest)
        for sibling in difflib.get_close_matches(_SHORT_NAMES.get(wanted, wanted), siblings, n=2)
    ]
    near = [".".join(slip) for slip in slips if (key := find(slip)) and not key.section]
    if not near:  # the right name in another section
        near = [k.dotted for k in every_key() if k.path[-1] == name and k.path[0] != "recipes"]
    if not near:
        near = [".".join(slip[: len(known) + 1]) for slip in slips]
    if near:
        return f"did you mean {' or '.join(near)}?"
    where = f"{'.'.join(known)} has" if known else "the sections are"
    return f"{where}: {', '.join(siblings)}"
