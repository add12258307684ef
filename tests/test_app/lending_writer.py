"""A writer that writes in the caller's thread, so that a test sees who waits for whom."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from aios.core.errors import BackendError
from aios.core.protocols import LanguageModel
from aios.core.serving import Ending, Piece, WriteRequest, WriterLoad, Writing


class Written:
    """A text that is there already."""

    def __init__(self, text: str) -> None:
        self._text = text
        self.ending: Ending | None = None

    def __iter__(self) -> Iterator[Piece]:
        yield Piece(self._text)
        self.ending = Ending("stop", 1, 1, 0.0, 0.0)

    def cancel(self) -> None:
        pass


class LendingWriter:
    """A `Writer` that keeps the rules of `between`: it waits for texts, and texts wait for it.

    Attributes:
        slices: How often the model was lent.
        on_slice: Called with that number while it is lent.
        written: For each text the number of slices before it.
    """

    def __init__(self, model: LanguageModel) -> None:
        self._model = model
        self._changed = threading.Condition()
        self._lent = self._closed = False
        self._waiting = 0
        self.slices = 0
        self.on_slice: Callable[[int], None] = lambda number: None
        self.written: list[int] = []

    @property
    def model(self) -> LanguageModel:
        return self._model

    def submit(self, request: WriteRequest) -> Writing:
        with self._changed:
            self._waiting += 1
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._lent)
            self.written.append(self.slices)
            self._waiting -= 1
            self._changed.notify_all()
        return Written("It is done.")

    def wait_for_a_text(self) -> None:
        """Waits until a text waits."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._waiting, 10)

    @contextmanager
    def between(self) -> Iterator[LanguageModel]:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or not (self._waiting or self._lent))
            if self._closed:
                raise BackendError("the writer is closed")
            self._lent = True
            self.slices += 1
        try:
            self.on_slice(self.slices)
            yield self._model
        finally:
            with self._changed:
                self._lent = False
                self._changed.notify_all()

    def load(self) -> WriterLoad:
        return WriterLoad(0, self._waiting, len(self.written))

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
