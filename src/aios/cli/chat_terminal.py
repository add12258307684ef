"""The terminal of a conversation: lines that a person types, texts that a model writes.

`Harmless` takes pieces of a model's text and gives them without anything that could steer the
terminal, also where an escape sequence is cut in two. `Screen` writes answers to stdout and notes,
dimly, to stderr. `Lines` reads messages of one or several lines, and keeps what was typed in a
history file that only its owner can read.
"""

from __future__ import annotations

import os
import re
import secrets
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from aios.cli.progress import can_draw
from aios.cli.text import clean
from aios.core.errors import StorageError
from aios.core.files import guarded, read_bytes_if_there

_HISTORY_LINES = 1000
_HISTORY_BYTES = 4 * 2**20
_MOST_LINES = 10_000  # of one message
_BLOCK = '"""'
_LONGEST_SEQUENCE = 256  # characters; what is longer is no escape sequence
# ECMA-48: control sequences (CSI), strings with an end (OSC, DCS, SOS, PM, APC), other escapes.
_SEQUENCE = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d\x9e\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)"
    r"|\x1b[ -/]*[0-OQ-WYZ`-~\\]"
)
_UNFINISHED = re.compile(
    r"(?:\x1b|(?:\x1b\[|\x9b)[0-?]*[ -/]*"
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d\x9e\x9f])[^\x07\x1b\x9c]*\x1b?|\x1b[ -/]+|\r)\Z"
)


class Harmless:
    """A stream of text without escape sequences and control characters."""

    def __init__(self) -> None:
        self._held = ""

    def feed(self, text: str) -> str:
        """What can be shown now; the start of an escape sequence is held back."""
        text = _SEQUENCE.sub("", self._held + text)
        self._held = ""
        start = _UNFINISHED.search(text)
        if start is not None and len(text) - start.start() <= _LONGEST_SEQUENCE:
            self._held = text[start.start() :]
            text = text[: start.start()]
        return clean(text.replace("\r\n", "\n"))

    def rest(self) -> str:
        """What was held back, at the end."""
        held, self._held = self._held, ""
        return clean(held)


def harmless(text: str) -> str:
    """A whole text without escape sequences and control characters."""
    stream = Harmless()
    return stream.feed(text) + stream.rest()


class Screen:
    """Where a conversation is shown.

    Args:
        quiet: Show answers and errors alone.
        out: For answers; stdout by default.
        err: For everything else; stderr by default.
    """

    def __init__(
        self, *, quiet: bool = False, out: TextIO | None = None, err: TextIO | None = None
    ) -> None:
        self._out = sys.stdout if out is None else out
        self._err = sys.stderr if err is None else err
        self._quiet = quiet
        self._dim = can_draw(self._err) and not os.environ.get("NO_COLOR")

    def write(self, text: str) -> None:
        """A part of an answer, harmless already, shown at once."""
        self._out.write(text)
        self._out.flush()

    def say(self, text: str) -> None:
        """What a command was asked for."""
        self._out.write(clean(text) + "\n")
        self._out.flush()

    def note(self, text: str) -> None:
        """Something by the way, dimly."""
        if not self._quiet:
            shown = clean(text)
            self._err.write(f"\x1b[2m{shown}\x1b[0m\n" if self._dim else f"{shown}\n")
            self._err.flush()

    def notes(self, texts: Iterable[str]) -> None:
        """Several notes."""
        for text in texts:
            self.note(text)

    def error(self, text: str) -> None:
        """Something that went wrong, in lines that are harmless."""
        self._err.write(text + "\n")
        self._err.flush()


class Lines:
    """Messages as a person types them.

    A line that ends with a backslash goes on in the next; so does everything between two lines of
    three quotes.

    Args:
        read: Shows a prompt and gives a line; `input` by default.
        history: Where to keep what was typed; None: nowhere.
    """

    def __init__(self, read: Callable[[str], str] = input, *, history: Path | None = None) -> None:
        self._read = read
        self._history = history

    def next(self, prompt: str = "> ", more: str = ". ") -> str:
        """The next message.

        Raises:
            EOFError: There is none.
            KeyboardInterrupt: Ctrl-C.
        """
        line = self._read(prompt)
        if line.strip() == _BLOCK:
            return "\n".join(self._block(more))
        lines = [line]
        while lines[-1].endswith("\\") and len(lines) < _MOST_LINES:
            lines[-1] = lines[-1][:-1]
            lines.append(self._read(more))
        return "\n".join(lines)

    def _block(self, prompt: str) -> list[str]:
        lines: list[str] = []
        while len(lines) < _MOST_LINES:
            line = self._read(prompt)
            if line.strip() == _BLOCK:
                break
            lines.append(line)
        return lines

    def open_history(self) -> None:
        """Lets the arrow keys find what was typed before, where Python has readline.

        Raises:
            StorageError: The history cannot be read.
        """
        with suppress(ImportError):  # not on every system
            import readline

            readline.set_auto_history(True)
            if self._history is not None:
                data = read_bytes_if_there(self._history, _HISTORY_BYTES) or b""
                for line in data.decode("utf-8", "replace").splitlines()[-_HISTORY_LINES:]:
                    readline.add_history(clean(line))

    def save_history(self) -> None:
        """Writes what was typed, for its owner only.

        Raises:
            StorageError: It cannot be written.
        """
        with suppress(ImportError):
            import readline

            if self._history is not None:
                last = readline.get_current_history_length()
                numbers = range(max(1, last - _HISTORY_LINES + 1), last + 1)
                lines = [readline.get_history_item(number) or "" for number in numbers]
                _write_privately(self._history, "".join(f"{line}\n" for line in lines if line))


def _write_privately(path: Path, text: str) -> None:
    """Replaces a file by one with mode 0600."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    with guarded("write", path):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if path.exists() and not path.is_file():
            raise StorageError(f"cannot write {path}: not a regular file", "Move it away.")
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with open(descriptor, "wb") as handle:
                handle.write(text.encode("utf-8", "replace"))
            os.replace(temporary, path)
        finally:
            with suppress(OSError):
                temporary.unlink()


def history_file() -> Path:
    """Where what was typed is kept."""
    import platformdirs

    return Path(platformdirs.user_state_dir("aios", appauthor=False)) / "chat_history"
