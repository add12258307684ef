"""``aios config``: the settings in force, where each comes from, and what each takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import click

from aios.cli.completing import SECTIONS, SETTINGS, completes
from aios.cli.lazy import Entry, LazyGroup
from aios.cli.options import Command, Common, common_options, load, user_config_file

if TYPE_CHECKING:
    from aios.core.config.explanation import Explanation
    from aios.core.config.loader import LoadedConfig

_HERE = "aios.cli.commands.config"
ENTRIES = {
    "show": Entry(f"{_HERE}:show", "Print the settings in force and their sources."),
    "explain": Entry(f"{_HERE}:explain", "Say what a setting is and what it takes."),
    "schema": Entry(f"{_HERE}:schema", "Print the JSON schema of the config file."),
}


@click.group("config", cls=LazyGroup, entries=ENTRIES)
def config() -> None:
    """Show and explain the settings.

    Settings come from, the later beating the earlier: the defaults, your user file, --config FILE,
    environment variables (AIOS_SEAL__STRATEGY=rewrite), --set KEY=VALUE, and a command's own
    options.
    """


@click.command(
    "show",
    cls=Command,
    short_help="Print the settings in force and their sources.",
    examples=(
        "aios config show seal",
        "aios config show training.rank",
    ),
)
@click.argument("key", required=False, shell_complete=completes(SECTIONS, SETTINGS))
@common_options
def show(common: Common, key: str | None) -> None:
    """Print the settings in force as YAML, each with its source. With KEY: that part alone.

    The output is a config file: save it, change it, and give it back by --config.
    """
    from aios.cli.rendering import write_json, write_text
    from aios.core.config.explanation import explain as explain_key
    from aios.core.config.explanation import recipe_values

    loaded = load(common)
    plain: Any = loaded.config.model_dump(mode="json")
    sources = dict(loaded.sources)
    if key is not None:
        found = explain_key(loaded, key)  # refuses a key that does not exist
        plain = found.value
        sources = {
            name: source
            for name, source in sources.items()
            if name == key or name.startswith(f"{key}.")
        }
    if common.json_output:
        write_json({"value": plain, "sources": sources})
        return
    in_force = recipe_values(loaded.config)
    if key is None:
        write_text(f"# your own file: {user_config_file()}")
    write_text("\n".join(_yaml_lines(plain, key or "", loaded, in_force)))


@click.command(
    "explain",
    cls=Command,
    short_help="Say what a setting is and what it takes.",
    examples=("aios config explain seal.strategy",),
)
@click.argument("key", shell_complete=completes(SECTIONS, SETTINGS))
@common_options
def explain(common: Common, key: str) -> None:
    """Say what a setting is, what it takes, its value, and where value and default come from."""
    from aios.cli.rendering import to_json, write_facts, write_json, write_table
    from aios.core.config.explanation import explain as explain_key
    from aios.core.config.explanation import recipe_values

    loaded = load(common)
    found = explain_key(loaded, key)
    in_force = recipe_values(loaded.config)
    if common.json_output:
        chosen, recipe = in_force.get(key, (None, None))
        write_json({**to_json(found), "in_force": chosen, "recipe": recipe})
        return
    if found.children:
        write_facts([("key", found.key), ("what", found.description)])
        write_table(
            ("key", "value", "what it is"),
            [
                (child.key, _short_value(child, in_force), child.description)
                for child in _all(found)
            ],
        )
        return
    write_facts(
        [
            ("key", found.key),
            ("what", found.description),
            ("value", _value_text(found, in_force)),
            ("source", found.source),
            ("allowed", found.allowed),
            ("default", f"{_scalar(found.default)}  ({found.default_source or 'no source given'})"),
        ]
    )


@click.command(
    "schema",
    cls=Command,
    short_help="Print the JSON schema of the config file.",
    examples=("aios config schema > aios.schema.json",),
)
@common_options
def schema(common: Common) -> None:
    """Print the JSON schema of the config file, for editors and checkers."""
    from aios.cli.rendering import write_json
    from aios.core.config.loader import json_schema

    write_json(json_schema())


def _yaml_lines(
    value: Any,
    key: str,
    loaded: LoadedConfig,
    in_force: Mapping[str, tuple[object, str]],
    indent: int = 0,
) -> Iterator[str]:
    """The value as YAML lines, a comment behind each that says where it comes from."""
    if not isinstance(value, Mapping):
        yield f"{_scalar(value)}  # {_origin(key, loaded, in_force)}"
        return
    for name, inner in value.items():
        path = f"{key}.{name}" if key else str(name)
        start = " " * indent + _scalar(str(name))
        if isinstance(inner, Mapping):
            yield f"{start}:" if inner else f"{start}: {{}}"
            yield from _yaml_lines(inner, path, loaded, in_force, indent + 2)
        else:
            yield f"{start}: {_scalar(inner)}  # {_origin(path, loaded, in_force)}"


def _origin(key: str, loaded: LoadedConfig, in_force: Mapping[str, tuple[object, str]]) -> str:
    source = loaded.sources.get(key, "default")
    if key in in_force:
        value, recipe = in_force[key]
        return f"{source}; in force: {_scalar(value)}, from {recipe}"
    return source


def _value_text(found: Explanation, in_force: Mapping[str, tuple[object, str]]) -> str:
    text = _scalar(found.value)
    if found.key in in_force:
        value, recipe = in_force[found.key]
        text += f", which is {_scalar(value)} by {recipe}"
    return text


def _short_value(found: Explanation, in_force: Mapping[str, tuple[object, str]]) -> str:
    if found.key in in_force:
        return f"{_scalar(in_force[found.key][0])} (recipe)"
    return _scalar(found.value)


def _all(found: Explanation) -> Iterator[Explanation]:
    """All keys with a value below a section."""
    for child in found.children:
        if child.children:
            yield from _all(child)
        else:
            yield child


def _scalar(value: object) -> str:
    """A value as YAML on one line."""
    import json

    import yaml

    if isinstance(value, str) and "\n" in value:
        return json.dumps(value, ensure_ascii=False)  # YAML's own quotes would spread over lines
    text: str = yaml.safe_dump(
        value, default_flow_style=True, allow_unicode=True, width=float("inf")
    )
    return text.removesuffix("...\n").strip()
