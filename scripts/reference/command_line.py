"""The page of all commands, from the click program: its words, its options, its exit codes.

What click itself would print depends on its version and on the terminal's width, so the page is
made from the commands' own parts: names, help texts, types and defaults.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import click
from scripts.reference.markdown import NOTHING, NOTICE, code, page, prose, table, value

from aios.cli.aios import cli
from aios.cli.lazy import COMMON_SECTION, HelpSections
from aios.cli.options import COMMON_NAMES, Command
from aios.core import errors
from aios.core.config import keys
from aios.core.config.defaults import read_defaults

SETTINGS_PAGE = "CONFIGURATION.md"
_OPTION_HEAD = ("option", "takes", "default", "what it does")
_LEFT_OUT = {"help"}


@dataclass(frozen=True)
class Listed:
    """A command and the words that call it, such as ``aios seal generate``."""

    words: str
    command: click.Command

    @property
    def short_help(self) -> str:
        """Its one line."""
        return self.command.get_short_help_str(limit=1000)

    @property
    def own_options(self) -> list[click.Option]:
        """Its options but the common ones."""
        return [
            param
            for param in self.command.params
            if isinstance(param, click.Option)
            and param.name not in (COMMON_NAMES if isinstance(self.command, Command) else ())
            and param.name not in _LEFT_OUT
        ]


def all_commands(
    command: click.Command = cli, words: tuple[str, ...] = ("aios",)
) -> Iterator[Listed]:
    """The program and everything below it, in the order of its help."""
    yield Listed(" ".join(words), command)
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            if found is not None and not found.hidden:
                yield from all_commands(found, (*words, name))


def options_by_key() -> dict[str, list[tuple[str, str]]]:
    """Config key → the commands and options that set it."""
    found: dict[str, list[tuple[str, str]]] = {}
    for listed in all_commands():
        for option in listed.own_options:
            if key := _key_of(option):
                found.setdefault(key, []).append((listed.words, option.opts[0]))
    return found


def write() -> str:
    """The page."""
    commands = list(all_commands())
    return page(
        "# Command line",
        NOTICE,
        "Everything that the program `aios` can be asked, as it says it itself: "
        "`aios COMMAND --help` prints the same in the terminal. An option that sets a "
        f"[setting]({SETTINGS_PAGE}) beats the setting for this one call.",
        "## All commands",
        table(("command", "what it does"), (_line_of(listed) for listed in commands[1:])),
        f"## {COMMON_SECTION}",
        "They stand after the command, as in `aios doctor --json`. Groups of commands, such as "
        "`aios seal`, take none of them.",
        _options(_common_options(commands), common=True),
        "## Exit codes",
        "An error is one or two lines on stderr: what is wrong and where, and what to do. With "
        "`--json` it is a document on stdout instead, whose `error.type` is the name in the last "
        "column.",
        _exit_codes(),
        *(_section(listed) for listed in commands),
    )


def _line_of(listed: Listed) -> tuple[str, str]:
    link = f"[`{listed.words}`](#{listed.words.replace(' ', '-')})"
    grouped = isinstance(listed.command, click.Group)
    return (f"**{link}**" if grouped else link, prose(listed.short_help))


def _section(listed: Listed) -> str:
    level = "#" * min(len(listed.words.split()) + 1, 4)
    below = ""
    if isinstance(listed.command, click.Group):
        rows = [
            _line_of(each)
            for each in all_commands(listed.command, tuple(listed.words.split()))
            if len(each.words.split()) == len(listed.words.split()) + 1
        ]
        below = table(("command", "what it does"), rows)
    examples = listed.command.examples if isinstance(listed.command, HelpSections) else ()
    shown = "```bash\n" + "\n".join(examples) + "\n```" if examples else ""
    return page(
        f"{level} `{listed.words}`",
        f"    {_usage(listed)}",
        *_paragraphs(listed.command.help or ""),
        below,
        _options(listed.own_options),
        shown,
    ).rstrip()


def _usage(listed: Listed) -> str:
    words = [listed.words]
    needed = [option for option in listed.own_options if option.required]
    words += [f"{option.opts[0]} {_metavar(option)}" for option in needed]
    words.append("[OPTIONS]")
    for param in listed.command.params:
        if isinstance(param, click.Argument):
            name = param.metavar or str(param.name).upper()
            more = "..." if param.nargs == -1 else ""
            words.append(f"{name}{more}" if param.required else f"[{name}]{more}")
    if isinstance(listed.command, click.Group):
        words.append("COMMAND ...")
    return " ".join(words)


def _paragraphs(help_text: str) -> Iterator[str]:
    """The parts of a help text; one that click is told not to wrap keeps its lines."""
    for part in inspect.cleandoc(help_text).split("\n\n"):
        if part.startswith("\b"):
            lines = part.lstrip("\b").strip("\n").splitlines()
            yield "\n".join(f"    {line}" for line in lines)
        else:
            yield prose(part)


def _common_options(commands: list[Listed]) -> list[click.Option]:
    """The common options, once."""
    first = next(each.command for each in commands if isinstance(each.command, Command))
    return [
        param
        for param in first.params
        if isinstance(param, click.Option) and param.name in COMMON_NAMES
    ]


def _options(options: list[click.Option], *, common: bool = False) -> str:
    return table(_OPTION_HEAD, (_option(option, common) for option in options))


def _option(option: click.Option, common: bool) -> tuple[str, str, str, str]:
    key = "" if common else _key_of(option)
    help_text = prose((option.help or "").removesuffix(f"[{key}]").strip())
    if key:
        help_text += f" Sets [{code(key)}]({SETTINGS_PAGE}#{key})."
    return _names(option), _takes(option, key), _default(option, key), help_text


def _key_of(option: click.Option) -> str:
    """The setting that an option sets: its help ends with the key in brackets."""
    help_text = (option.help or "").rstrip()
    name = help_text.rpartition("[")[2].removesuffix("]")
    return name if help_text.endswith("]") and keys.find(keys.split(name)) else ""


def _names(option: click.Option) -> str:
    names = [*option.opts, *option.secondary_opts]
    if option.is_flag:
        return ", ".join(map(code, names))
    metavar = _metavar(option)
    return ", ".join(code(f"{name} {metavar}") for name in names)


def _metavar(option: click.Option) -> str:
    if option.metavar:
        return option.metavar
    if isinstance(option.type, click.Choice):
        return "WORD"
    if isinstance(option.type, click.Path):
        return "FILE" if option.type.file_okay else "DIR"
    return {"integer": "N", "float": "X"}.get(option.type.name, "TEXT")


def _takes(option: click.Option, key: str) -> str:
    found = keys.find(keys.split(key)) if key else None
    if option.is_flag:
        return "a switch"
    kind = option.type
    if isinstance(kind, click.Choice):
        return "one of " + ", ".join(code(str(choice)) for choice in kind.choices)
    if found is not None:
        return prose(found.allowed.removesuffix("or null").rstrip("; "))
    if isinstance(kind, click.Path):
        what = "file" if not kind.dir_okay else "folder" if not kind.file_okay else "file or folder"
        return f"a {what} that exists" if kind.exists else f"a {what}"
    if isinstance(kind, (click.IntRange, click.FloatRange)):
        return _range(kind)
    return {"integer": "integer", "float": "number"}.get(kind.name, "text")


def _range(kind: click.IntRange | click.FloatRange) -> str:
    name = "integer" if isinstance(kind, click.IntRange) else "number"
    low = "" if kind.min is None else f" {'above' if kind.min_open else 'from'} {kind.min:g}"
    high = "" if kind.max is None else f" {'to below' if kind.max_open else 'to'} {kind.max:g}"
    return f"{name}{low}{high}"


def _default(option: click.Option, key: str) -> str:
    if option.required:
        return "**required**"
    if key:
        found: Any = read_defaults().value
        for name in keys.split(key):
            found = found[name]
        return value(found)
    default = option.default
    given = isinstance(default, (str, int, float)) and not isinstance(default, bool)
    return value(default) if given and default != "" else NOTHING


def _exit_codes() -> str:
    kinds: dict[int, list[str]] = {}
    for kind in vars(errors).values():
        if isinstance(kind, type) and issubclass(kind, errors.AIOSError):
            kinds.setdefault(kind.exit_code, []).append(kind.__name__)
    kinds[1].append("InternalError")
    meanings = {
        0: "done",
        1: "failed: what went wrong was in the work, the machine, or the program itself",
        2: "wrong usage, settings or input; nothing was started",
        130: "interrupted; what long work has done is kept, and the line to go on with is printed",
    }
    return table(
        ("code", "meaning", "errors"),
        (
            (code(str(number)), meaning, ", ".join(map(code, kinds.get(number, []))) or NOTHING)
            for number, meaning in meanings.items()
        ),
    )
