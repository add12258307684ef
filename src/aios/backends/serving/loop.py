"""The thread and the queue of a writer: who is written for now, who waits, who has to be refused.

Takes `WriteRequest`s from any thread and gives each one's pieces through a queue of its own. One
thread does all the writing: it gives waiting texts a place, in the order they came, and asks a
`Batch` for the next token of all that have one. The batch knows models; nothing here does, so a
scripted writer keeps the same order, limits and endings as a real one.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Generic, Protocol, TypeVar

from aios.core.errors import AIOSError, BackendError, QueueFullError
from aios.core.serving import Ending, EndReason, Piece, WriteRequest, WriterLoad

_RECENT = 64  # texts whose endings tell how fast places become free
_LEAST_WAIT, _MOST_WAIT = 0.1, 60.0  # seconds that a refused caller is told to wait

Job = TypeVar("Job")


class Batch(Protocol[Job]):
    """What writes. Everything but `prepare` and `dismiss` is called from the loop's thread."""

    def prepare(self, request: WriteRequest) -> tuple[Job, int]:
        """What is known of a text before it has a place, and the tokens of its prompt.

        Called in the submitter's thread; several may be in it at once.

        Raises:
            AIOSError: The text cannot be written.
        """
        ...

    def dismiss(self, job: Job) -> None:
        """Gives back what `prepare` took; from any thread, once a job."""
        ...

    def add(self, text: Text[Job]) -> None:
        """Gives a text a place.

        Raises:
            AIOSError: It cannot be written; the batch has forgotten it.
        """
        ...

    def step(self) -> None:
        """Writes on; a text that has ended, or failed, has been told and is forgotten.

        Raises:
            AIOSError: None of the texts can be written on; each will be removed.
        """
        ...

    def remove(self, text: Text[Job], *, finished: bool) -> None:
        """Forgets a text that has not ended; if `finished`, what it held back is given first."""
        ...

    def close(self) -> None:
        """Frees memory; nothing is asked after it."""
        ...


class Text(Generic[Job]):
    """A `core.serving.Writing`, and what the loop and the batch tell it.

    Attributes:
        request: What is wanted.
        job: What the batch knows of it.
        prompt_tokens: Tokens of its prompt.
        tokens: Tokens written so far.
        over: Whether its end is known.
    """

    def __init__(
        self,
        request: WriteRequest,
        job: Job,
        prompt_tokens: int,
        submitted: float,
        wake: threading.Condition,
    ) -> None:
        self.request, self.job, self.prompt_tokens = request, job, prompt_tokens
        self.tokens = 0
        self.over = False
        self.submitted = submitted
        wait = request.timeout_seconds
        self.deadline = float("inf") if wait is None else submitted + wait
        self._first: float | None = None
        self._wake = wake
        self._cancelled = False
        self._ready: SimpleQueue[Piece | Ending | Exception] = SimpleQueue()
        self._last: Ending | Exception | None = None
        self._ending: Ending | None = None
        self._error: Exception | None = None

    # ------------------------------------------------------------ the reader's side

    def __iter__(self) -> Iterator[Piece]:
        """The pieces, as they are written; see `core.serving.Writing`."""
        while self._ending is None:
            if self._error is not None:
                raise self._error
            item = self._ready.get()
            if isinstance(item, Piece):
                yield item
            elif isinstance(item, Ending):
                self._ending = item
            else:
                self._error = item

    @property
    def ending(self) -> Ending | None:
        """How it ended; None before the last piece was taken."""
        return self._ending

    def cancel(self) -> None:
        """Nobody wants it any more; from any thread."""
        with self._wake:
            self._cancelled = True
            self._wake.notify_all()

    # ------------------------------------------------------------ the writer's side

    def wrote(self) -> None:
        """Counts a token."""
        self.tokens += 1
        if self._first is None:
            self._first = time.monotonic()

    def put(self, piece: Piece) -> None:
        """Gives a piece, if there is anything in it."""
        if piece.text or piece.tokens:
            self._ready.put(piece)

    def end(self, reason: EndReason) -> None:
        """It is written, as far as it will be."""
        now = time.monotonic()
        self.over = True
        first = now if self._first is None else self._first
        self._last = Ending(
            reason,
            self.prompt_tokens,
            self.tokens,
            first - self.submitted,
            now - self.submitted,
        )

    def fail(self, error: Exception) -> None:
        """It cannot be written (on)."""
        self.over = True
        self._last = error

    def tell(self) -> None:
        """Tells the reader how it ended, once its place is free."""
        assert self._last is not None
        self._ready.put(self._last)

    def unwanted(self, now: float) -> EndReason | None:
        """Why it must not be written on, if so."""
        if self._cancelled:
            return "cancelled"
        return "timeout" if now >= self.deadline else None


class ServingLoop(Generic[Job]):
    """The thread that writes.

    Args:
        batch: What it writes with.
        max_concurrent: Most texts that have a place.
        max_waiting: Most texts that wait for one.
        name: Of the thread.
    """

    def __init__(
        self, batch: Batch[Job], *, max_concurrent: int, max_waiting: int, name: str
    ) -> None:
        self._batch = batch
        self._places, self._most = max_concurrent, max_concurrent + max_waiting
        self._changed = threading.Condition()  # guards all below
        self._waiting: deque[Text[Job]] = deque()
        self._writing: list[Text[Job]] = []
        self._turn_of_others = threading.Lock()
        self._lent_to: int | None = None  # the thread inside `between`
        self._closed = False
        self._bug: BaseException | None = None
        self._tokens = 0  # of texts that are over
        self._busy = 0.0  # seconds spent writing
        self._endings: deque[float] = deque(maxlen=_RECENT)  # in those seconds
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    # ------------------------------------------------------------ any thread

    def submit(self, request: WriteRequest) -> Text[Job]:
        """See `core.serving.Writer.submit`."""
        submitted = time.monotonic()
        with self._changed:
            self._require_place()
        job, prompt_tokens = self._batch.prepare(request)
        text = Text(request, job, prompt_tokens, submitted, self._changed)
        try:
            with self._changed:
                self._require_place()
                self._waiting.append(text)
                self._changed.notify_all()
        except BaseException:
            self._batch.dismiss(job)
            raise
        return text

    @contextmanager
    def between(self) -> Iterator[None]:
        """A block in which nothing is written; see `core.serving.Writer.between`."""
        me = threading.get_ident()
        if me == self._lent_to or threading.current_thread() is self._thread:
            raise RuntimeError("between() must not be nested")
        with self._turn_of_others:
            with self._changed:
                self._changed.wait_for(lambda: self._over or not (self._writing or self._waiting))
                self._require_open()
                self._lent_to = me
            try:
                yield
            finally:
                with self._changed:
                    self._lent_to = None
                    self._changed.notify_all()

    def load(self) -> WriterLoad:
        """What there is to do now."""
        with self._changed:
            written = self._tokens + sum(text.tokens for text in self._writing)
            return WriterLoad(len(self._writing), len(self._waiting), written)

    def close(self) -> None:
        """Ends all texts, and the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    @property
    def _over(self) -> bool:
        return self._closed or self._bug is not None

    def _require_open(self) -> None:
        if self._bug is not None:
            raise _stopped() from self._bug
        if self._closed:
            raise BackendError("the writer is closed", "open it again")

    def _require_place(self) -> None:
        self._require_open()
        if len(self._writing) + len(self._waiting) >= self._most:
            waiting = len(self._waiting)
            raise QueueFullError(
                f"{len(self._writing)} texts are being written and {waiting} wait",
                "try again in a while, or raise serve.max_waiting",
                retry_after=self._retry_after(),
            )

    def _retry_after(self) -> float:
        """Seconds in which about half of those who wait will have a place, as of late."""
        if len(self._endings) < 2:
            return 1.0
        interval = (self._endings[-1] - self._endings[0]) / (len(self._endings) - 1)
        wanted = interval * (1 + len(self._waiting) / 2)
        return min(max(wanted, _LEAST_WAIT), _MOST_WAIT)

    # ------------------------------------------------------------ the loop's thread

    def _run(self) -> None:
        try:
            while self._gather():
                self._write()
            self._batch.close()
        except BaseException as error:
            self._crash(error)
            raise

    def _gather(self) -> bool:
        """Waits until there is something to write, and gives it places; False when closed."""
        with self._changed:
            self._drop_waiting()
            while not (self._closed or self._writing or (self._waiting and not self._lent_to)):
                self._changed.wait(self._until_a_deadline())
                self._drop_waiting()
            if self._closed:
                self._end_all()
                return False
            begun: list[Text[Job]] = []
            while self._waiting and len(self._writing) < self._places:
                begun.append(self._waiting.popleft())
                self._writing.append(begun[-1])
        for text in begun:
            try:
                self._batch.add(text)
            except AIOSError as error:
                text.fail(error)
        return True

    def _write(self) -> None:
        """One step; those who have ended, or are no longer wanted, leave."""
        began = time.monotonic()
        going = [text for text in self._writing if not text.over]
        for text in going:
            reason = text.unwanted(began)
            if reason is not None:
                self._batch.remove(text, finished=reason == "timeout")
                text.end(reason)
        going = [text for text in going if not text.over]
        if going:
            try:
                self._batch.step()
            except AIOSError as error:
                for text in going:
                    if not text.over:
                        self._batch.remove(text, finished=False)
                        text.fail(error)
        self._busy += time.monotonic() - began
        with self._changed:
            over = [text for text in self._writing if text.over]
            if over:
                self._writing = [text for text in self._writing if not text.over]
                self._changed.notify_all()
            for text in over:
                self._endings.append(self._busy)
                self._forget(text)

    def _drop_waiting(self) -> None:
        """Ends texts that wait and are no longer wanted."""
        now = time.monotonic()
        for text in [text for text in self._waiting if text.unwanted(now)]:
            self._waiting.remove(text)
            text.end(text.unwanted(now) or "cancelled")
            self._forget(text)
            self._changed.notify_all()

    def _until_a_deadline(self) -> float | None:
        """Seconds until a text that waits has no more time."""
        nearest = min((text.deadline for text in self._waiting), default=float("inf"))
        return None if nearest == float("inf") else max(0.0, nearest - time.monotonic())

    def _end_all(self) -> None:
        for text in self._writing:
            if not text.over:
                self._batch.remove(text, finished=False)
        left = [*self._writing, *self._waiting]
        self._writing.clear()
        self._waiting.clear()
        for text in left:
            if not text.over:
                text.end("cancelled")
            self._forget(text)
        self._changed.notify_all()

    def _crash(self, error: BaseException) -> None:
        """A bug: everybody who waits is told, and so are all who come later."""
        with self._changed:
            self._bug = error
            left = [*self._writing, *self._waiting]
            self._writing.clear()
            self._waiting.clear()
            for text in left:
                if not text.over:
                    told = _stopped()
                    told.__cause__ = error
                    text.fail(told)
                text.tell()
            self._changed.notify_all()

    def _forget(self, text: Text[Job]) -> None:
        """The last that is done for a text, which is over."""
        self._tokens += text.tokens
        self._batch.dismiss(text.job)
        text.tell()


def _stopped() -> RuntimeError:
    return RuntimeError("the writer's thread has stopped over a bug")
