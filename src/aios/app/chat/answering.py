"""An answer in the making, and who gives it.

`Answering` wraps a `core.serving.Writing`: it passes the pieces on, keeps the text, and says once
when it has ended, however that came about: the last piece was taken, whoever read it left, or the
writer failed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from aios.core.serving import Ending, Piece, Writing


@dataclass(frozen=True, slots=True)
class Routed:
    """Who answers.

    Attributes:
        experts: Ids of the experts with the weights of their adapters, the heaviest first; none:
            the base model.
        reason: Why these, in a few words.
        adapted: Whether the session's own adapter takes part.
    """

    experts: tuple[tuple[str, float], ...] = ()
    reason: str = ""
    adapted: bool = False

    @property
    def name(self) -> str:
        """The experts' ids, or ``base``."""
        return "+".join(expert for expert, _ in self.experts) or "base"


@dataclass(frozen=True, slots=True)
class Seen:
    """What of a conversation the model sees.

    Attributes:
        tokens: Tokens of the prompt.
        kept: Messages in it, the system text not counted.
        left_out: Older messages that are not in it.
        cut: Characters at the start of the last message that are not in it.
    """

    tokens: int
    kept: int = 1
    left_out: int = 0
    cut: int = 0


class Answering:
    """A text in the making. Iterate over it once, from one thread.

    Attributes:
        id: What feedback on it names.
        model: What was asked for: ``base``, ``auto`` or an expert's id.
        session: The caller's session, or empty.
        answered_by: Who writes it.
        seen: What of the conversation is read for it.
        seed: Seed of its draws.
        created: When it was asked for (Unix time, seconds).
    """

    def __init__(
        self,
        writing: Writing,
        *,
        id: str,
        model: str,
        session: str,
        answered_by: Routed,
        seen: Seen,
        seed: int,
        on_end: Callable[[Answering], None],
    ) -> None:
        self.id = id
        self.model = model
        self.session = session
        self.answered_by = answered_by
        self.seen = seen
        self.seed = seed
        self.created = int(time.time())
        self._writing = writing
        self._on_end = on_end
        self._text: list[str] = []
        self._began = threading.Lock()

    def __iter__(self) -> Iterator[Piece]:
        """The pieces, as they are written; who stops reading has cancelled it.

        Raises:
            BackendError: It cannot be written (any more); it is not recorded then.
            RuntimeError: Someone reads it already.
        """
        if not self._began.acquire(blocking=False):
            raise RuntimeError("an answer is read once")
        ended = True
        try:
            for piece in self._writing:
                self._text.append(piece.text)
                yield piece
        except GeneratorExit:
            self._writing.cancel()
            raise
        except BaseException:
            ended = False
            self._writing.cancel()
            raise
        finally:
            if ended:
                self._on_end(self)

    def read(self) -> str:
        """Waits for the end; gives the whole text.

        Raises:
            BackendError: As iterating.
        """
        for _ in self:
            pass
        return self.text

    @property
    def text(self) -> str:
        """What is written so far."""
        return "".join(self._text)

    @property
    def ending(self) -> Ending | None:
        """How it ended; None before the last piece was taken."""
        return self._writing.ending

    def cancel(self) -> None:
        """Nobody wants it any more. From any thread."""
        self._writing.cancel()
