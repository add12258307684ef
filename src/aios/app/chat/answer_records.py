"""Keeps the record of answers without making anybody wait for it.

Takes answers that have ended and what people say about them. One thread writes them to the
activity database, in order, and folds its counters into the registry now and then; what cannot be
written is a warning, once, and loses no answer.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError

from aios.app.chat.answering import Answering
from aios.core.errors import AIOSError, StorageError, UsageError
from aios.core.events import Notice
from aios.core.protocols import Emit
from aios.storage.activity import ActivityStore

FOLD_SECONDS = 300.0
_MOST_WAITING = 10_000  # jobs; beyond it answers are not recorded
_QUESTIONS = 256  # that are remembered, so that a correction says what it answers
_LONGEST_QUESTION = 20_000  # characters
_FEEDBACK_SECONDS = 30.0


class AnswerRecords:
    """Writes what was answered, and the feedback on it, from a thread of its own.

    Args:
        store: The database; closed by `close`.
        fold: Puts its counters into the registry.
        emit: For warnings.
        clock: Seconds, never running backwards.
    """

    def __init__(
        self,
        store: ActivityStore,
        fold: Callable[[], object],
        emit: Emit,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._fold = fold
        self._emit = emit
        self._clock = clock
        self._thread = ThreadPoolExecutor(1, "answer-records")
        self._lock = threading.Lock()
        self._waiting = 0
        self._closed = False
        self._questions: OrderedDict[str, str] = OrderedDict()
        self._warned: set[str] = set()
        self._unfolded = False
        self._folded_at = clock()

    def later(self, job: Callable[[], None]) -> None:
        """Does a job after those before it; an error that it raises becomes a warning."""
        with self._lock:
            if self._closed:
                return
            if self._waiting >= _MOST_WAITING:
                self._warn("answers come faster than they can be recorded; some are not")
                return
            self._waiting += 1
            self._thread.submit(self._do, job).add_done_callback(_log_bug)

    def record(self, answer: Answering, question: str) -> None:
        """Records an answer that has ended."""
        with self._lock:
            if len(question) <= _LONGEST_QUESTION:
                self._questions[answer.id] = question
            while len(self._questions) > _QUESTIONS:
                self._questions.popitem(last=False)
        self.later(lambda: self._record(answer, question))

    def feedback(
        self, answer_id: str, *, rating: float | None, correction: str, comment: str
    ) -> None:
        """Stores feedback, after the answers before it.

        Raises:
            UsageError: The answer is not known, nothing is said, or a value is out of its bounds.
            StorageError: It cannot be stored, or not in half a minute.
        """
        with self._lock:
            if self._closed:
                raise UsageError("the assistant is closed")
            message = self._questions.get(answer_id, "") if correction else ""
            done = self._thread.submit(
                self._store.record_feedback,
                answer_id,
                rating=rating,
                correction=correction,
                comment=comment,
                message=message,
            )
        try:
            done.result(_FEEDBACK_SECONDS)
        except FutureTimeoutError:
            raise StorageError(
                f"the feedback is not stored yet, after {_FEEDBACK_SECONDS:g} s",
                "check the disk; it is stored as soon as the records before it are",
            ) from None

    def close(self) -> None:
        """Writes what waits, folds the counters in, and closes the database."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._thread.shutdown(wait=True)
        if self._unfolded:
            self._sheltered(self._fold_now)
        self._store.close()

    def _do(self, job: Callable[[], None]) -> None:
        try:
            self._sheltered(job)
            if self._unfolded and self._clock() - self._folded_at >= FOLD_SECONDS:
                self._sheltered(self._fold_now)
        finally:
            with self._lock:
                self._waiting -= 1

    def _fold_now(self) -> None:
        self._folded_at = self._clock()
        self._fold()
        self._unfolded = False

    def _record(self, answer: Answering, question: str) -> None:
        ending = answer.ending
        self._store.record_answer(
            answer.id,
            model=answer.model,
            experts=answer.answered_by.experts,
            session=answer.session,
            reason=answer.answered_by.reason,
            prompt_tokens=ending.prompt_tokens if ending else answer.seen.tokens,
            completion_tokens=ending.completion_tokens if ending else 0,
            seconds=ending.seconds if ending else 0.0,
            finish_reason=ending.reason if ending else "cancelled",
            message=question,
            text=answer.text,
        )
        self._unfolded = self._unfolded or bool(answer.answered_by.experts)

    def _sheltered(self, job: Callable[[], None]) -> None:
        try:
            job()
        except AIOSError as error:
            self._warn(f"{error.message} {error.remedy}".strip())

    def _warn(self, text: str) -> None:
        """Says something once."""
        if text not in self._warned:
            self._warned.add(text)
            self._emit(Notice(text, "warning"))


def _log_bug(done: Future[None]) -> None:
    """What a job raises besides errors that a user can act on is a bug, and must show."""
    if (error := done.exception()) is not None:
        logging.getLogger(__name__).error("a record was not kept", exc_info=error)
