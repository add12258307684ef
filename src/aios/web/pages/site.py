"""What all pages share: the settings, the jobs, the assistant, and short notes for the next page.

Pages keep no state of their own: what they show is on disk, so that it is the same after a
restart, in another tab and on the command line. The exceptions are here: notes, which one page
leaves for the next, and the assistant, which holds the model in memory once somebody chats.
"""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from aios.app.jobs.store import JobStore
from aios.app.page_settings import PageSettings
from aios.core.config.schemas import Config
from aios.core.errors import AIOSError

if TYPE_CHECKING:
    from aios.app.chat.assistant import Assistant

_MOST_NOTES = 500


@dataclass(frozen=True, slots=True)
class Note:
    """What a page tells about what was just done.

    Attributes:
        text: One sentence.
        tone: How it is meant.
        remedy: What to do, if anything.
        undo: Path that a form posts to in order to take it back; empty for none.
        fields: Fields of that form.
    """

    text: str
    tone: Literal["good", "bad", "plain"] = "good"
    remedy: str = ""
    undo: str = ""
    fields: tuple[tuple[str, str], ...] = ()


class Notes:
    """Notes on their way from one page to the next, by a key that cannot be guessed."""

    def __init__(self) -> None:
        self._notes: OrderedDict[str, Note] = OrderedDict()
        self._guard = threading.Lock()

    def leave(self, note: Note) -> str:
        """Keeps a note for the next page; gives its key."""
        key = secrets.token_urlsafe(12)
        with self._guard:
            self._notes[key] = note
            while len(self._notes) > _MOST_NOTES:
                self._notes.popitem(last=False)
        return key

    def take(self, key: str) -> Note | None:
        """The note of a key, once."""
        with self._guard:
            return self._notes.pop(key, None)


class LateAssistant:
    """The assistant, which is opened when somebody first needs it.

    Loading a model takes seconds and memory: who only looks at runs pays for neither.

    Args:
        open_it: Loads the model and opens the assistant.
    """

    def __init__(self, open_it: Callable[[], Assistant]) -> None:
        self._open = open_it
        self._guard = threading.Lock()
        self._closed = False
        self._assistant: Assistant | None = None
        self.loading = False

    @property
    def ready(self) -> bool:
        """Whether it is open already."""
        return self._assistant is not None

    def get(self) -> Assistant:
        """The assistant; blocks while it is loaded.

        Raises:
            AIOSError: The model cannot be loaded; the next call tries again.
        """
        if self._assistant is not None:
            return self._assistant
        with self._guard:
            if self._closed:
                raise AIOSError("the server is stopping")
            if self._assistant is None:
                self.loading = True
                try:
                    self._assistant = self._open()
                finally:
                    self.loading = False
            return self._assistant

    def close(self) -> None:
        """Closes it, if it was opened; afterwards there is none."""
        with self._guard:
            self._closed = True
            if self._assistant is not None:
                self._assistant.close()
                self._assistant = None


@dataclass(eq=False)
class Site:
    """The collaborators of all pages.

    Attributes:
        settings: The settings, and what was changed of them on pages.
        assistant: Who answers, when asked.
        data: More folders whose files of passages can be chosen.
        notes: What one page tells the next.
        closing: Set when the server stops: streams end.
    """

    settings: PageSettings
    assistant: LateAssistant
    data: tuple[Path, ...] = ()
    notes: Notes = field(default_factory=Notes)
    closing: threading.Event = field(default_factory=threading.Event)

    @property
    def config(self) -> Config:
        """The settings in force."""
        return self.settings.loaded().config

    @cached_property
    def artifacts(self) -> Path:
        """Where results go, as an absolute path."""
        return self.settings.started.config.paths.artifacts.absolute()

    @cached_property
    def jobs(self) -> JobStore:
        """The jobs."""
        return JobStore(self.artifacts)
