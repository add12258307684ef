"""``aios chat``: talking with a model and its experts, or asking them once from a script."""

from __future__ import annotations

import secrets
import sys
from typing import TYPE_CHECKING

import click

from aios.cli.commands.seal import loaded_model_option
from aios.cli.completing import EXPERTS, completes
from aios.cli.options import Command, Common, common_options, config_option, load
from aios.core.errors import RunInterrupted, StorageError, UsageError
from aios.core.seeds import derive

if TYPE_CHECKING:
    from aios.app.chat.answering import Answering
    from aios.app.chat.assistant import Assistant
    from aios.cli.chat_loop import Notes
    from aios.cli.chat_terminal import Lines, Screen
    from aios.core.config.schemas import Config
    from aios.core.events import Event
    from aios.core.protocols import Emit

_MOST_BYTES = 16 * 2**20  # of a message on stdin


@click.command(
    "chat",
    cls=Command,
    short_help="Talk with a model and its experts.",
    examples=(
        "aios chat",
        "aios chat --expert harbours --no-tta",
        'aios chat --expert base --temperature 0 --json "What is a lighthouse for?"',
    ),
)
@click.argument("message", required=False)
@click.option(
    "--expert",
    "expert",
    default="auto",
    metavar="ID",
    shell_complete=completes(EXPERTS, also=("auto", "base")),
    help="Who answers: an expert's id (see `aios experts list`), base for the base model alone, or"
    " auto for the experts that fit each message. Default: auto.",
)
@click.option(
    "--tta/--no-tta",
    "flag__adaptation__enabled",
    default=None,
    help="Whether a temporary adapter learns from a conversation while it goes on (test-time"
    " adaptation); one MESSAGE teaches nothing.  [adaptation.enabled]",
)
@config_option(
    "--system",
    "chat.system",
    metavar="TEXT",
    help="Instructions that stand before the conversation.",
)
@click.option(
    "--session",
    metavar="NAME",
    help="Name of the conversation in the record of answers; a new one by default.",
)
@config_option(
    "--max-new-tokens", "chat.max_new_tokens", int, metavar="N", help="Longest answer, in tokens."
)
@config_option(
    "--temperature",
    "chat.temperature",
    float,
    metavar="T",
    help="Randomness of the answers; 0: none.",
)
@loaded_model_option
@common_options
def chat(common: Common, message: str | None, expert: str, session: str | None) -> None:
    """Talk with a model and its experts.

    A MESSAGE, here or on stdin, is answered once. Without one a conversation begins: answers come
    as they are written, Ctrl-C stops one, /help lists the commands, Ctrl-D ends.

    What you type is kept in your state folder, readable by you alone, so that the arrow keys bring
    it back. Of answers it is recorded who gave them and when, and not what they say.
    """
    config = load(common).config
    interactive = message is None and sys.stdin.isatty()
    if message is None and not interactive:
        message = _read_stdin()
    if interactive:
        if common.json_output:
            raise UsageError("--json needs a MESSAGE", "write one behind it, or send it on stdin")
        _talk(common, config, expert, session)
    else:
        assert message is not None
        _answer_once(common, config, message, expert, session or "")


def _read_stdin() -> str:
    """The message on stdin.

    Raises:
        UsageError: It is too long or empty, or there is no stdin.
    """
    data = sys.stdin.buffer.read(_MOST_BYTES + 1)
    if len(data) > _MOST_BYTES:
        raise UsageError(f"the message on stdin is longer than {_MOST_BYTES:,} bytes")
    text = data.decode("utf-8", "replace").strip()
    if not text:
        raise UsageError("there is no message: stdin is empty", "write one behind `aios chat`")
    return text


def _open(common: Common, config: Config, notes: Notes) -> Assistant:
    """The assistant; what happens while it is opened is shown, and noted from then on."""
    from aios.app.chat.assistant import open_assistant
    from aios.cli.progress import show_progress

    with show_progress(quiet=common.quiet) as display:
        shown = _Switch(display)
        opened = open_assistant(config, emit=shown)
        shown.to = notes
    return opened


def _answer_once(common: Common, config: Config, message: str, expert: str, session: str) -> None:
    from aios.app.chat.conversation import Conversation
    from aios.cli.chat_loop import Notes, show_answer
    from aios.cli.chat_terminal import Screen
    from aios.cli.rendering import write_json

    conversation = Conversation(config.chat.system)
    conversation.ask(message)
    screen, notes = Screen(quiet=common.quiet), Notes()
    seed = None if common.seed is None else derive(common.seed, "chat", 0)
    try:
        with _open(common, config, notes) as assistant:
            answer = assistant.chat(
                conversation.messages, model=expert, session=session, seed=seed, tta=False
            )
            whole = show_answer(answer, _unseen if common.json_output else screen.write)
    finally:
        screen.notes(notes.take())
    if not common.json_output:
        screen.write("\n")
    if not whole:
        raise RunInterrupted("the answer was stopped")
    if common.json_output:
        write_json(document(answer))


def _unseen(text: str) -> None:
    """Shows nothing: the whole text comes at the end."""


def _talk(common: Common, config: Config, expert: str, session: str | None) -> None:
    from aios.app.chat.conversation import Conversation
    from aios.cli.chat_loop import ChatLoop, Notes
    from aios.cli.chat_terminal import Lines, Screen, history_file

    notes, screen = Notes(), Screen(quiet=common.quiet)
    lines = Lines(history=history_file())
    with _open(common, config, notes) as assistant:
        assistant.check_model(expert)
        try:
            lines.open_history()
        except StorageError as error:
            screen.note(f"warning: {error.message}")
        screen.note(f"{assistant.model.name}; /help lists the commands, Ctrl-D ends")
        loop = ChatLoop(
            assistant,
            Conversation(config.chat.system),
            screen,
            lines,
            notes,
            session=session or f"chat-{secrets.token_hex(6)}",
            model=expert,
            adapt=config.adaptation.enabled,
            seed=common.seed,
        )
        try:
            loop.run()
        finally:
            _save_history(lines, screen)
    screen.notes(notes.take())


class _Switch:
    """An `Emit` that passes on to another, which may be changed."""

    def __init__(self, to: Emit) -> None:
        self.to = to

    def __call__(self, event: Event) -> None:
        self.to(event)


def _save_history(lines: Lines, screen: Screen) -> None:
    try:
        lines.save_history()
    except StorageError as error:
        screen.note(f"warning: what was typed is not kept: {error.message}")


def document(answer: Answering) -> dict[str, object]:
    """An answer as programs read it."""
    ending = answer.ending
    by = answer.answered_by
    return {
        "id": answer.id,
        "answer": answer.text,
        "answered_by": {
            "experts": [{"id": name, "weight": weight} for name, weight in by.experts],
            "reason": by.reason,
        },
        "finish_reason": ending.reason if ending else "cancelled",
        "usage": {
            "prompt_tokens": ending.prompt_tokens if ending else answer.seen.tokens,
            "completion_tokens": ending.completion_tokens if ending else 0,
            "seconds_to_first": ending.seconds_to_first if ending else None,
            "seconds": ending.seconds if ending else None,
        },
        "seed": answer.seed,
        "session": answer.session,
    }
