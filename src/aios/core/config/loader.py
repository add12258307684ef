"""Loads the config: five layers over one another, every mistake reported at once.

Takes, from weakest to strongest, the packaged ``config/default.yaml``, the user's file, the file
given by ``--config``, environment variables (``AIOS_SEAL__STRATEGY=rewrite``, two underscores
between levels), ``--set seal.strategy=rewrite`` and what was changed in the browser; gives one
frozen `Config` and, for each key, where its value came from. A layer changes single keys: lists
are replaced, sections are merged.
``HF_HUB_OFFLINE=1`` and ``AIOS_OFFLINE=1`` turn ``model.offline`` on, and nothing turns it off.
A mix of strategies with numbers of its own beats a number of self-edits from a weaker layer.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import ValidationError

from aios.core.config import keys, yaml_text
from aios.core.config.defaults import read_defaults
from aios.core.config.schemas import Config
from aios.core.config.yaml_text import Document, KeyPath
from aios.core.errors import ConfigError, UsageError
from aios.core.seal.prompt_templates import AUTO
from aios.core.seal.strategy_mix import mix_edits

DEFAULT = "default"
BROWSER = "changed in the browser"
_PREFIX = "AIOS_"
_OFFLINE = ("model", "offline")
_STRATEGY = ("seal", "strategy")
_NUM_EDITS = ("seal", "num_edits_per_passage")
# Where a password or a key may have been typed by mistake: a refused value is not repeated.
MAY_BE_SECRET = {("endpoint", "url"), ("endpoint", "api_key_env"), ("endpoint", "extra_body")}
_TRUE = {"1", "true", "yes", "on"}
_FALSE = {"", "0", "false", "no", "off"}


@dataclass(frozen=True, slots=True)
class LoadedConfig:
    """A config and its origins.

    Attributes:
        config: The resolved config.
        sources: For each key with a value, dotted: ``default``, ``FILE:LINE``, ``environment
            variable NAME``, ``--set`` or ``changed in the browser``.
        notes: What a person should know about the choice, one sentence each; mostly empty.
    """

    config: Config
    sources: Mapping[str, str]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Value:
    """A value given for a key, by whom, and in which layer."""

    value: Any
    source: str
    layer: int = 0


@dataclass(slots=True)
class _Layers:
    """What the layers read so far come to."""

    values: dict[KeyPath, _Value] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    layer: int = 0  # the one that is being read; a higher one is stronger


def load_config(
    *,
    config_file: Path | None = None,
    overrides: Sequence[str] = (),
    env: Mapping[str, str],
    user_file: Path | None = None,
    changes: Mapping[str, str] = MappingProxyType({}),
) -> LoadedConfig:
    """Loads the config from all its layers.

    Args:
        config_file: The file given by ``--config``; it must exist.
        overrides: ``key=value`` texts, the value in YAML; later ones win.
        env: The environment.
        user_file: The user's own file; skipped if it does not exist.
        changes: Texts by key, over all other layers: what was changed in the browser.

    Raises:
        ConfigError: Something is wrong; the message lists every problem with its key, the value,
            what is allowed and where it was given.
    """
    layers = _Layers()
    _add_document(layers, read_defaults(), "")
    layers.layer = 1
    if user_file is not None and _exists(user_file):
        _add_document(layers, yaml_text.read_file(user_file), str(user_file))
    layers.layer = 2
    if config_file is not None:
        _add_document(layers, yaml_text.read_file(config_file), str(config_file))
    layers.layer = 3
    _add_environment(layers, env)
    layers.layer = 4
    for text in overrides:
        _add_override(layers, text)
    layers.layer = 5
    for dotted, text in changes.items():
        _add_text(layers, keys.split(dotted), text, BROWSER)
    _enforce_offline(layers, env)
    _prefer_numbers_of_a_mix(layers)

    config = _validate(layers)
    if layers.problems or config is None:
        raise _error(layers.problems)
    sources = {key.dotted: DEFAULT for key, _ in _leaves((), config.model_dump())}
    sources |= {".".join(path): given.source for path, given in layers.values.items()}
    return LoadedConfig(config, sources, (*layers.notes, *_notes(config, sources)))


def without_settings(env: Mapping[str, str]) -> dict[str, str]:
    """An environment without the variables that set keys, for a process with settings of its own.

    ``AIOS_OFFLINE`` and ``HF_HUB_OFFLINE`` stay: nothing turns them off.
    """
    return {name: text for name, text in env.items() if not _sets_a_key(name)}


def _sets_a_key(name: str) -> bool:
    if not name.startswith(_PREFIX) or name == "AIOS_OFFLINE":
        return False
    path = tuple(name[len(_PREFIX) :].lower().split("__"))
    return len(path) > 1 or keys.find(path) is not None


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # it cannot even be looked at: reading it reports why
        return True


def _add_document(layers: _Layers, document: Document, name: str) -> None:
    """Adds a file's keys; `name` is empty for the defaults."""
    for mistake in document.mistakes:
        where = f"{name}:{mistake.line}" if mistake.line else name
        key = f"{'.'.join(mistake.path)}: " if mistake.path else ""
        hint = f" ({keys.LENGTHS})" if mistake.path == ("seal", "max_length") else ""
        layers.problems.append(f"{where}: {key}{mistake.message}{hint}")

    def source(path: KeyPath) -> str:
        return f"{name}:{document.lines.get(path, 1)}" if name else DEFAULT

    if document.value is None:
        return
    if not isinstance(document.value, dict):
        layers.problems.append(f"{name}: holds no keys; write lines such as `seed: 1`")
        return
    _add(layers, (), document.value, source)


def _add_environment(layers: _Layers, env: Mapping[str, str]) -> None:
    one_underscore = {"_".join(key.path): key for key in keys.every_key() if len(key.path) > 1}
    for name, text in sorted(env.items()):
        if not name.startswith(_PREFIX) or name == "AIOS_OFFLINE" or not text:
            continue
        spelled = name[len(_PREFIX) :].lower()
        source = f"environment variable {name}"
        if _sets_a_key(name):
            _add_text(layers, tuple(spelled.split("__")), text, source)
        elif spelled in one_underscore:
            right = _PREFIX + "__".join(one_underscore[spelled].path).upper()
            layers.problems.append(f"{source}: levels take two underscores; write {right}")


def _add_override(layers: _Layers, text: str) -> None:
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        layers.problems.append(f"--set {text}: write KEY=VALUE, such as seal.strategy=rewrite")
        return
    _add_text(layers, keys.split(name.strip()), value, "--set")


def _add_text(layers: _Layers, path: KeyPath, text: str, source: str) -> None:
    """Adds a value that was given as text outside a file."""
    key = keys.find(path)
    if key is None:
        layers.problems.append(_unknown(path, source))
        return
    document = _parse_value(text)
    value = document.value
    if key.text:
        quoted = text.lstrip()[:1] in ("'", '"') and isinstance(value, str)
        is_null = key.nullable and value is None and not document.mistakes
        if not quoted and not is_null:
            value = text.strip()  # as it stands, be it `Question: {question}` or `C# 12`
    elif document.mistakes:
        message = document.mistakes[0].message
        layers.problems.append(f"{'.'.join(path)} = {_shown(text)} ({source}): {message}")
        return
    tree: Any = value
    for name in reversed(path):
        tree = {name: tree}
    _add(layers, (), tree, lambda _: source)


def _unknown(path: KeyPath, source: str) -> str:
    """One line on a key that does not exist; its value is not repeated, it may be a secret."""
    return f"{'.'.join(path)} ({source}): no such key; {keys.advice(path)}"


def _parse_value(text: str) -> Document:
    if text.startswith('"'):  # JSON, whose escapes for rare characters YAML reads otherwise
        try:
            return Document(json.loads(text))
        except json.JSONDecodeError:
            pass
    return yaml_text.read_text(text)


def _add(
    layers: _Layers, path: KeyPath, tree: Mapping[str, Any], source: Callable[[KeyPath], str]
) -> None:
    """Adds a mapping of keys and values, each with ``source(path)``, to the layers."""
    for key, value in _leaves(path, tree):
        given = _Value(value, source(key.path), layers.layer)
        if not key.allowed:
            layers.problems.append(_unknown(key.path, given.source))
        elif key.section:
            layers.problems.append(
                f"{key.dotted} = {_shown(value)} ({given.source}): is a section; "
                f"give a key below it, such as {next(keys.children(key.path)).dotted}"
            )
        else:
            layers.values[key.path] = given


def _leaves(path: KeyPath, tree: Mapping[str, Any]) -> Iterator[tuple[keys.Key, Any]]:
    """The keys of a tree that hold a value; a key that does not exist has nothing allowed."""
    for name, value in tree.items():
        here = (*path, str(name))
        key = keys.find(here)
        if key is None:
            yield keys.Key(here, False, "", ""), value
        elif key.section and isinstance(value, Mapping):
            yield from _leaves(here, value)
        elif not (key.section and value is None):  # `seal:` with nothing below says nothing
            yield key, value


def _enforce_offline(layers: _Layers, env: Mapping[str, str]) -> None:
    """Turns `model.offline` on where the environment forbids network use, against all layers."""
    for name in ("HF_HUB_OFFLINE", "AIOS_OFFLINE"):
        text = env.get(name, "").strip().lower()
        if text not in _TRUE:
            if name == "AIOS_OFFLINE" and text not in _FALSE:
                layers.problems.append(f"environment variable {name} = {text}: must be 1 or 0")
            continue
        given = layers.values.get(_OFFLINE)
        if given is not None and given.layer >= 4 and given.value in (False, 0):
            layers.problems.append(
                f"model.offline = false ({given.source}): {name} is set, "
                "which forbids all network use; unset it first"
            )
        elif given is None or given.value is not True:
            layers.values[_OFFLINE] = _Value(True, f"environment variable {name}")


def _prefer_numbers_of_a_mix(layers: _Layers) -> None:
    """Takes out a number of self-edits that a mix from a stronger layer makes pointless."""
    mix, number = layers.values.get(_STRATEGY), layers.values.get(_NUM_EDITS)
    if mix is None or number is None or number.value in (None, AUTO) or number.layer >= mix.layer:
        return
    try:
        wanted = mix_edits(mix.value) if isinstance(mix.value, str) else None
    except UsageError:  # reported when the value is checked
        return
    if wanted is None:
        return
    layers.values[_NUM_EDITS] = _Value(None, mix.source, mix.layer)
    if number.value != wanted:
        layers.notes.append(
            f"{'.'.join(_NUM_EDITS)} = {_shown(number.value)} ({number.source}) is not used: "
            f"{mix.value} makes {wanted} self-edits of each passage"
        )


def _validate(layers: _Layers) -> Config | None:
    """Builds the config from the layers' values; what is wrong is added to the problems."""
    tree: dict[str, Any] = {}
    for path, given in layers.values.items():
        level = tree
        for name in path[:-1]:
            level = level.setdefault(name, {})
        level[path[-1]] = given.value
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        reported: set[KeyPath] = set()
        for detail in error.errors(include_url=False):
            path = tuple(str(part) for part in detail["loc"])
            while path and path not in layers.values and keys.find(path) is None:
                path = path[:-1]  # the number of a list's item, and the like
            if path not in reported:
                reported.add(path)
                layers.problems.append(_problem(layers, path, detail))
        return None


def _problem(layers: _Layers, path: KeyPath, detail: Any) -> str:
    """One line on a value that the models refuse."""
    key = keys.find(path)
    dotted = ".".join(path)
    reason = str(detail["ctx"]["error"]) if detail["type"] == "value_error" else ""
    given = layers.values.get(path)
    if given is None:  # a whole section, or a key that is missing from a recipe
        if detail["type"] == "missing" and key is not None:
            reason = f"is missing: a recipe names every key ({key.allowed})"
        section = path[:2] if detail["type"] == "missing" else path
        sources = {v.source for p, v in layers.values.items() if p[: len(section)] == section}
        where = ", ".join(sorted(sources - {DEFAULT})) or DEFAULT
        return f"{dotted} ({where}): {reason or detail['msg']}"
    allowed = f"must be {key.allowed}" if key is not None else ""
    hint = f" ({keys.LENGTHS})" if path == ("seal", "max_length") else ""
    value = "…" if path in MAY_BE_SECRET else _shown(given.value)
    return f"{dotted} = {value} ({given.source}): {reason or allowed}{hint}"


def _shown(value: Any) -> str:
    """A value as it would be written, cut to a line."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def _error(problems: Sequence[str]) -> ConfigError:
    remedy = "`aios config explain KEY` says what a key takes."
    if len(problems) == 1:
        return ConfigError(f"config: {problems[0]}", remedy)
    listed = "".join(f"\n  {problem}" for problem in problems)
    return ConfigError(f"{len(problems)} config errors:{listed}", remedy)


def _notes(config: Config, sources: Mapping[str, str]) -> Iterator[str]:
    seal = config.seal
    if (
        sources["seal.max_length"] != DEFAULT
        and sources["seal.max_new_tokens"] == DEFAULT
        and seal.max_length < seal.max_new_tokens
    ):
        yield (
            f"{keys.LENGTHS} (now {seal.max_new_tokens}), so edits may be written "
            f"that are longer than the {seal.max_length} tokens kept"
        )


def json_schema() -> dict[str, Any]:
    """The JSON schema of the whole config."""
    return Config.model_json_schema()


def dump(config: Config) -> str:
    """The config as YAML that loads back to the same config."""
    return yaml_text.write_text(config.model_dump(mode="json"))
