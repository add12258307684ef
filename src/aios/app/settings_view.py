"""The settings as a person looks at them: by section, with their values as they are typed.

Takes the settings of a server of pages; gives a row for each key, and what the settings come to
on the command line and as a file. What may hold a secret is left out of all of them.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from aios.app.page_settings import PageSettings, is_fixed
from aios.core.config import keys, yaml_text
from aios.core.config.explanation import Explanation, explain_all, recipe_values
from aios.core.config.loader import BROWSER, DEFAULT, MAY_BE_SECRET, LoadedConfig
from aios.core.errors import UsageError

Control: TypeAlias = Literal["switch", "choice", "choices", "integer", "number", "lines", "text"]

GENERAL = "general"  # the section of keys that are in none
# Texts of several lines, which have a larger field.
_LINES = ("chat.system", "evaluation.question_template", "endpoint.extra_body")
_HIDDEN = frozenset({"endpoint.extra_body"})  # may hold a key of a service, and be valid


@dataclass(frozen=True, slots=True)
class SettingRow:
    """One setting.

    Attributes:
        key: Its key, dotted.
        name: The key without its section.
        text: The value in force as it would be typed; empty for null, and where it is hidden.
        default: The default, likewise.
        default_source: Where that comes from.
        source: Where the value comes from.
        description: What it is.
        allowed: What it takes, in words.
        control: What it is set with.
        choices: What it, or each item of it, may be.
        nullable: Whether it may have no value.
        fixed: Whether pages cannot change it.
        hidden: Whether its value is not shown: it may hold a secret.
        by_recipe: The value that a recipe gives it, as text; empty where none does.
        recipe: That recipe.
    """

    key: str
    name: str
    text: str
    default: str
    default_source: str
    source: str
    description: str
    allowed: str
    control: Control
    choices: tuple[str, ...]
    nullable: bool
    fixed: bool
    hidden: bool
    by_recipe: str
    recipe: str

    @property
    def in_browser(self) -> bool:
        """Whether it was changed on a page."""
        return self.source == BROWSER

    @property
    def by_default(self) -> bool:
        """Whether nobody has set it."""
        return self.source == DEFAULT

    @property
    def items(self) -> tuple[str, ...]:
        """The items of a list."""
        return tuple(item.strip() for item in self.text.split(",") if item.strip())


@dataclass(frozen=True, slots=True)
class SettingSection:
    """Settings that belong together; `title` is the key of their section."""

    title: str
    description: str
    rows: tuple[SettingRow, ...]


@dataclass(frozen=True, slots=True)
class SettingsView:
    """All settings, or those that were looked for.

    Attributes:
        sections: Those that have settings to show.
        shown: How many are shown.
        total: How many there are.
        problem: What does not go together, though each value is allowed; mostly empty.
        remedy: What to do about it.
    """

    sections: tuple[SettingSection, ...]
    shown: int
    total: int
    problem: str = ""
    remedy: str = ""


def view_settings(
    loaded: LoadedConfig, *, query: str = "", changed_only: bool = False
) -> SettingsView:
    """The settings whose key, meaning or value holds all words of a query.

    Args:
        loaded: The settings in force.
        query: Words, in any order; capitals do not matter.
        changed_only: Leave out what has its default.
    """
    problem = remedy = ""
    recipes: Mapping[str, tuple[object, str]] = {}
    try:
        recipes = recipe_values(loaded.config)
    except UsageError as error:
        problem, remedy = error.message, error.remedy
    rows = [_row(found, recipes) for found in explain_all(loaded)]
    words = query.casefold().split()
    wanted = [
        row
        for row in rows
        if not (changed_only and row.by_default) and all(word in _searched(row) for word in words)
    ]
    return SettingsView(tuple(_sections(wanted)), len(wanted), len(rows), problem, remedy)


def to_typed(key: str, texts: tuple[str, ...]) -> str:
    """What was put into a setting's control as `PageSettings.change` takes it.

    Args:
        key: The setting.
        texts: The values of its fields: one, or of a list of choices those that were ticked.
    """
    found = keys.find(keys.split(key))
    text = texts[0] if texts else ""
    if found is None:
        return text
    if _control(found) == "choices":
        return ", ".join(texts) or "[]"
    if _control(found) == "switch":
        return "true" if "true" in texts else "false"
    if not text and found.nullable:
        return "null"
    return text.replace("\r\n", "\n")


def may_be_secret(key: str) -> bool:
    """Whether what somebody typed for a key is not to be repeated."""
    return keys.split(key) in MAY_BE_SECRET


def as_options(changed: Mapping[str, str]) -> str:
    """Changed settings as options of a command; empty where there are none."""
    return " ".join(
        f"--set {shlex.quote(f'{key}={value}')}"
        for key, value in changed.items()
        if key not in _HIDDEN
    )


def as_file(settings: PageSettings) -> str:
    """The settings in force as a config file, without what may hold a secret.

    Raises:
        ConfigError: A kept value does not fit.
        StorageError: The file of changes cannot be read.
    """
    loaded = settings.loaded()
    plain = loaded.config.model_dump(mode="json")
    left_out = []
    for key in sorted(_HIDDEN):
        section, name = keys.split(key)
        if plain[section].pop(name):
            left_out.append(key)
    lines = ["# The settings in force on the pages; use it by --config FILE."]
    lines += [f"# Left out, since it may hold a secret: {key}" for key in left_out]
    return "\n".join((*lines, yaml_text.write_text(plain)))


def _row(found: Explanation, recipes: Mapping[str, tuple[object, str]]) -> SettingRow:
    path = keys.split(found.key)
    key = keys.find(path)
    assert key is not None  # it was explained
    hidden = found.key in _HIDDEN and bool(found.value)
    by_recipe, recipe = recipes.get(found.key, (None, ""))
    above = ".".join(path[:2] if path[0] == "recipes" else path[:1])
    return SettingRow(
        key=found.key,
        name=found.key.removeprefix(f"{above}."),
        text="" if hidden else _typed(key, found.value),
        default=_typed(key, found.default),
        default_source=found.default_source,
        source=found.source,
        description=found.description,
        allowed=found.allowed,
        control=_control(key),
        choices=key.choices,
        nullable=key.nullable,
        fixed=is_fixed(found.key),
        hidden=hidden,
        by_recipe="" if by_recipe is None else _plain(by_recipe),
        recipe=recipe,
    )


def _control(key: keys.Key) -> Control:
    if key.type == "boolean":
        return "switch"
    if key.choices:
        return "choices" if key.type == "array" else "choice"
    if key.type == "integer":
        return "integer"
    if key.type == "number":
        return "number"
    return "lines" if key.dotted in _LINES else "text"


def _typed(key: keys.Key, value: Any) -> str:
    """A value as it is typed; read again, it is the same value."""
    if value is None:
        return ""
    if not isinstance(value, str):
        return _plain(value)
    # As it stands it would be read as something else: quoted, without its outer space, or null.
    strange = value != value.strip() or value[:1] in ("'", '"')
    if key.nullable and not strange:
        strange = yaml_text.read_text(value).value is None
    return json.dumps(value, ensure_ascii=False) if strange else value


def _plain(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _searched(row: SettingRow) -> str:
    return f"{row.key} {row.description} {row.allowed} {row.text}".casefold()


def _sections(rows: list[SettingRow]) -> Iterator[SettingSection]:
    found: dict[str, list[SettingRow]] = {}
    for row in rows:
        title = row.key.removesuffix(row.name).removesuffix(".") or GENERAL
        found.setdefault(title, []).append(row)
    for title, members in found.items():
        section = keys.find(keys.split(title))
        yield SettingSection(title, section.description if section else "", tuple(members))
