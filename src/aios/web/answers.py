"""Between requests, which wait on an event loop, and the assistant, which blocks.

Takes the calls that begin a request's texts; gives their pieces as they are written. Each text
has a thread until it is written, and no longer: pieces wait in memory for a client that reads
slowly (a text is at most ``serve.max_new_tokens`` long), so slow clients hold no thread. There
are as many threads as texts may be written or wait, at most `MOST_THREADS`; beyond that a
request is refused, as when the writer's own queue is full.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from aios.core.errors import AIOSError, QueueFullError
from aios.core.serving import Ending, Piece

if TYPE_CHECKING:
    from aios.app.chat.answering import Answering

MOST_THREADS = 512
_SPARE = 8  # texts that are being refused by the writer's queue, or have just ended
_log = logging.getLogger("aios.web")

Begin = Callable[[], "Answering"]
Observe = Callable[["Answering", Ending], None]


class Answers:
    """All texts that are being written for clients.

    Args:
        max_concurrent: Texts written at once.
        max_waiting: Texts that may wait.
        observe: Called on the event loop with each text that has ended.
    """

    def __init__(
        self, *, max_concurrent: int, max_waiting: int, observe: Observe = lambda *_: None
    ) -> None:
        self._most = min(max_concurrent + max_waiting, MOST_THREADS) + _SPARE
        self._pool = ThreadPoolExecutor(self._most, thread_name_prefix="aios-answer")
        self._observe = observe
        self._active: set[Texts] = set()
        self._threads = 0
        self.closing = False

    @property
    def threads(self) -> int:
        """Texts that hold a thread now."""
        return self._threads

    @contextmanager
    def begin(self, calls: Sequence[Begin]) -> Iterator[Texts]:
        """Texts for the time of a block; those that are not finished at its end are cancelled.

        Must be used on the event loop. In the block, await `Texts.opened` first.

        Raises:
            QueueFullError: As many texts have a thread as may.
        """
        if self._threads + len(calls) > self._most:
            raise QueueFullError("too many requests at once", "try again in a moment")
        loop = asyncio.get_running_loop()
        texts = Texts(len(calls))
        self._active.add(texts)
        for index, call in enumerate(calls):
            self._threads += 1
            future = self._pool.submit(_write, call, texts, index, loop)
            future.add_done_callback(
                lambda future, index=index: _post(  # type: ignore[misc]
                    loop, self._ended, texts, index, future
                )
            )
        try:
            yield texts
        finally:
            texts.cancel()
            self._active.discard(texts)

    def cancel_all(self) -> None:
        """Every text ends after the token in hand."""
        for texts in list(self._active):
            texts.cancel()

    def close(self) -> None:
        """Cancels what is being written; nothing can be begun any more."""
        self.closing = True
        self.cancel_all()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _ended(self, texts: Texts, index: int, future: Future[Ending]) -> None:
        self._threads -= 1
        error = None if future.cancelled() else future.exception()
        if error is None and not future.cancelled() and (answer := texts.answer_of(index)):
            self._observe(answer, future.result())
        if texts.cancelled and error is not None and not isinstance(error, AIOSError):
            _log.error("a text that nobody waited for failed", exc_info=error)
        texts.put(index, future)


class Texts:
    """The texts of one request, by index. Iterate over them once, after `opened`.

    Args:
        count: How many.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.endings: dict[int, Ending] = {}
        self._answers: dict[int, Answering] = {}
        self._lock = threading.Lock()
        self._cancelled = False
        self._events: asyncio.Queue[tuple[int, Answering | Piece | Future[Ending]]]
        self._events = asyncio.Queue()
        self._early: list[tuple[int, Piece | Future[Ending]]] = []

    @property
    def cancelled(self) -> bool:
        """Whether nobody waits for them any more."""
        return self._cancelled

    @property
    def answers(self) -> tuple[Answering, ...]:
        """The texts in the making; all of them once `opened` has returned."""
        return tuple(self._answers[index] for index in sorted(self._answers))

    def answer_of(self, index: int) -> Answering | None:
        """A text in the making, if it has been begun."""
        return self._answers.get(index)

    async def opened(self) -> None:
        """Waits until every text is begun.

        Raises:
            AIOSError: One is refused; the others are cancelled at the end of the block.
        """
        waiting = set(range(self.count))
        while waiting:
            index, event = await self._events.get()
            if isinstance(event, Future) and index in waiting:
                event.result()  # raises: it has ended before it began
            if isinstance(event, (Future, Piece)):
                self._early.append((index, event))
            else:
                waiting.discard(index)

    async def events(
        self, *, silence: float | None = None
    ) -> AsyncIterator[tuple[int, Piece | Ending | None]]:
        """What happens to the texts as it happens: an index, and its piece or its ending.

        Args:
            silence: Seconds without an event after which (-1, None) is given, so that a
                connection can be kept from being taken for dead; None: never.

        Raises:
            AIOSError: A text cannot be written any more.
        """
        while len(self.endings) < self.count:
            if self._early:
                index, event = self._early.pop(0)
            else:
                try:
                    index, got = await asyncio.wait_for(self._events.get(), silence)
                except asyncio.TimeoutError:
                    yield -1, None
                    continue
                assert isinstance(got, (Piece, Future))  # all are open
                event = got
            if isinstance(event, Future):
                self.endings[index] = event.result()
                yield index, self.endings[index]
            else:
                yield index, event

    def cancel(self) -> None:
        """Nobody waits for them any more. From any thread."""
        with self._lock:
            self._cancelled = True
            answers = list(self._answers.values())
        for answer in answers:
            answer.cancel()

    def take(self, index: int, answer: Answering) -> None:
        """Notes a text that was begun; cancels it if nobody waits for it. From any thread."""
        with self._lock:
            self._answers[index] = answer
            cancelled = self._cancelled
        if cancelled:
            answer.cancel()

    def put(self, index: int, event: Answering | Piece | Future[Ending]) -> None:
        """Hands over what has happened to a text; on the event loop."""
        if not self._cancelled or isinstance(event, Future):
            self._events.put_nowait((index, event))


def _write(call: Begin, texts: Texts, index: int, loop: asyncio.AbstractEventLoop) -> Ending:
    """Writes one text from beginning to end; a thread's work."""
    answer = call()
    texts.take(index, answer)
    _post(loop, texts.put, index, answer)
    for piece in answer:
        _post(loop, texts.put, index, piece)
    ending = answer.ending
    assert ending is not None  # its last piece was taken
    return ending


def _post(loop: asyncio.AbstractEventLoop, function: Callable[..., None], *values: object) -> None:
    """Has the event loop call a function; where it has ended, nobody wants to know."""
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(function, *values)
