"""A conversation at the terminal: messages, ``/commands``, and answers as they are written.

Takes an `Assistant` and reads messages until the person ends it. Ctrl-C stops the answer that is
being written; at the prompt it ends the conversation when it comes twice. What happens in the
background (adaptations, warnings) is shown between turns, never within an answer.
"""

from __future__ import annotations

import difflib
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING

from aios.cli.chat_terminal import Harmless, Lines, Screen, harmless
from aios.cli.progress import describe
from aios.cli.rendering import error_lines
from aios.cli.text import format_duration, format_number
from aios.core.errors import AIOSError, UsageError
from aios.core.events import Event
from aios.core.seeds import derive

if TYPE_CHECKING:
    from aios.app.chat.answering import Answering
    from aios.app.chat.assistant import Assistant
    from aios.app.chat.conversation import Conversation
    from aios.storage.activity_records import AdaptationRecord

_NOTES_KEPT = 100
_END = "Ctrl-C once more, Ctrl-D or /quit ends the conversation"


class Notes:
    """An `Emit` that keeps what is to be shown until it is asked for; from any thread."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=_NOTES_KEPT)

    def __call__(self, event: Event) -> None:
        """Keeps the line of an event that is for people."""
        line = describe(event, verbose=False)
        if line is not None:
            self._lines.append(line)

    def take(self) -> list[str]:
        """The lines since the last time."""
        taken = []
        while self._lines:
            taken.append(self._lines.popleft())
        return taken


def show_answer(answer: Answering, show: Callable[[str], None]) -> bool:
    """Shows an answer as it is written; Ctrl-C stops it.

    It is read in a thread of its own, so that Ctrl-C finds the main thread waiting and nothing
    half done.

    Returns:
        Whether it was written to its end.

    Raises:
        AIOSError: It cannot be written (any more).
    """
    pieces: SimpleQueue[str | None] = SimpleQueue()

    def read() -> None:
        try:
            for piece in answer:
                pieces.put(piece.text)
        finally:
            pieces.put(None)

    reader = ThreadPoolExecutor(1, "answer")
    done = reader.submit(read)
    reader.shutdown(wait=False)
    text, stopped = Harmless(), False
    while True:
        try:
            piece = pieces.get()
            show(text.rest() if piece is None else text.feed(piece))
        except KeyboardInterrupt:
            if stopped:  # the second time: nobody waits for the end
                raise
            stopped = True
            answer.cancel()
            continue
        if piece is None:
            done.result()
            return not stopped


class ChatLoop:
    """Talks with a person.

    Args:
        assistant: Who answers.
        conversation: What was said; its system text stands before all.
        screen: Where it is shown.
        lines: Where messages come from.
        notes: What happened in the background.
        session: The session's id.
        model: Who is to answer: ``auto``, ``base``, or an expert's id.
        adapt: Whether the session adapts to what is said.
        seed: Seed of all draws; None: new ones.
    """

    def __init__(
        self,
        assistant: Assistant,
        conversation: Conversation,
        screen: Screen,
        lines: Lines,
        notes: Notes,
        *,
        session: str,
        model: str,
        adapt: bool,
        seed: int | None,
    ) -> None:
        self._assistant = assistant
        self._conversation = conversation
        self._screen = screen
        self._lines = lines
        self._notes = notes
        self._session = session
        self._model = model
        self._adapt = adapt and assistant.can_adapt
        self._seed = seed
        self._drawn = 0
        self._last: Answering | None = None
        self._tokens = 0
        self._learned: tuple[AdaptationRecord, ...] = ()

    def run(self) -> None:
        """Talks until the person has had enough."""
        commands = self._commands()
        interrupted = False
        while True:
            self._screen.notes(self._notes.take())
            self._screen.notes(map(described, self._new_adaptations()))
            try:
                text = self._lines.next()
            except EOFError:
                self._screen.note("")
                return
            except KeyboardInterrupt:
                if interrupted:
                    self._screen.note("")
                    return
                interrupted = True
                self._screen.note(f"\n({_END})")
                continue
            interrupted = False
            try:
                if not self._do(text, commands):
                    return
            except AIOSError as error:
                self._screen.error(error_lines(error.message, error.remedy))
            except KeyboardInterrupt:
                interrupted = True
                self._screen.note(f"\n(given up; {_END})")

    def _do(self, text: str, commands: dict[str, tuple[str, Callable[[str], None]]]) -> bool:
        """Does a command or answers a message; False: it was the last one."""
        if not text.strip():
            return True
        if not text.lstrip().startswith("/"):
            self._answer(text)
            return True
        name, _, argument = text.strip()[1:].partition(" ")
        if name in ("quit", "exit"):
            return False
        if name not in commands:
            near = difflib.get_close_matches(name, [*commands, "quit"], n=3)
            guess = f"did you mean {' or '.join(f'/{each}' for each in near)}?" if near else ""
            raise UsageError(f"there is no command /{name[:40]}", guess or "/help lists them")
        commands[name][1](argument.strip())
        return True

    def _answer(self, text: str) -> None:
        """Answers a message; what could not be answered is taken back."""
        self._conversation.ask(text)
        written = ""
        try:
            seed = None if self._seed is None else derive(self._seed, "chat", self._drawn)
            self._drawn += 1
            answer = self._assistant.chat(
                self._conversation.messages,
                model=self._model,
                session=self._session,
                seed=seed,
                tta=self._adapt,
            )
            whole = show_answer(answer, self._screen.write)
            self._screen.write("\n")
            written = answer.text
        finally:
            if written.strip():
                self._conversation.answer(written)
            else:
                self._conversation.take_back()
        self._last = answer
        self._screen.note(about(answer, stopped=not whole))
        self._tokens += answer.ending.completion_tokens if answer.ending else 0

    def _new_adaptations(self) -> tuple[AdaptationRecord, ...]:
        """What the session has learned, or not, since this was asked the last time."""
        records = self._assistant.adaptations(self._session)
        known = self._learned
        self._learned = records
        return tuple(record for record in records if record not in known)

    def _commands(self) -> dict[str, tuple[str, Callable[[str], None]]]:
        return {
            "help": ("this list", self._help),
            "experts": ("who can answer", self._experts),
            "expert": ("ID: this expert answers", self._expert),
            "auto": ("the experts that fit a message answer it", lambda _: self._use("auto")),
            "base": ("the base model answers", lambda _: self._use("base")),
            "system": ("TEXT: what stands before all; - for nothing", self._system),
            "reset": ("forget what was said, and what was learned from it", self._reset),
            "retry": ("answer the last message again", self._retry),
            "undo": ("take back the last adaptation", self._undo),
            "adaptations": ("what this session has learned", self._adaptations),
            "tta": ("on|off: adapt to what is said", self._tta),
            "save": ("FILE: keep the conversation", self._save),
            "load": ("FILE: go on with another conversation", self._load),
            "rate": ("up|down [WHY]: what you think of the last answer", self._rate),
            "correct": ("TEXT: what should have been answered", self._correct),
            "tokens": ("how long the conversation is", self._count),
            "quit": ("end; Ctrl-D does the same", lambda _: None),
        }

    def _help(self, _: str) -> None:
        for name, (what, _do) in self._commands().items():
            self._screen.say(f"  /{name:<12} {what}")
        self._screen.say('A line that ends with \\ goes on; so does a block between lines of """.')

    def _experts(self, _: str) -> None:
        for served in self._assistant.models():
            mark = "*" if served.id == self._model else " "
            self._screen.say(f"{mark} {served.id:<24} {served.description}".rstrip())

    def _expert(self, expert_id: str) -> None:
        if not expert_id:
            raise UsageError("/expert needs an ID", "/experts lists them")
        self._assistant.check_model(expert_id)
        self._use(expert_id)

    def _use(self, model: str) -> None:
        self._model = model
        self._screen.note(f"{model} answers from now on")

    def _system(self, text: str) -> None:
        if text:
            self._conversation.system = "" if text == "-" else text
        self._screen.say(self._conversation.system or "(no system text)")

    def _reset(self, _: str) -> None:
        self._conversation.reset()
        self._assistant.forget(self._session)
        self._last = None
        self._screen.note("forgotten")

    def _retry(self, _: str) -> None:
        before = self._conversation.messages
        text = self._conversation.take_back()
        if text is None:
            raise UsageError("nothing was asked yet")
        turns = self._conversation.turns
        try:
            self._answer(text)
        finally:
            if self._conversation.turns == turns:  # without an answer, the old one stays
                self._conversation.restore(before)

    def _undo(self, _: str) -> None:
        undone = self._assistant.undo(self._session)
        self._screen.note("the last adaptation is undone" if undone else "there is none to undo")

    def _adaptations(self, _: str) -> None:
        lessons = self._assistant.lessons(self._session)
        for lesson in lessons:
            self._screen.say(described(lesson.told))
            for text in lesson.new:
                self._screen.say(f"  learned: {harmless(text)}")
            for text in lesson.repeated:
                self._screen.say(f"  again: {harmless(text)}")
        if not lessons:
            self._screen.say("none yet")

    def _tta(self, argument: str) -> None:
        if argument not in ("on", "off"):
            raise UsageError("/tta needs on or off")
        if argument == "on" and not self._assistant.can_adapt:
            raise UsageError("this model cannot be trained here, so no session adapts")
        self._adapt = argument == "on"
        self._assistant.set_adapting(self._session, self._adapt)
        self._screen.note(f"adaptation is {argument}")

    def _save(self, argument: str) -> None:
        path = _path(argument, "/save")
        self._conversation.save(path)
        self._screen.note(f"saved as {path}")

    def _load(self, argument: str) -> None:
        path = _path(argument, "/load")
        self._conversation.load(path)
        self._assistant.forget(self._session)
        self._last = None
        self._screen.note(f"{self._conversation.turns:,} turns read from {path}")

    def _rate(self, argument: str) -> None:
        rating, _, comment = argument.partition(" ")
        if rating not in ("up", "down"):
            raise UsageError("/rate needs up or down")
        value = 1.0 if rating == "up" else -1.0
        self._assistant.feedback(self._last_id(), rating=value, comment=comment.strip())
        self._screen.note("thank you, noted")

    def _correct(self, text: str) -> None:
        if not text:
            raise UsageError("/correct needs the right answer")
        self._assistant.feedback(self._last_id(), correction=text)
        self._screen.note("thank you, noted")

    def _last_id(self) -> str:
        if self._last is None:
            raise UsageError("nothing was answered yet")
        return self._last.id

    def _count(self, _: str) -> None:
        seen = self._last.seen if self._last is not None else None
        if seen is not None:
            left = f"; {seen.left_out} older messages are left out" if seen.left_out else ""
            self._screen.say(f"the last answer read {seen.tokens:,} tokens{left}")
        self._screen.say(
            f"{self._conversation.turns:,} turns; {self._tokens:,} tokens written since the start"
        )


def about(answer: Answering, *, stopped: bool) -> str:
    """Who answered and why, in a line."""
    by = answer.answered_by
    names = ", ".join(f"{name} ({weight:.2f})" for name, weight in by.experts) or "base model"
    adapted = ", adapted" if by.adapted else ""
    parts = [f"{names}{adapted}"]
    if answer.model == "auto" and by.reason:
        parts.append(by.reason)
    if answer.ending is not None:
        parts.append(f"{answer.ending.completion_tokens:,} tokens")
        parts.append(format_duration(answer.ending.seconds))
        if answer.ending.reason in ("length", "timeout"):
            limit = "length" if answer.ending.reason == "length" else "time"
            parts.append(f"cut off by the limit of {limit}")
    if stopped:
        parts.append("stopped")
    return f"[{' · '.join(harmless(part) for part in parts)}]"


def described(record: AdaptationRecord) -> str:
    """An adaptation in a line: over whom, and the losses before and after."""
    losses = (
        ("loss", record.examples_before, record.examples_after),
        ("last turns", record.turns_before, record.turns_after),
        ("unrelated text", record.retention_before, record.retention_after),
    )
    figures = ", ".join(
        f"{what} {format_number(before)} → {format_number(after)}"
        for what, before, after in losses
        if before is not None and after is not None
    )
    done = "adapted" if record.kept else "dropped"
    over = harmless(record.expert or "base model")
    reason = f" ({harmless(record.reason)})" if record.reason else ""
    return f"{done} over {over}: {figures or 'not measured'}{reason}"


def _path(argument: str, command: str) -> Path:
    if not argument or "\0" in argument:
        raise UsageError(f"{command} needs a FILE")
    try:
        return Path(argument).expanduser()
    except RuntimeError as error:
        raise UsageError(f"{argument}: {error}") from None
