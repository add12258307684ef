"""What every command shares: the common options, and turning them into one resolved config.

`common_options` adds ``--config --set --seed --offline --json --quiet --debug`` to a command and
hands them over as one `Common`. Flags of a command are translated into config overrides, the same
mechanism as ``--set``, so that app functions receive one resolved config and nothing else; a flag
beats ``--set`` where both name a key.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from aios.cli.completing import BY_KEY, SETTINGS, completes
from aios.cli.lazy import HelpSections

if TYPE_CHECKING:
    from aios.core.config.loader import LoadedConfig

_T = TypeVar("_T")

INPUT_FILE = click.Path(exists=True, dir_okay=False, readable=True, path_type=Path)
OUTPUT_FILE = click.Path(dir_okay=False, path_type=Path)


@dataclass(frozen=True)
class Common:
    """The values of the common options.

    Attributes:
        config_file: ``--config``.
        overrides: ``--set``, in the order given.
        seed: ``--seed``.
        offline: ``--offline``.
        json_output: ``--json``.
        quiet: ``--quiet``.
        debug: ``--debug``.
        flags: Config key → value, from the command's own `config_option`s that were given.
    """

    config_file: Path | None = None
    overrides: tuple[str, ...] = ()
    seed: int | None = None
    offline: bool = False
    json_output: bool = False
    quiet: bool = False
    debug: bool = False
    flags: Mapping[str, object] = field(default_factory=dict)


_FLAG = "flag__"
_OPTIONS = (
    click.option(
        "--config",
        "config_file",
        type=INPUT_FILE,
        help="A YAML file of settings; its keys beat the defaults and your user file.",
    ),
    click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="KEY=VALUE",
        shell_complete=completes(SETTINGS, ending="="),
        help="Set one config key, e.g. --set seal.temperature=0.7. Repeatable.",
    ),
    click.option(
        "--seed", type=click.IntRange(min=0), metavar="N", help="Seed of every random choice."
    ),
    click.option("--offline", is_flag=True, help="Never use the network."),
    click.option(
        "--json", "json_output", is_flag=True, help="Print the result as JSON, alone on stdout."
    ),
    click.option("--quiet", is_flag=True, help="No progress and no notices on stderr."),
    click.option("--debug", is_flag=True, help="Show the traceback of an error."),
)
COMMON_NAMES = frozenset(Common.__dataclass_fields__) - {"flags"}


class Command(HelpSections):
    """A command of this program; help shows the common options in their own section."""

    common_names = COMMON_NAMES


def common_options(function: Callable[..., None]) -> Callable[..., None]:
    """Adds the common options; the function gets them as its first argument, a `Common`."""

    @functools.wraps(function)
    def wrapper(**values: Any) -> None:
        shared = {name: values.pop(name) for name in COMMON_NAMES}
        options = {name: values.pop(name) for name in list(values) if name.startswith(_FLAG)}
        flags = {
            name.removeprefix(_FLAG).replace("__", "."): value
            for name, value in options.items()
            if value is not None
        }
        function(Common(**shared, flags=flags), **values)

    decorated: Callable[..., None] = wrapper
    for option in reversed(_OPTIONS):
        decorated = option(decorated)
    return decorated


def config_option(
    flag: str, key: str, type: Any = str, *, help: str, metavar: str | None = None
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """An option that sets one config key; where given, it arrives in `Common.flags`.

    Its help names the key, so that one can look it up (``aios config explain KEY``) or keep the
    value in a config file.
    """
    help = f"{help}  [{key}]"
    name = _FLAG + key.replace(".", "__")
    return click.option(
        flag, name, type=type, help=help, metavar=metavar, shell_complete=BY_KEY.get(key)
    )


def overrides(common: Common) -> list[str]:
    """All overrides as ``key=value`` texts: ``--set`` first, then flags, which therefore win."""
    written: dict[str, object] = {}
    if common.seed is not None:
        written["seed"] = common.seed
    if common.offline:
        written["model.offline"] = True
    written |= common.flags
    return [*common.overrides, *(f"{key}={json.dumps(value)}" for key, value in written.items())]


def load(common: Common) -> LoadedConfig:
    """Resolves the config once for a command.

    Raises:
        ConfigError: Keys that are not known or values out of range; all are listed.
    """
    from aios.core.config.loader import load_config

    loaded = load_config(
        config_file=common.config_file,
        overrides=overrides(common),
        env=os.environ,
        user_file=user_config_file(),
    )
    if not common.quiet:
        for note in loaded.notes:
            click.echo(f"note: {note}", err=True)
    return loaded


def user_config_file() -> Path:
    """Where the user's own config file is, if there is one."""
    import platformdirs

    return Path(platformdirs.user_config_dir("aios", appauthor=False)) / "config.yaml"


def original_args() -> Sequence[str]:
    """The arguments this program was called with (for the line to resume with)."""
    args = click.get_current_context().find_root().obj
    return args if isinstance(args, list) else []


def parsed_by(
    parse: Callable[[str], _T],
) -> Callable[[click.Context, click.Parameter, str | None], _T | None]:
    """An option's callback: what `parse` makes of the text; what it refuses is a usage error.

    Args:
        parse: Raises `ValueError`, with a message for people, where the text is none of its.
    """

    def value_of(ctx: click.Context, param: click.Parameter, text: str | None) -> _T | None:
        try:
            return None if text is None else parse(text)
        except ValueError as error:
            raise click.BadParameter(str(error), ctx, param) from error

    return value_of
