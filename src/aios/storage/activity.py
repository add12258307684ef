"""Who answered what, what people said about it, and what was adapted: an embedded database.

One SQLite file, written by any number of threads and processes. Texts of conversations are not
stored unless `store_text` asks for it; corrections are, since people send them to be learned from.

- **Durability.** Write-ahead log with ``synchronous=NORMAL``: a commit waits for no disk. A killed
  process loses nothing that was recorded; a power cut may lose the last seconds, and never leaves
  the file damaged (SQLite's documentation, "Write-Ahead Logging").
- **Counters.** The registry file has each expert's activations and mean weight. They are counted
  here and put into the file now and then by `fold`, exactly once also where the process is killed
  on the way: what is going to be written is noted here first, and the next fold sees from the
  registry's own figure whether it was written. A figure that another program changed is the new
  start.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path

from aios.core.errors import UsageError
from aios.core.files import locked
from aios.storage import activity_records as records
from aios.storage.activity_database import Database
from aios.storage.activity_fold import Registered, intend, settle
from aios.storage.activity_records import (
    AdaptationRecord,
    AnswerRecord,
    Counter,
    FeedbackRecord,
    SessionRecord,
)

FILE = "activity.sqlite3"
_LOSSES = tuple(f.name for f in fields(AdaptationRecord) if f.name.endswith(("before", "after")))


class ActivityStore:
    """The activity database at a path; made, with its folder, if it is not there.

    It may be used from any thread, and other processes may use the file at the same time; not
    across a fork.

    Args:
        path: The file.
        store_text: Keep the texts of messages and answers, too.
        clock: Seconds since 1970.

    Raises:
        StorageError: The file is corrupt, of a later version, of another program, or cannot be
            opened. All methods raise it where the disk is full or the file turns out damaged, and
            once the store is closed; what was recorded before is intact.
    """

    def __init__(
        self, path: Path, *, store_text: bool = False, clock: Callable[[], float] = time.time
    ) -> None:
        self.path = path
        self.store_text = store_text
        self._clock = clock
        self._database = Database(path)

    def record_answer(
        self,
        answer_id: str,
        *,
        model: str,
        experts: Sequence[tuple[str, float]] = (),
        session: str = "",
        reason: str = "",
        prompt_tokens: int = 0,
        completion_tokens: int = 0,
        seconds: float = 0.0,
        finish_reason: str = "",
        message: str = "",
        text: str = "",
    ) -> None:
        """Records an answer; in most cases this takes well below a millisecond.

        Args:
            answer_id: Its id, new.
            model: What was asked for: ``base``, ``auto``, or an expert's id.
            experts: Who answered, with their weights; each counts as one activation.
            session: The conversation; empty without one.
            reason: Why these experts; its first 2,000 characters are kept.
            prompt_tokens: Tokens of the prompt.
            completion_tokens: Tokens written.
            seconds: From submission to the end.
            finish_reason: How it ended.
            message: What was asked; kept only with `store_text`, up to 100,000 characters.
            text: The answer, likewise.

        Raises:
            UsageError: The id is taken, or a value is out of its bounds.
            StorageError: See the class.
        """
        weights = records.checked_experts(experts)
        kept = records.MAX_TEXT if self.store_text else 0
        now = self._clock()
        row = (
            records.checked_id(answer_id, "answer id"),
            records.checked_id(session, "session id") if session else None,
            now,
            records.checked_id(model, "model's name"),
            records.shortened(reason),
            records.counted(prompt_tokens, "number of prompt tokens"),
            records.counted(completion_tokens, "number of tokens written"),
            records.finite(seconds, "number of seconds"),
            records.shortened(finish_reason),
            records.stored(message[:kept]) or None,
            records.stored(text[:kept]) or None,
        )
        with self._database.writing() as db:
            if db.execute("SELECT 1 FROM answers WHERE id = ?", row[:1]).fetchone():
                raise UsageError(f"there is an answer {answer_id!r} already")
            if row[1] is not None:
                db.execute(
                    "INSERT INTO sessions VALUES (?, ?, ?, ?) ON CONFLICT (id) DO UPDATE"
                    " SET last_used = excluded.last_used, model = excluded.model",
                    (row[1], now, now, row[3]),
                )
            db.execute("INSERT INTO answers VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
            for expert, weight in weights.items():
                db.execute("INSERT INTO answer_experts VALUES (?, ?, ?)", (row[0], expert, weight))
                db.execute(
                    "INSERT INTO expert_totals (expert, activations, weights) VALUES (?, 1, ?)"
                    " ON CONFLICT (expert) DO UPDATE"
                    " SET activations = activations + 1, weights = weights + excluded.weights",
                    (expert, weight),
                )

    def record_feedback(
        self,
        answer_id: str,
        *,
        rating: float | None = None,
        correction: str = "",
        comment: str = "",
        message: str = "",
    ) -> None:
        """Records what a person said about an answer; an answer may get several.

        Args:
            answer_id: The answer.
            rating: From -1 (bad) to 1 (good).
            correction: What should have been answered, at most 100,000 characters.
            comment: Anything else, likewise.
            message: What the correction answers, likewise; a correction teaches little without.

        Raises:
            UsageError: The answer is not known, nothing is said, or a value is out of its bounds.
            StorageError: See the class.
        """
        if rating is not None and not -1 <= rating <= 1:
            raise UsageError(f"a rating of {rating} is out of range", "Give one from -1 to 1.")
        texts = [
            records.checked_text(text, what)
            for text, what in (
                (correction, "correction"),
                (comment, "comment"),
                (message, "message"),
            )
        ]
        if rating is None and not correction and not comment:
            raise UsageError("feedback without content", "Give a rating, correction or comment.")
        with self._database.writing() as db:
            known = records.stored(answer_id)
            if not db.execute("SELECT 1 FROM answers WHERE id = ?", (known,)).fetchone():
                raise UsageError(
                    f"there is no answer {answer_id[:100]!r}", "Check the id; it may be pruned."
                )
            db.execute(
                "INSERT INTO feedback (answer, time, rating, correction, comment, message)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                (known, self._clock(), rating, *texts),
            )

    def record_adaptation(self, adaptation: AdaptationRecord) -> None:
        """Records a test-time adaptation. A loss that is not a finite number becomes None.

        Raises:
            UsageError: An id is out of its bounds, or a time is not a finite number.
            StorageError: See the class.
        """
        row = asdict(adaptation)
        row["session"] = records.checked_id(adaptation.session, "session id")
        row["expert"] = records.checked_id(adaptation.expert, "expert id") if row["expert"] else ""
        row["reason"] = records.shortened(adaptation.reason)
        for name in ("started", "seconds"):
            records.finite(row[name], name)
        for name in _LOSSES:
            if row[name] is not None and not abs(row[name]) < float("inf"):
                row[name] = None
        names = ", ".join(row)
        marks = ", ".join("?" for _ in row)
        with self._database.writing() as db:
            db.execute(f"INSERT INTO adaptations ({names}) VALUES ({marks})", tuple(row.values()))

    def sessions(self, limit: int = 1000) -> tuple[SessionRecord, ...]:
        """Conversations, the last used first."""
        rows = self._database.all(
            "SELECT id, created, last_used, model,"
            " (SELECT COUNT(*) FROM answers WHERE session = sessions.id)"
            " FROM sessions ORDER BY last_used DESC, id LIMIT :limit",
            {"limit": limit},
        )
        return tuple(SessionRecord(*row) for row in rows)

    def answers(
        self, *, session: str | None = None, expert: str | None = None, limit: int = 1000
    ) -> tuple[AnswerRecord, ...]:
        """Answers, the latest first; of a session, or in which an expert took part, if given."""
        rows = self._database.all(
            "SELECT id, COALESCE(session, ''), time, model, reason, prompt_tokens,"
            " completion_tokens, seconds, finish_reason, COALESCE(message, ''),"
            " COALESCE(text, '') FROM answers WHERE (:session IS NULL OR session = :session)"
            " AND (:expert IS NULL"
            " OR id IN (SELECT answer FROM answer_experts WHERE expert = :expert))"
            " ORDER BY time DESC, rowid DESC LIMIT :limit",
            {"session": _key(session), "expert": _key(expert), "limit": limit},
        )
        return tuple(AnswerRecord(*(*row, self._experts_of(row[0]))) for row in rows)

    def feedback(
        self, *, since: float = 0.0, corrections_only: bool = False, limit: int = 1000
    ) -> tuple[FeedbackRecord, ...]:
        """What people said, the latest first.

        Args:
            since: Only what was said at this time or later, in seconds since 1970.
            corrections_only: Only feedback with a correction.
            limit: At most so many.
        """
        rows = self._database.all(
            "SELECT answer, time, rating, correction, comment, message FROM feedback"
            " WHERE time >= :since AND (NOT :corrections OR correction != '')"
            " ORDER BY time DESC, id DESC LIMIT :limit",
            {"since": since, "corrections": corrections_only, "limit": limit},
        )
        return tuple(FeedbackRecord(*(*row, self._experts_of(row[0]))) for row in rows)

    def adaptations(
        self, session: str | None = None, limit: int = 1000
    ) -> tuple[AdaptationRecord, ...]:
        """Test-time adaptations, the latest first; of one session if given."""
        names = ", ".join(f.name for f in fields(AdaptationRecord))
        rows = self._database.all(
            f"SELECT {names} FROM adaptations WHERE (:session IS NULL OR session = :session)"
            " ORDER BY started DESC, id DESC LIMIT :limit",
            {"session": _key(session), "limit": limit},
        )
        return tuple(AdaptationRecord(*(*row[:-2], bool(row[-2]), row[-1])) for row in rows)

    def counters(self) -> dict[str, Counter]:
        """How often each expert answered since the file was made, pruned answers included."""
        rows = self._database.all(
            "SELECT expert, activations, weights FROM expert_totals ORDER BY expert"
        )
        return {expert: Counter(count, weights / count) for expert, count, weights in rows if count}

    @contextmanager
    def fold(self, read: Callable[[], Registered]) -> Iterator[dict[str, Counter]]:
        """Counters to put into the registry, which the block writes; each activation counts once.

        One process folds at a time. The block must write the figures of all experts it is given,
        or raise: then, and where the process is killed at any point, the next fold goes on
        from what the registry says. An expert of the database that is not in the registry stays.

        Args:
            read: Reads every expert's activations and mean weight from the registry.

        Yields:
            The new figures of those experts whose figures change.

        Raises:
            StorageError: See the class, or another process folds for long.
        """
        with locked(self.path.with_name(f".{self.path.name}.fold.lock")):
            registered = read()
            with self._database.writing() as db:
                changed = intend(db, registered)
            yield changed
            with self._database.writing() as db:
                settle(db, {expert: counter.activations for expert, counter in changed.items()})

    def counters_since_fold(self) -> dict[str, Counter]:
        """How often each expert answered since the last fold that is known to be written."""
        rows = self._database.all(
            "SELECT expert, activations - folded, weights - folded_weights FROM expert_totals"
            " ORDER BY expert"
        )
        return {expert: Counter(count, weights / count) for expert, count, weights in rows if count}

    def backup(self, target: Path) -> None:
        """Writes a copy as of now, whole or not at all, while others go on recording.

        Args:
            target: The copy; an earlier copy there is replaced.

        Raises:
            UsageError: There is another kind of file, or it is the database itself.
            StorageError: See the class, or the copy cannot be written.
        """
        self._database.copy(target)

    def prune(self, older_than: float) -> int:
        """Deletes what is older than a time: answers with their feedback, adaptations, sessions.

        The counters stay as they are.

        Args:
            older_than: In seconds since 1970.

        Returns:
            How many answers were deleted.
        """
        with self._database.writing() as db:
            count = db.execute("DELETE FROM answers WHERE time < ?", (older_than,)).rowcount
            db.execute("DELETE FROM adaptations WHERE started < ?", (older_than,))
            db.execute(
                "DELETE FROM sessions WHERE last_used < ?"
                " AND NOT EXISTS (SELECT 1 FROM answers WHERE session = sessions.id)",
                (older_than,),
            )
        return count

    def close(self) -> None:
        """Closes the database; calling it again does nothing."""
        self._database.close()

    def __enter__(self) -> ActivityStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _experts_of(self, answer_id: str) -> tuple[tuple[str, float], ...]:
        rows = self._database.all(
            "SELECT expert, weight FROM answer_experts WHERE answer = :answer"
            " ORDER BY weight DESC, expert",
            {"answer": answer_id},
        )
        return tuple((expert, weight) for expert, weight in rows)


def _key(text: str | None) -> str | None:
    return None if text is None else records.stored(text)
