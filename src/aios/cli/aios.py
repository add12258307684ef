"""The `aios` program: the table of its commands, and the edge where errors become exit codes.

Exit codes: 0 done, 1 failed, 2 wrong usage, config or input, 130 interrupted. Errors are one or
two lines on stderr (with ``--json`` a document on stdout); a traceback comes only with ``--debug``.
Nothing heavy is imported here: a command's module is loaded when that command is run.
"""

from __future__ import annotations

import io
import os
import sys
import traceback
from collections.abc import Sequence
from types import TracebackType

import click

from aios import __version__
from aios.cli.completing import VARIABLE
from aios.cli.lazy import Entry, LazyGroup
from aios.core.errors import AIOSError, RunInterrupted

_COMMON_FLAGS = ("--config", "--set", "--seed", "--offline", "--json", "--quiet", "--debug")

ENTRIES = {
    "seal": Entry("aios.cli.commands.seal:seal", "Let a model write training data from passages."),
    "hrm-hf": Entry("aios.cli.commands.hrm_hf:hrm_hf", "Train experts on passages."),
    "experts": Entry("aios.cli.commands.experts:experts", "Look after experts."),
    "goals": Entry("aios.cli.commands.goals:goals", "Say what experts are for."),
    "chat": Entry("aios.cli.commands.chat:chat", "Talk with a model and its experts."),
    "serve": Entry(
        "aios.cli.commands.serve:serve", "Serve the experts over an OpenAI-compatible API."
    ),
    "web": Entry("aios.cli.commands.web:web", "Open Subbrains Manager in the browser."),
    "models": Entry("aios.cli.commands.models:models", "List and fetch base models."),
    "config": Entry("aios.cli.commands.config:config", "Show and explain the settings."),
    "runs": Entry("aios.cli.commands.runs:runs", "Use what runs have recorded."),
    "examples": Entry(
        "aios.cli.commands.examples:examples", "Get passages and settings to try it with."
    ),
    "doctor": Entry(
        "aios.cli.commands.doctor:doctor", "Check what this machine has and what is missing."
    ),
    "completion": Entry(
        "aios.cli.commands.completion:completion", "Print a shell's completion script."
    ),
}


def _print_version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if not value or ctx.resilient_parsing:
        return
    click.echo(f"aios {__version__}")
    ctx.exit(0)


@click.group(
    "aios",
    cls=LazyGroup,
    entries=ENTRIES,
    examples=(
        "aios doctor",
        "aios seal preview --input passages.md",
        "aios seal ab-test --input passages.jsonl --output results",
    ),
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Show the version and exit.",
)
def cli() -> None:
    """Let a language model teach itself, and prove whether it learned.

    The model reads passages, writes its own training data from them (self-edits), a small expert
    is trained on it, and held-out questions tell whether the expert got better.

    Each command explains itself: aios COMMAND --help.
    """


def run(argv: Sequence[str] | None = None) -> int:
    """Runs the program and returns its exit code; a bug propagates.

    Args:
        argv: Arguments without the program's name; those of the process by default.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        with cli.make_context("aios", list(args), obj=args) as ctx:
            cli.invoke(ctx)
    except click.exceptions.Exit as exit_wanted:
        return exit_wanted.exit_code
    except click.ClickException as error:
        return _fail(args, error, "UsageError", error.format_message(), _remedy(error), 2)
    except (click.Abort, KeyboardInterrupt) as error:
        return _fail(args, error, RunInterrupted.__name__, "interrupted", "", 130)
    except AIOSError as error:
        name = type(error).__name__
        return _fail(args, error, name, error.message, error.remedy, error.exit_code)
    except BrokenPipeError:  # whoever read our output is gone, and nobody needs the rest
        _discard_stdout()
        return 0
    except OSError as error:  # a disk or a permission that no layer below has named
        return _fail(args, error, "StorageError", str(error), _OS_REMEDY, 1)
    return 0


_OS_REMEDY = "check the path, its permissions and the free space; --debug shows where it happened"


def main(*command: str) -> None:
    """The console script: runs the program on the process's arguments and exits with its code.

    Args:
        *command: Words that stand before those arguments, e.g. ``"seal", "ab-test"``.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # None or replaced where there is no console
            stream.reconfigure(errors="backslashreplace")
    if os.environ.get(VARIABLE):
        cli.main(prog_name="aios", complete_var=VARIABLE)
    sys.excepthook = _report_bug
    code = run([*command, *sys.argv[1:]])
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _discard_stdout()
    sys.exit(code)


def _remedy(error: click.ClickException) -> str:
    ctx = error.ctx if isinstance(error, click.UsageError) else None
    if ctx is None:
        return ""
    unknown = error.option_name if isinstance(error, click.NoSuchOption) else ""
    if isinstance(ctx.command, click.Group) and f"--{unknown.lstrip('-')}" in _COMMON_FLAGS:
        return "this option stands after the command, as in: aios doctor --json"
    return f"see {ctx.command_path} --help"


def _wants(args: Sequence[str], flag: str) -> bool:
    """Whether a flag was given, even where the line could not be parsed."""
    options = args[: args.index("--")] if "--" in args else args
    return flag in options


def _fail(
    args: Sequence[str],
    error: BaseException,
    kind: str,
    message: str,
    remedy: str,
    code: int,
) -> int:
    """Reports an error in the form that was asked for; gives the exit code."""
    from aios.cli.rendering import error_document, error_lines, write_json

    if _wants(args, "--debug"):
        traceback.print_exception(error, file=sys.stderr)
    try:
        if _wants(args, "--json"):
            write_json(error_document(kind, message, remedy))
        else:
            click.echo(error_lines(message, remedy), err=True)
    except BrokenPipeError:
        _discard_stdout()
    return code


def _report_bug(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """`sys.excepthook`: what nobody caught is a bug in this program; the exit code is 1."""
    shown = "".join(traceback.format_exception_only(kind, error)).strip()
    remedy = "run again with --debug to see where, and report it"
    args = sys.argv[1:]
    _fail(args, error, "InternalError", f"internal error: {shown}", remedy, 1)


def _discard_stdout() -> None:
    """Sends the rest of stdout nowhere, so that the interpreter's last flush does not complain."""
    try:
        descriptor = sys.stdout.fileno()
    except (OSError, ValueError):  # not a real file
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)
